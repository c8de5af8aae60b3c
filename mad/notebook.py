"""What a notebook types: run a cell, read the records, draw them, ask the defended API itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mad import deployment, pipeline
from mad.cell import Cell
from mad.defenses import Defense
from mad.deployment import Deployment
from mad.device import choose, use_threads
from mad.errors import MadError
from mad.schema import Record
from mad.storage.store import Store
from mad.victim import Victim

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


def run(
    cell: Cell,
    outputs: str | Path = "outputs",
    *,
    device: str = "auto",
    threads: int = 1,
    force: bool = False,
    reference: bool = True,
) -> Record:
    """Return a cell's record: made once, and then kept in the outputs folder.

    Args:
        cell: what to run; see ``mad.load``, or build one from objects.
        outputs: the folder of all that is kept.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        threads: CPU threads; more of them may change a record's last bits.
        force: make it again.
        reference: also run the same theft with no defense, which every figure compares with.

    Raises:
        MadError: if the cell cannot be run.
    """
    store = Store(Path(outputs).expanduser())
    with computing(threads):
        where = choose(device)
        if reference and cell.reference.path != cell.path:
            pipeline.run(cell.reference, store, where)
        return pipeline.run(cell, store, where, force=force)[0]


def records(outputs: str | Path = "outputs") -> DataFrame:
    """Return the records of an outputs folder, a row each; ``docs/records.md`` explains the columns."""
    from mad.storage import records

    return records.read(Path(outputs).expanduser())


def plot(frame: DataFrame) -> Figure:
    """Return the trade-off curves of records: what each defense costs the thief, against what it costs honest users.

    Args:
        frame: rows of ``records``, of one comparison group.

    Raises:
        MadError: if there are none, or of several groups.
    """
    from mad.figures import tradeoff
    from mad.figures.groups import differing

    if frame.empty:
        raise MadError("no record to plot: mad.run makes one, mad.records(outputs) reads them")
    groups = frame.comparison_group.unique()
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
    """Return the defended API of a cell, or of a victim and a defense; ``.session(budget)`` is what a client meets.

    Args:
        what: a cell, whose victim, defense and seed are taken; or a victim.
        defense: of a victim; None for none.
        seed: of what the defense of a victim draws.
        outputs: where the victim is kept; None trains it anew.
        device: as for ``run``.
    """
    if isinstance(what, Cell):
        if defense is not None:
            raise MadError("a cell has a defense of its own: give mad.deploy a cell, or a victim and a defense")
        return deploy(what.victim, what.defense, seed=what.seed, outputs=outputs, device=device)
    store = None if outputs is None else Store(Path(outputs).expanduser())
    return deployment.deploy(what, defense, seed=seed, store=store, device=choose(device))


@contextmanager
def computing(threads: int) -> Iterator[None]:
    """Compute with some CPU threads, and with as many as before afterwards."""
    before = torch.get_num_threads()
    use_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
