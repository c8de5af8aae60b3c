"""One job of ``mad-run``: a cell and its undefended reference, in this process or on another machine."""

from __future__ import annotations

import json
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mad import progress
from mad.cli import configs, grid, known, launchers, preview, sweep_folder
from mad.cli.command import Leave, guard
from mad.cli.configs import outputs_of
from mad.cli.figures import finish
from mad.cli.messages import one_line, report
from mad.cli.plan import reference_label
from mad.errors import RAISED, MadError
from mad.progress import err
from mad.schema import Record

if TYPE_CHECKING:
    from mad.cell import Cell

SHOWN = 3  # classes at either end
NOTHING_LEARNED = "; the knockoff gives one answer to everything: try a smaller knockoff.learning_rate, or more steps"


class Task:
    """The function that Hydra calls for each job; unpickling it in another process registers the configs' resolvers."""

    def __init__(self) -> None:
        OmegaConf.register_new_resolver("mad_jobs", launchers.jobs, replace=True)
        OmegaConf.register_new_resolver("mad_home", lambda path: configs.home("outputs", path), replace=True)
        OmegaConf.register_new_resolver("mad_token", lambda: secrets.token_hex(3), use_cache=True, replace=True)

    def __reduce__(self) -> tuple[type[Task], tuple[()]]:
        return Task, ()

    def __call__(self, config: DictConfig) -> None:
        """Run one cell; in a sweep, write a note for the sweep's end instead of raising an error."""
        guard()  # a job may run in a process of its own
        if HydraConfig.get().mode == RunMode.RUN:
            one(config)
        else:
            one_of_a_sweep(config)


def one(config: DictConfig) -> None:
    """Run one cell, then write its figures and print its table."""
    try:
        if preview.wanted(config):
            preview.one(config, list(HydraConfig.get().overrides.task))
        else:
            finish([run_cell(config)[0]], outputs_of(config))
    except RAISED as error:  # Hydra would add lines to an error that is raised
        report(error)
        raise Leave(1) from error


def one_of_a_sweep(config: DictConfig) -> None:
    """Run a cell of a sweep, and write a note with its result."""
    settle(HydraConfig.get())
    sweep, number = Path(HydraConfig.get().sweep.dir), HydraConfig.get().job.num
    overrides, doubt = list(HydraConfig.get().overrides.task), sweep_folder.doubt(sweep)
    sweep_folder.start(sweep, number, {"overrides": overrides, "doubt": doubt})
    try:
        path, made = run_cell(config, sweep)
        found = {"record": str(path)}
    except RAISED as error:
        found, made = {"error": one_line(error)}, False
        if grid.leaves_out(error, overrides):
            found["left_out"] = "an experiment's grid asks for it, the user does not"
        else:
            report(error)
    err.print(sweep_folder.over(sweep, number, found, made=made), soft_wrap=True)


def settle(hydra_config: Any) -> None:
    """Change to the folder in which the sweep was launched; draw no progress bars if other jobs print too."""
    folder = hydra_config.runtime.cwd
    os.chdir(folder)
    if folder not in sys.path:
        sys.path.append(folder)
    if not hydra_config.launcher._target_.endswith(".BasicLauncher"):
        progress.plain = True


def run_cell(config: DictConfig, sweep: Path | None = None) -> tuple[Path, bool]:
    """Run the config's cell and its undefended reference.

    Returns:
        The path of the cell's record, relative to the outputs folder, and whether anything had to be run.
    """
    found = known.find(config)
    if found is not None:
        kept_at, records = found
        for each in records:
            tell(each, "kept")
        return Path(kept_at.record), False
    from mad.cli.compose import cell_of
    from mad.device import choose, use_threads  # imports torch, so only after the config is checked
    from mad.pipeline import run
    from mad.storage.store import Store

    use_threads(config.threads)
    device = choose(config.device)
    cell = cell_of(config, HydraConfig.get().overrides.task)
    if not isinstance(config.force, bool) and config.force != "all":
        raise MadError(f"force must be false, true (this cell) or all (its networks, too), got {config.force!r}")
    renewed = set[str]() if sweep is None else sweep_folder.Renewed(sweep)
    store = Store(outputs_of(config), renewed if config.force == "all" else None)
    made, order, exported = False, in_turn(cell, sweep), export_of(config, cell, sweep)
    with store.noting_failure(cell.path):  # its reference may fail first
        for place, this in enumerate(order, 1):
            force = config.force is True and this is cell
            record, kept = run(this, store, device, force=force, exported=exported if this is cell else None)
            made |= not kept
            how = "kept" if kept else f"{record['seconds_queries'] + record['seconds_knockoff']:.0f} s"
            tell(record, how, f", {place} of {len(order)}" if sweep is None and len(order) > 1 else "")
    known.remember(config, cell, reference_label(cell))
    return cell.path, made


def export_of(config: DictConfig, cell: Cell, sweep: Path | None) -> Path | None:
    """Return the folder for the cell's stolen model, None if none is asked for; checked before anything is trained."""
    from mad.export import STOLEN, check

    if config.export is None:
        return None
    folder = Path(configs.home("export", config.export))
    folder = (folder if sweep is None else folder / cell.fingerprint) / STOLEN
    check(folder, cell.knockoff.architecture, cell.fingerprint)
    return folder


def tell(record: Record, how: str, place: str = "") -> None:
    """Print the line of a cell that is done: its accuracies, and whether it was kept or how long it took."""
    strength = "" if record["strength"] is None else f" {record['strength_parameter']}={record['strength']:g}"
    err.print(
        f"{record['victim']} {record['defense']}{strength}: "
        f"defended {record['defended_accuracy']:.1%}, stolen {record['stolen_accuracy']:.1%} "
        f"({how}){place}{NOTHING_LEARNED if record.get('learned') is False else ''}",
        soft_wrap=True,
    )
    if record.get("class_names") and record.get("stolen_by_class") and record.get("learned") is not False:
        err.print(by_class(record), soft_wrap=True, markup=False)


def by_class(record: Record) -> str:
    """Return which classes the stolen model has right most and least often, and how often the API has."""
    names = json.loads(record["class_names"])
    each = zip(record["stolen_by_class"], record["defended_by_class"], names, strict=True)
    found = sorted((triple for triple in each if triple[0] is not None), key=lambda triple: triple[0])
    some = [f"{name} {stolen:.0%} (API {kept:.0%})" for stolen, kept, name in found]
    if len(some) < 2 * SHOWN:
        return f"stolen by class: {', '.join(reversed(some))}"
    return f"stolen most: {', '.join(some[: -SHOWN - 1 : -1])}; least: {', '.join(some[:SHOWN])}"


def in_turn(cell: Cell, sweep: Path | None) -> list[Cell]:
    """Return the reference and the cell in the order to run them; the reference last if another job has started it."""
    free = sweep is None or sweep_folder.first(sweep, cell.reference.fingerprint)
    if cell.reference.path == cell.path:
        return [cell]
    if free:
        return [cell.reference, cell]
    return [cell, cell.reference]
