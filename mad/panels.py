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
from mad.schema import Record

ALWAYS = ["recovery=none"], ["recovery=argmax"]  # naive and labels, which have columns of their own on a board

if TYPE_CHECKING:
    from pandas import DataFrame


def panel(
    cell: Cell,
    outputs: str | Path = "outputs",
    *,
    seeds: Sequence[int] | None = None,
    within: float | None = None,
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
        within: points of stolen accuracy; after the first seed, only members that came so near to the strongest, or to
            the strongest that knows nothing but the answers, are run with the other seeds, and naive and labels. None:
            all, and the bounds. A member that is left out and could still be the worst takes the other seeds away from
            the row, so that too small a number shows in the column ``seeds``.
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
    words = [word for word in shlex.split(cell.overrides) if not gives_way(key(word))]
    found: dict[str, Record] = {}
    left = every = [(member, defended) for member in members() for defended in (False, True)]
    for seed in (cell.seed,) if seeds is None else seeds:
        ran: list[tuple[list[str], bool, Cell, float]] = []
        for member, defended in left:
            own = {key(word) for word in (*member, "seed")}
            kept = [word for word in words if key(word) not in own]
            asked = load(*kept, *member, f"seed={seed}", config_dir=config_dir)
            this = asked if defended else asked.reference
            if this.fingerprint not in found:
                found[this.fingerprint] = notebook.run(this, outputs, reference=False, **how)
            ran.append((member, defended, this, 100 * found[this.fingerprint]["stolen_accuracy"]))
        if within is not None and left is every:
            left = [
                each for defended in (False, True) for each in near([at for at in ran if at[1] == defended], within)
            ]
    rows = named(frame(found.values()))
    return board(rows, honest(rows))


def near(ran: Sequence[tuple[list[str], bool, Cell, float]], within: float) -> list[tuple[list[str], bool]]:
    """Return the members of a defense that came within so many points of the strongest, and naive and labels."""
    from mad.figures.board import CLEAN

    thieves = [at for at in ran if CLEAN not in at[2].knows]
    most = max((stolen for *_, stolen in thieves), default=0.0)
    unaided = max((stolen for _, _, cell, stolen in thieves if not cell.knows), default=0.0)
    return [
        (member, defended)
        for member, defended, cell, stolen in thieves
        if member in ALWAYS or stolen >= (most if cell.knows else unaided) - within
    ]


def gives_way(name: str) -> bool:
    """Return whether a key of a cell's overrides is of its attack or recovery; the query budget stays."""
    return name != "attack.budget" and name.split(".")[0] in ("attack", "recovery")


def key(word: str) -> str:
    """Return the key of an override."""
    return word.partition("=")[0].lstrip("+~")
