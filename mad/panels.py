"""The panel from Python: one theft by each of its members, and the board that they make."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mad import notebook
from mad.cell import Cell
from mad.config import load, members
from mad.datasets.checked import say
from mad.errors import MadError, UnfitError, check_kind, check_number
from mad.limits import at_most
from mad.schema import Record

Ran = tuple[list[str], tuple[str, ...], float]  # a member, what it knows, what it stole in percent
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
    stay, but for what a member changes. Cells that were run before are loaded. A member that does not go with the cell,
    such as ``jbtop3`` with a victim of three classes, is left out, which a line on stderr says.

    Args:
        cell: a cell from ``mad.load``.
        outputs: the outputs folder.
        seeds: the seeds to run; None for the cell's. One seed is an anecdote; take three or more for a claim.
        within: points of stolen accuracy; after the first seed, only members that came so near to the strongest, or to
            the strongest that knows nothing but the answers, are run with the other seeds, and naive and labels. None:
            all, and the bounds. A member that is left out and could still be the worst takes the other seeds away from
            the row, so that too small a number shows in the column ``seeds``.
        config_dir: the additional folder of configs; None for the one that the cell was loaded with.
        **how: ``device`` and ``threads``, as for ``mad.run``.

    Returns:
        One row for the defense and one for ``none``; ``mad.figures.board.board`` explains the columns.

    Raises:
        MadError: if the cell was built from objects, so that no member can be composed, or if it cannot be run.
    """
    from mad.figures.board import board, honest, named
    from mad.storage.records import frame

    check_kind("the cell of a panel", cell, Cell, notebook.LOADED)
    if cell.overrides is None:
        raise MadError("a panel is made of overrides, and this cell was built from objects: take one from mad.load")
    if within is not None:
        check_number("within", within, 0)
    every = [cell.seed] if seeds is None else list(seeds) if isinstance(seeds, Iterable) else []
    if not every or isinstance(seeds, str):
        raise MadError(f"seeds must be the seeds to run, such as (0, 1, 2), got {seeds!r}")
    words = [word for word in shlex.split(cell.overrides) if not gives_way(key(word))]
    found: dict[str, Record] = {}
    left = {defended: members() for defended in (False, True)}
    for place, seed in enumerate(every):
        ran: dict[bool, list[Ran]] = {False: [], True: []}
        for member in members():
            sides = [defended for defended, some in left.items() if member in some]
            if not sides:
                continue
            own = {key(word) for word in (*member, "seed")}
            kept = [word for word in words if key(word) not in own]
            try:
                asked = load(*kept, *member, f"seed={seed}", config_dir=config_dir or cell.config_dir)
                for defended in sides:
                    this = asked if defended else asked.reference
                    if this.fingerprint not in found:
                        found[this.fingerprint] = notebook.run(this, outputs, reference=False, **how)
                    ran[defended].append((member, this.knows, 100 * found[this.fingerprint]["stolen_accuracy"]))
            except UnfitError as error:
                if member in ALWAYS:  # it is the cell, then
                    raise
                say(f"the panel lacks {' '.join(member)}: {error}")
        if within is not None and place == 0:
            left = {defended: near(some, within) for defended, some in ran.items()}
    rows = named(frame(found.values()))
    return board(rows, honest(rows))


def near(ran: Sequence[Ran], within: float) -> list[list[str]]:
    """Return the members that came within so many points of the strongest of their kind, and naive and labels.

    Members that know more than the answers are compared with all, the others with each other.
    """
    from mad.figures.board import CLEAN

    thieves = [at for at in ran if CLEAN not in at[1]]
    most = max((stolen for _, _, stolen in thieves), default=0.0)
    unaided = max((stolen for _, knows, stolen in thieves if not knows), default=0.0)
    return [
        member
        for member, knows, stolen in thieves
        if member in ALWAYS or at_most((most if knows else unaided) - stolen, within)
    ]


def gives_way(name: str) -> bool:
    """Return whether a key of a cell's overrides is of its attack or recovery; the query budget stays."""
    return name != "attack.budget" and name.split(".")[0] in ("attack", "recovery")


def key(word: str) -> str:
    """Return the key of an override."""
    return word.partition("=")[0].lstrip("+~")
