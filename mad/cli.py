"""``mad-run`` and ``mad-figures``."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mad import configs, engines, grid, notes, progress
from mad.commands import Parser, command, guard
from mad.configs import config_dir, outputs_of, register_aliases
from mad.errors import MadError
from mad.files import locked
from mad.messages import TRACEBACK, one_line, report
from mad.progress import err, out

if TYPE_CHECKING:
    from pandas import DataFrame

    from mad.pipeline import Cell

PARTS = ("victim", "pool", "defense", "attack", "recovery", "knockoff")
INNER = ("victim.dataset", "victim.architecture", "victim.trainer", "knockoff.trainer", "defense.surrogate")
DULL = "; the knockoff gives one answer to everything: try a smaller knockoff.learning_rate, or more steps"
APART = ("outputs", "data_root", "force", "device")  # say where and how, not what
DERIVED = Path("derived")  # its lock: who reads records later writes later what is derived from them
OmegaConf.register_new_resolver("mad_jobs", engines.jobs, replace=True)
OmegaConf.register_new_resolver("mad_home", lambda path: configs.home("outputs", path), replace=True)
OmegaConf.register_new_resolver("mad_token", lambda: secrets.token_hex(3), use_cache=True, replace=True)
# Hydra finds the launchers' own schemas beside conf/hydra/launcher; checked or not, those files are whole.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")


@command
def run() -> None:
    """Enter ``mad-run``: any error is one line and exit code 1, or a traceback under HYDRA_FULL_ERROR=1."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        os.environ[TRACEBACK] = "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors over instead of printing them its own way
    # Plug-ins of the folder one stands in can be named in configs.
    sys.path.append(os.getcwd())
    register_aliases()
    given, sys.argv[1:] = sys.argv[1:], words(sys.argv[1:])
    try:
        hydra.main(config_path=str(config_dir()), config_name="config", version_base="1.3")(task)()
    finally:
        sys.argv[1:] = given
        notes.end()


def words(given: list[str]) -> list[str]:
    """Return the words of a command line, flags before overrides, as Hydra takes them.

    Raises:
        MadError: if one of the flags is unknown or lacks its value, or the folder of configs is not there.
    """
    parser = Parser(prog="mad-run", parents=[get_args_parser()], add_help=False)
    flags, unknown = parser.parse_known_intermixed_args(given)
    if unknown:
        bare = unknown[0].lstrip("-")
        hint = f"overrides have no dashes: {bare}" if "=" in bare else "mad-run --help lists what there is"
        raise MadError(f"unknown flag {unknown[0]}: {hint}")
    place = configs.further(flags.config_dir)
    spelled = {flags.config_dir: str(place), f"--config-dir={flags.config_dir}": f"--config-dir={place}"}
    rest = [spelled.get(word, word) for word in given]
    for word in flags.overrides:
        rest.remove(word)
    return [*rest, *configs.quoted(flags.overrides)]  # Hydra wants the overrides in one place


def task(config: DictConfig) -> None:
    """Run one cell; in a sweep, leave a note for the sweep's end instead of raising."""
    guard()  # a job's process, too
    if HydraConfig.get().mode == RunMode.RUN:
        try:
            finish([cell_path(config)[0]], outputs_of(config))
        except Exception as error:  # raised, it would pass through Hydra, which adds lines of its own
            report(error)
            sys.exit(1)
        return
    settle(HydraConfig.get())
    sweep, number = Path(HydraConfig.get().sweep.dir), HydraConfig.get().job.num
    overrides, doubt = list(HydraConfig.get().overrides.task), notes.doubt(sweep)
    notes.start(sweep, number, {"overrides": overrides, "doubt": doubt})
    try:
        path, made = cell_path(config, sweep)
        found = {"record": str(path)}
    except Exception as error:
        report(error)
        found, made = {"error": one_line(error)}, False
    err.print(notes.over(sweep, number, found, made=made), soft_wrap=True)


def settle(hydra_config: Any) -> None:
    """Stand where the sweep was launched, whatever machine this is; draw no bars where other jobs print, too."""
    folder = hydra_config.runtime.cwd
    os.chdir(folder)
    if folder not in sys.path:
        sys.path.append(folder)
    if not hydra_config.launcher._target_.endswith(".BasicLauncher"):
        progress.plain = True


def cell_path(config: DictConfig, sweep: Path | None = None) -> tuple[Path, bool]:
    """Run the config's cell, and its undefended reference.

    Returns:
        the path of its record below the outputs folder, and whether anything had to be made.
    """
    from mad.device import choose, use_threads  # torch is imported only once the config is known to be right
    from mad.pipeline import run
    from mad.store import Store

    use_threads(config.threads)
    device = choose(config.device)
    cell = cell_of(config)
    if not isinstance(config.force, bool) and config.force != "all":
        raise MadError(f"force must be false, true (this cell) or all (its networks, too), got {config.force!r}")
    renewed = set[str]() if sweep is None else notes.Renewed(sweep)
    store = Store(outputs_of(config), renewed if config.force == "all" else None)
    made, order = False, in_turn(cell, sweep)
    with store.noting_failure(cell.path):  # its reference may fail before it is begun
        for place, this in enumerate(order, 1):
            force = config.force is True and this is cell
            record, kept = run(this, store, device, force=force, overrides=said(this is cell))
            made |= not kept
            how = "kept" if kept else f"{record['seconds_queries'] + record['seconds_knockoff']:.0f} s"
            of = f", {place} of {len(order)}" if sweep is None and len(order) > 1 else ""
            strength = "" if record["strength"] is None else f" {record['dial']}={record['strength']:g}"
            err.print(
                f"{record['victim']} {record['defense']}{strength}: "
                f"defended {record['defended_accuracy']:.1%}, "
                f"stolen {record['stolen_accuracy']:.1%} ({how}){of}{'' if record.get('learned', True) else DULL}",
                soft_wrap=True,
            )
    return cell.path, made


