"""Train on the answers that the API is sure of, or on those that it is not."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mad.errors import check_choice
from mad.knowledge import Knowledge
from mad.recoveries.base import Recovery
from mad.transfer import TransferSet

SIDES = ("above", "below")


@dataclass
class Confident(Recovery):
    """Keep the answers, as they came, whose largest probability is above the median of all; drop the others.

    A defense that perturbs what looks unlike its own data leaves sure answers alone. One that flattens those that it
    perturbs leaves a mark, too: a low largest probability.

    Args:
        side: ``above`` the median, or ``below`` it, for a defense that leaves the unsure answers alone. Answers at the
            median are kept either way, so that something is left where all are equally sure.
    """

    name = "confident"
    side: str = "above"

    def __post_init__(self) -> None:
        check_choice("recovery.side", self.side, SIDES)

    def prepare(self, adversary: Knowledge, transfer: TransferSet) -> None:
        """Take the median over the transfer set."""
        self._median = transfer.answers.amax(dim=1).median().item()

    def keeps(self, answers: Tensor, images: Tensor | None = None) -> Tensor:
        """Return which answers are on this side of the median, bool (B,)."""
        top = answers.amax(dim=1)
        return top >= self._median if self.side == "above" else top <= self._median

    def __call__(self, answers: Tensor, images: Tensor | None = None) -> Tensor:
        """Return the answers unchanged."""
        return answers
