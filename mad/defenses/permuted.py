"""The victim's classes under other names: a defense that is trivially undone, to test a panel of adversaries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad.defenses.base import Context, Defense
from mad.seeds import generator


@dataclass
class Permuted(Defense):
    """Answer with the clean probabilities, each under the name of another class, always the same one.

    It is of no use to honest users, and none against an adversary who can name the classes of a few images: a panel
    of adversaries must steal nearly all of what it steals undefended. The secret order is one cycle through all
    classes, so none keeps its name.

    Args:
        epsilon: L1 budget in [0, 2]; None for no budget.
    """

    name = "permuted"
    epsilon: float | None = None

    def prepare(self, context: Context) -> None:
        """Draw the secret order of the classes."""
        classes = context.victim.dataset.classes
        order = torch.randperm(classes, generator=generator(context.seed, "order of the classes"))
        self._source = torch.empty_like(order).scatter_(0, order, order.roll(1))

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return the clean posteriors (B, K) with their classes exchanged."""
        return clean[:, self._source.to(clean.device)]