def said(defended: bool) -> str:
    """Return the overrides that make this job's cell, or its undefended reference, wherever ``mad-run`` is started."""
    given = {word: word.partition("=")[0].lstrip("+~") for word in HydraConfig.get().overrides.task}
    words = [word for word, key in given.items() if key not in APART]
    if not defended:
        words = [word for word in words if not given[word].startswith("defense")] + ["defense=none"]
    return shlex.join(words)


def cell_of(config: DictConfig) -> Cell:
    """Build the cell that a config describes; nothing is run."""
    from mad.pipeline import Cell

    if config.get("grid"):
        raise MadError("this experiment is a grid of cells, not one: choose no second experiment beside it, and say -m")
    for name in (*PARTS, *INNER):
        part = OmegaConf.select(config, name)
        if part is not None and not OmegaConf.is_config(part):
            raise MadError(
                f"{name}={part}: {name} has keys of its own, so a word cannot stand for it; set one of them, "
                f"or choose another {name.partition('.')[0]}, as mad-run --help lists them"
            )
    found = {name: configs.at_home(config[name], name) for name in PARTS}
    parts: dict[str, Any] = {name: hydra.utils.instantiate(found[name], _convert_="all") for name in PARTS}
    return Cell(**parts, seed=config.seed)


def in_turn(cell: Cell, sweep: Path | None) -> list[Cell]:
    """Return the cell and its reference in the order to run them: the reference last, if another job has begun it."""
    if cell.reference.path == cell.path:
        return [cell]
    if sweep is None or notes.first(sweep, cell.reference.fingerprint):
        return [cell.reference, cell]
    return [cell, cell.reference]


class SweepEnd(Callback):
    """Around a sweep: a note for each job; then the table, the figures, the failures, and exit code 1 for them."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note what will be launched: a job that dies can leave no note of its own."""
        try:
            engines.go_on(config.hydra.launcher._target_)
            jobs = grid.jobs(config, list(config.hydra.overrides.task)) if grid.chosen(config) else []
            notes.plan(Path(config.hydra.sweep.dir), jobs)
        except Exception as error:  # raised, it would become a warning of Hydra's
            report(error)
            sys.exit(1)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read the notes that the sweep's jobs left."""
        notes.end()
        every: list[Any] = []
        drawn = False
        try:
            every = notes.read(Path(config.hydra.sweep.dir))
            finish([Path(each["record"]) for each in every if "record" in each], outputs_of(config))
            drawn = True
        except Exception as error:  # raised, it would become a warning of Hydra's
            report(error)
        for doubt in sorted({each["doubt"] for each in every if each.get("doubt")}):
            err.print(doubt, soft_wrap=True)
        failed = [each for each in every if "record" not in each]
        if failed:
            notes.list_failures(failed, every)
            err.print(f"{len(failed)} of {len(every)} cells failed; the others are kept")
        if failed or not drawn:
            sys.exit(1)


def finish(paths: list[Path], outputs: Path) -> None:
    """Write ``records.csv`` and the figures of some records' scenes; then show the records' table and these files."""
    from mad import records
    from mad.table import show

    if not paths:
        return
    shown, written = None, list[Path]()
    try:
        with locked(outputs, DERIVED):
            table = records.read(outputs)
            mine = table if table.empty else table[table.fingerprint.isin([path.parent.name for path in paths])]
            if mine.empty:
                return
            scenes = table[table.scene.isin(mine.scene)]
            reference = (scenes.defense == "none") & scenes.seed.isin(mine.seed)
            shown = scenes[scenes.fingerprint.isin(mine.fingerprint) | reference]
            written.extend(derive(table, scenes, outputs))
    finally:  # what there is is shown, also where a figure could not be drawn
        if shown is not None:
            show(shown)
        listed(written)


def derive(table: DataFrame, scenes: DataFrame, outputs: Path, *, paper: bool = False) -> Iterator[Path]:
    """Write ``records.csv`` and figures, of some scenes or the paper's; yield what is written.

    The caller holds the lock of these. A user's own matplotlib settings are left aside.
    """
    import matplotlib

    from mad import records

    yield records.write_csv(table, outputs)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        if paper:
            from mad.figures.paper import write_all

            yield from write_all(table, outputs)
        else:
            from mad.figures import tradeoff

            yield from tradeoff.write_all(scenes, outputs / "figures")


def listed(files: list[Path]) -> None:
    """Print the places of files."""
    for file in files:
        out.print(str(file), soft_wrap=True, markup=False)


@command
def figures() -> None:
    """Enter ``mad-figures``: records to ``records.csv`` and figures; nothing is trained."""
    parser = Parser(
        prog="mad-figures",
        description="Draw every trade-off curve from the records of earlier runs; trains nothing.",
    )
    parser.add_argument("what", nargs="?", metavar="paper", help="the paper's figures, Table 1 and ledger instead")
    parser.add_argument("--outputs", default="outputs", help="the outputs folder (default: outputs)")
    arguments = parser.parse_args()
    if arguments.what not in (None, "paper"):
        raise MadError(
            f"mad-figures draws the trade-off curves, or with the word paper the paper's figures; "
            f"got {arguments.what!r}"
        )
    from mad import records

    outputs, written = Path(configs.home("--outputs", arguments.outputs)), list[Path]()
    if records.read(outputs).empty:
        raise MadError(f"no record below {outputs}/runs; run mad-run first, or say --outputs FOLDER")
    try:
        with locked(outputs, DERIVED):
            table = records.read(outputs)
            written.extend(derive(table, table, outputs, paper=arguments.what == "paper"))
    finally:
        listed(written)
