"""Functions for notebooks: run a cell, read records, plot them, and deploy a defended API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mad import deployment, pipeline
from mad.cell import Cell
from mad.datasets.content import place
from mad.defenses import Defense
from mad.deployment import Deployment
from mad.device import choose, computing
from mad.errors import MadError, check_flag, check_kind, check_there
from mad.export import STOLEN
from mad.foreign import staying
from mad.schema import Record
from mad.storage.store import Store
from mad.victim import Victim

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

LOADED = "mad.load('defense=mad')"


def run(
    cell: Cell,
    outputs: str | Path = "outputs",
    *,
    device: str = "auto",
    threads: int = 1,
    force: bool = False,
    reference: bool = True,
    export: str | Path | None = None,
) -> Record:
    """Return a cell's record; the cell is run once, and its record is then loaded from the outputs folder.

    Args:
        cell: the cell to run, from ``mad.load`` or built from objects.
        outputs: the outputs folder, for records, networks and transfer sets.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        threads: number of CPU threads; another number may change the last bits of a record.
        force: run the cell again even if its record exists.
        reference: also run the same cell without a defense, which every figure compares with.
        export: a folder, in whose ``stolen`` the stolen model is kept; ``mad.open_model`` opens it.

    Raises:
        MadError: if the cell cannot be run.
    """
    check_kind("what mad.run runs", cell, Cell, LOADED)
    for name, flag in (("force", force), ("reference", reference)):
        check_flag(name, flag)
    store, folder = Store(place(outputs, "outputs")), None if export is None else place(export, "export") / STOLEN
    with computing(threads), staying():
        where = choose(device)
        if reference and cell.reference.path != cell.path:
            pipeline.run(cell.reference, store, where)
        return pipeline.run(cell, store, where, force=force, exported=folder)[0]


def records(outputs: str | Path = "outputs") -> DataFrame:
    """Return the records of an outputs folder, one row each; ``docs/records.md`` explains the columns.

    Raises:
        MadError: if there is no such folder; one without records has no row.
    """
    from mad.storage import records

    return records.read(check_there("outputs", place(outputs, "outputs")))


def plot(frame: DataFrame) -> Figure:
    """Return a figure of the trade-off curves: accuracy of the stolen model against the cost for honest users.

    Args:
        frame: rows of ``records`` or of a ``records.csv``, of one comparison group; also of several outputs folders. A
            record that is there twice counts once.

    Raises:
        MadError: if there are no rows, if they lack columns, or if they belong to several comparison groups.
    """
    from mad.figures import tradeoff
    from mad.figures.groups import differing, figure_groups
    from mad.storage import records

    if getattr(frame, "empty", False):
        raise MadError("no record to plot: mad.run makes one, mad.records(outputs) reads them")
    frame = records.once(frame)
    groups = figure_groups(frame).unique()
    if len(groups) > 1:
        raise MadError(
            f"records of {len(groups)} comparison groups that differ in {', '.join(differing(frame)) or 'a setting'}: "
            "plot one, as in frame[frame.comparison_group == record['comparison_group']]"
        )
    return tradeoff.draw(frame)


def deploy(
    what: Cell | Victim,
    defense: Defense | None = None,
    *,
    seed: int = 0,
    outputs: str | Path | None = "outputs",
    device: str = "auto",
) -> Deployment:
    """Return the deployment of a cell, or of a victim and a defense; its ``session(budget)`` is a client's API.

    Args:
        what: a cell, whose victim, defense and seed are used; or a victim.
        defense: the defense, if ``what`` is a victim; None for no defense.
        seed: seed of the defense's random draws, if ``what`` is a victim.
        outputs: the outputs folder in which the victim is stored; None trains it again.
        device: as for ``run``.
    """
    if isinstance(what, Cell):
        if defense is not None:
            raise MadError("a cell has a defense of its own: give mad.deploy a cell, or a victim and a defense")
        if seed not in (0, what.seed):
            raise MadError(f"a cell has a seed of its own: load it with seed={seed!r}, or give a victim and a defense")
        return deploy(what.victim, what.defense, seed=what.seed, outputs=outputs, device=device)
    store = None if outputs is None else Store(place(outputs, "outputs"))
    with staying():
        return deployment.deploy(what, defense, seed=seed, store=store, device=choose(device))
