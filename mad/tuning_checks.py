"""What is checked before defenses are tuned: the budget, and the images that candidates are judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mad.cell import Cell
from mad.datasets.overlap import warning
from mad.errors import MadError
from mad.pipeline import pool_images

ROUNDING = 1e-6  # of a mean of many float32 values
FEW = 2  # images: a limit that is fewer of the validation split's cannot be told


def keep_apart(cell: Cell, say: Callable[[str], object]) -> None:
    """Warn of a pool that has images which thieves are scored on, those of the validation split.

    Raises:
        MadError: if the thief is given such images.
    """
    if "the victim's data" in cell.knows:
        what = "is given images of the victim's kind that mad-tune scores stolen models on"
        raise MadError(f"attack {cell.attack.name} {what}: take another attack, or another attack.source")
    split = cell.victim.validation_split()
    of = f"the validation split of victim {cell.victim.name}"
    if cell.pool is not None and (told := warning(cell.pool_name, pool_images(cell, cell.pool), of, split.images)):
        say(told)


def enough(cell: Cell, loss: float, say: Callable[[str], object]) -> None:
    """Warn of a validation split too small to tell a limit.

    Args:
        cell: one of the cells that are measured, with the whole budget.
        loss: the most accuracy that a defense may cost, a share.
        say: prints a line.

    Raises:
        MadError: if the pool has too few images for the budget, before anything is measured.
    """
    cell.attack.affordable(None if cell.pool is None else pool_images(cell, cell.pool), cell.pool_name)
    count = len(cell.victim.validation_split().images)
    if 0 < loss * count < FEW:
        say(
            f"warning: one of {count} validation images is {1 / count:.1%} of accuracy, too much to tell a limit of "
            f"{loss:.1%}: hold out more, victim.validation=0.3, or give more images"
        )


def above(costs: Sequence[tuple[float, float]], loss: float, l1: float) -> str:
    """Return a warning if a defense costs more on the test split than its limits; empty if it does not.

    Args:
        costs: the accuracy lost (a share) and the mean L1 of each of its records.
        loss: the most accuracy that it may cost.
        l1: the most mean L1.
    """
    lost, moved = (sum(each) / len(costs) for each in zip(*costs, strict=True))
    if lost <= loss + ROUNDING and moved <= l1 + ROUNDING:
        return ""
    found = f"warning: on the test split it costs {lost:.1%} of accuracy and {moved:.3f} of L1, above the limits"
    return f"{found}, which it keeps on the validation split: take a lower strength, or hold out more images"
