"""``mad-status``: the state of cells (done, running, failed, missing), and files that no record needs."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from mad.cli import configs, grid, messages
from mad.cli.command import Parser, command
from mad.cli.configs import home, outputs_of
from mad.cli.plan import PLAN, Planned, plan
from mad.cli.sweep_folder import SWEEPS, left
from mad.errors import MadError, check_there
from mad.progress import out
from mad.schema import Record
from mad.storage.files import DamagedError, below, holder, lock_file

STATES = ("done", "running", "failed", "missing", "left out")


@command
def main() -> None:
    """Enter ``mad-status``."""
    arguments = parse(sys.argv[1:])
    configs.register_aliases()
    if arguments.prune:
        from mad.cli.prune import prune

        prune(check_there("--outputs", place_of(arguments)), arguments.yes)
    else:
        show(*asked(arguments))


def parse(words: list[str]) -> argparse.Namespace:
    """Return the parsed command line.

    Raises:
        MadError: if it is not valid.
    """
    parser = Parser(
        prog="mad-status", description="What is done, running, failed and missing; what no record needs any more."
    )
    parser.add_argument("what", nargs="*", help="a sweep's folder, or overrides as mad-run takes; default: last sweep")
    parser.add_argument("-m", "--multirun", action="store_true", help="taken, and without effect")
    parser.add_argument("--outputs", help="the outputs folder (default: outputs)")
    parser.add_argument("--config-dir", help="a further folder of configs, as for mad-run")
    parser.add_argument("--prune", action="store_true", help="show, then remove, what no record refers to")
    parser.add_argument("--yes", action="store_true", help="remove without asking")
    found = parser.parse_intermixed_args(words)
    if found.yes and not found.prune:
        parser.error("--yes goes with --prune")
    if found.prune and found.what:
        parser.error(f"--prune takes --outputs FOLDER and nothing else, got {found.what[0]!r}")
    return found


def place_of(arguments: argparse.Namespace) -> Path:
    """Return the outputs folder that ``--outputs`` names; the one that is not said need not be there."""
    if arguments.outputs is None:
        return Path("outputs")
    return check_there("--outputs", Path(home("--outputs", arguments.outputs)))


def asked(arguments: argparse.Namespace) -> tuple[Path, list[Planned]]:
    """Return the outputs folder, and the cells that the command line names."""
    overrides = [word for word in arguments.what if "=" in word]
    if overrides or arguments.multirun:
        rest = [word for word in arguments.what if "=" not in word]
        if rest:
            raise MadError(messages.unreadable(rest[0]))
        return composed(overrides, arguments)
    outputs = place_of(arguments)
    if len(arguments.what) > 1:
        raise MadError(f"one sweep's folder at a time, got {len(arguments.what)}: {' '.join(arguments.what)}")
    if arguments.what:
        folder = Path(home("the folder", arguments.what[0]))
        above = Path(os.path.abspath(folder)).parent
        own = arguments.outputs is None and above.name == SWEEPS.name  # its records lie beside it
        return above.parent if own else outputs, listed(folder)
    sweeps = sorted((outputs / SWEEPS).glob(f"*/{PLAN}"), key=lambda file: (file.stat().st_mtime_ns, file))
    if not sweeps:
        raise MadError(f"no sweep below {outputs}/{SWEEPS}: say overrides, a folder, or --outputs FOLDER")
    return outputs, listed(sweeps[-1].parent)


def composed(overrides: list[str], arguments: argparse.Namespace) -> tuple[Path, list[Planned]]:
    """Return the outputs folder and the cells that ``mad-run`` would run for the same overrides; nothing is run.

    The folder is that of ``outputs`` in a config or an override, else that of ``--outputs``.
    """
    sys.path.append(os.getcwd())  # plug-ins, as for mad-run
    place, overrides = configs.further(arguments.config_dir), configs.quoted(overrides)
    with configs.quiet(), hydra.initialize_config_dir(str(configs.config_dir()), version_base="1.3"):
        if place:
            overrides = [f"hydra.searchpath=['{place}']", *overrides]
        parsed = OverridesParser.create().parse_overrides(overrides)
        fixed = [str(each.input_line) for each in parsed if not each.is_sweep_override()]
        config = hydra.compose("config", overrides=fixed, return_hydra_config=True)
        cells = plan(grid.jobs(config, overrides))
    said = arguments.outputs is None or config.outputs != "outputs"
    return outputs_of(config) if said else place_of(arguments), cells


def listed(folder: Path) -> list[Planned]:
    """Return the cells that a sweep listed when it started; the list is data and is never executed."""
    try:
        rows = [json.loads(line) for line in (folder / PLAN).read_text().splitlines()]
        return [
            Planned(str(row["label"]), row["record"] and Path(row["record"]), row["error"], bool(row.get("left_out")))
            for row in rows
        ]
    except OSError as error:
        raise MadError(f"{folder} is no sweep's folder ({error.strerror}): expected {folder / PLAN}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise MadError(f"{folder / PLAN} is damaged: give the sweep's overrides instead") from error


def show(outputs: Path, cells: list[Planned]) -> None:
    """Print one line per cell, then the counts and an estimate of the time left."""
    counts, seconds, running = Counter[str](), [], []
    for cell in cells:
        state, detail = state_of(outputs, cell)
        counts[state] += 1
        if state == "done":
            seconds.append(detail["seconds_queries"] + detail["seconds_knockoff"])
        if state == "running":
            running.append(time.time() - detail["since"])
        text = f"{state:<8} {cell.label}{why(state, detail)}"
        out.print("".join(c if c.isprintable() else "?" for c in text), soft_wrap=True, markup=False)
    rest = left(seconds, running, counts["missing"])
    if counts["failed"] and not counts["missing"] and not running:
        rest = "the same command tries again what failed"
    total = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state] or state != "left out")
    out.print(
        f"{len(cells)} cell{'' if len(cells) == 1 else 's'}: {total}; {rest}",
        soft_wrap=True,
        markup=False,
    )


def state_of(outputs: Path, cell: Planned) -> tuple[str, Record]:
    """Return a cell's state and its details; nothing is written."""
    from mad.storage.record_file import read_record
    from mad.storage.store import FAILED

    if cell.record is None:
        return "left out" if cell.left_out else "failed", {"error": cell.error or "?"}
    try:
        record = read_record(below(outputs, cell.record))
    except DamagedError:
        record = None
    if record is not None:
        return "done", record
    owner = holder(below(outputs, lock_file(cell.record.parent)))
    if owner:
        return "running", owner
    note = below(outputs, Path(FAILED, f"{cell.record.parent.name}.json"))
    try:
        return "failed", {"error": str(json.loads(note.read_text())["error"])}
    except (OSError, ValueError, KeyError, TypeError):
        return "missing", {}


def why(state: str, detail: Record) -> str:
    """Return the text after a cell's label: the process of a running cell, the error of a failed one, or nothing."""
    if state == "running":
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(detail["since"]))
        return f" (process {detail['pid']} on {detail['host']} since {since})"
    return f": {detail['error']}" if state in ("failed", "left out") else ""
