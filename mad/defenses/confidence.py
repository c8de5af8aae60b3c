"""A defense that answers with the top class and its probability only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad.defenses.base import Defense


@dataclass
class Confidence(Defense):
    """Keep the largest probability, and spread the rest equally over the other classes.

    It tells as much as an API that returns a label with its confidence: the answer is the posterior of largest entropy
    that agrees with both. ``argmax``, and ``top_k`` with k = 1, which rescales, hide the confidence, too.

    Args:
        epsilon: L1 budget in [0, 2]; None for no budget.
    """

    name = "confidence"
    epsilon: float | None = None

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return posteriors (B, K) with two distinct probabilities at most, and the clean top classes."""
        most, top = clean.max(dim=1, keepdim=True)
        # Of a nearly uniform row, rounding may put the others above the top.
        others = ((clean.sum(dim=1, keepdim=True) - most) / (clean.shape[1] - 1)).minimum(most)
        answer = others.expand_as(clean).scatter(1, top, most)
        return torch.where(answer.argmax(dim=1, keepdim=True) == top, answer, clean)
