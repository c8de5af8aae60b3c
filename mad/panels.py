"""The panel from Python: one theft by each of its members, and the board that they make."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mad import notebook
from mad.cell import Cell
from mad.config import load, members
from mad.errors import MadError

if TYPE_CHECKING:
    from pandas import DataFrame


def panel(
    cell: Cell,
    outputs: str | Path = "outputs",
    *,
    seeds: Sequence[int] | None = None,
    config_dir: str | Path | None = None,
    **how: Any,
) -> DataFrame:
    """Return the board of a cell's defense: what each member of ``experiment=panel`` steals, and the strongest of them.

    The cell's own attack and recovery give way to each member's; its victim, pool, defense, query budget and knockoff
    stay, but for what a member changes. Cells that were run before are loaded.

    Args:
        cell: a cell from ``mad.load``.
        outputs: the outputs folder.
        seeds: the seeds to run; None for the cell's. One seed is an anecdote; take three or more for a claim.
        config_dir: the additional folder of configs that the cell was loaded with.
        **how: ``device`` and ``threads``, as for ``mad.run``.

    Returns:
        One row for the defense and one for ``none``; ``mad.figures.board.board`` explains the columns.

    Raises:
        MadError: if the cell was built from objects, so that no member can be composed, or if it cannot be run.
    """
    from mad.figures.board import board, honest, named
    from mad.storage.records import frame

    if cell.overrides is None:
        raise MadError("a panel is made of overrides, and this cell was built from objects: take one from mad.load")
    cells: dict[str, Cell] = {}
    words = [word for word in shlex.split(cell.overrides) if not gives_way(key(word))]
    for seed in (cell.seed,) if seeds is None else seeds:
        for member in members():
            own = {key(word) for word in (*member, "seed")}
            kept = [word for word in words if key(word) not in own]
            each = load(*kept, *member, f"seed={seed}", config_dir=config_dir)
            cells |= {this.fingerprint: this for this in (each.reference, each)}
    rows = named(frame([notebook.run(each, outputs, reference=False, **how) for each in cells.values()]))
    return board(rows, honest(rows))


def gives_way(name: str) -> bool:
    """Return whether a key of a cell's overrides is of its attack or recovery; the query budget stays."""
    return name != "attack.budget" and name.split(".")[0] in ("attack", "recovery")


def key(word: str) -> str:
    """Return the key of an override."""
    return word.partition("=")[0].lstrip("+~")
