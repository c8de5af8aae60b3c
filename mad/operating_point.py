"""Operating points: how strong a defense may be for a limit on what it costs honest users.

The cost is measured on the validation split, which the victim does not learn from. The test split is not used.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from mad.cell import SHARED, Cell
from mad.defenses import Defense
from mad.deployment import Deployment, deploy
from mad.errors import MadError, check_number
from mad.evaluation import utility
from mad.limits import SINGLE, at_most, under
from mad.storage.store import Store

ROUNDS = 14  # halvings of the range of strengths


@dataclass(frozen=True)
class OperatingPoint:
    """What a defense costs at one strength, on the validation split, or may cost by its guarantee if that is more.

    Args:
        strength: the value of the defense's strength parameter; None for the defense as it is.
        loss: how much of the API's accuracy the defense takes, a share in [-1, 1].
        l1_mean: the mean L1 distance between defended and clean answers, in [0, 2].
    """

    strength: float | None
    loss: float
    l1_mean: float

    def within(self, loss: float, l1: float) -> bool:
        """Return whether it costs at most ``loss`` of accuracy and a mean L1 of ``l1``; rounding does not count."""
        return bool(at_most(self.loss, loss) and at_most(self.l1_mean, l1, SINGLE * l1))


class Costs:
    """The costs of a cell's defense at any strength; each strength is measured once.

    Args:
        cell: the cell, whose attack is not run. Its victim needs ``victim.validation`` above 0.
        store: stores trained networks.
        device: where to compute.
    """

    def __init__(self, cell: Cell, store: Store, device: torch.device) -> None:
        self.cell, self.store, self.device = cell, store, device
        self.split = cell.victim.validation_split()
        name = cell.defense.strength_parameter
        kinds = {field.name: field.type for field in dataclasses.fields(cell.defense)}
        words = {*re.findall(r"\w+", str(kinds[name]))}  # of a type, or of its text
        self._whole = "int" in words and "float" not in words  # such as the k of top_k
        self._known: dict[float | None, OperatingPoint] = {}

    def defended(self, strength: float | None) -> Deployment:
        """Return the victim behind its defense at a strength, or as it is.

        Raises:
            MadError: if the defense refuses the strength.
        """
        cell, defense = self.cell, self._turned(strength)
        return deploy(cell.victim, defense, seed=cell.seed, store=self.store, device=self.device, cache=SHARED)

    def _turned(self, strength: float | None) -> Defense:
        """Return the defense at a strength, or as it is."""
        defense = self.cell.defense
        if strength is None:
            return defense
        whole = self._whole and float(strength).is_integer()  # what is no whole number is refused, not cut
        return dataclasses.replace(defense, **{defense.strength_parameter: int(strength) if whole else strength})

    def at(self, strength: float | None) -> OperatingPoint:
        """Return the cost at a strength, or of the defense as it is.

        Raises:
            MadError: if the defense refuses the strength.
        """
        if strength not in self._known:
            made = self.defended(strength)
            found = utility(made, self.split, None if made.served is made.model else made.model, self.device)
            loss, moved = made.defense.most_costs()  # what images that it was calibrated on do not show
            loss = max(loss, found["victim_accuracy"] - found["defended_accuracy"])
            self._known[strength] = OperatingPoint(strength, loss, max(moved, found["l1_mean"]))
        return self._known[strength]

    def strongest(self, loss: float, weakest: float, strongest: float, l1: float = 2.0) -> OperatingPoint | None:
        """Return the strongest point that costs at most ``loss`` of accuracy, and a mean L1 of at most ``l1``.

        It is found by halving; None if the weakest costs more. The cost is taken to grow from ``weakest`` to
        ``strongest``, of which either may be the larger number.

        Raises:
            MadError: if the defense refuses one of the two strengths, or if they cost the other way round.
        """
        check_number("loss", loss, 0, 1)
        check_number("l1", l1, 0, 2)
        for end in (weakest, strongest):  # before anything is trained
            self._turned(end)

        def within(strength: float) -> bool:
            return self.at(strength).within(loss, l1)

        first, last = self.at(weakest), self.at(strongest)
        less = under(last.l1_mean, first.l1_mean, SINGLE)
        if less or (at_most(first.l1_mean, last.l1_mean, SINGLE) and within(strongest) and not within(weakest)):
            name = f"defense.{self.cell.defense.strength_parameter}"
            costs = " and ".join(
                f"{each.loss:.2%}, mean L1 {each.l1_mean:.3f}, at {each.strength:g}" for each in (first, last)
            )
            raise MadError(f"{name} costs {costs}: the weakest strength comes first, then the strongest")
        if within(strongest):
            return self.at(strongest)
        if not within(weakest):
            return None
        good, bad = weakest, strongest
        finer = max(0, math.floor(-math.log10(abs(weakest - strongest))))  # than of a range of one or two
        for _ in range(ROUNDS):
            middle = round((good + bad) / 2, 0 if self._whole else 4 + finer)
            if middle in (good, bad):
                break
            good, bad = (middle, bad) if within(middle) else (good, middle)
        return self.at(good)


def operating_points(
    cell: Cell, losses: Iterable[float], weakest: float, strongest: float, store: Store, device: torch.device
) -> Iterator[tuple[float, OperatingPoint | None]]:
    """Yield each limit on the loss of accuracy with the strongest point within it, or None.

    Args:
        cell: see ``Costs``.
        losses: shares of accuracy that may be lost, such as 0.01 for one point.
        weakest: the weakest strength to consider.
        strongest: the strongest.
        store: stores trained networks.
        device: where to compute.
    """
    costs = Costs(cell, store, device)
    for loss in losses:
        yield loss, costs.strongest(loss, weakest, strongest)
