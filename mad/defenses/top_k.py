"""A defense that truncates answers to the most likely classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad.defenses.base import Defense
from mad.errors import check_number


@dataclass
class TopK(Defense):
    """Keep the k largest probabilities and rescale them to sum to one.

    The published code does not rescale. Here answers stay posteriors, as honest users expect.

    Args:
        epsilon: L1 budget in [0, 2]; None, as published, for no budget.
        k: number of classes that are kept, at least 1; fewer is stronger, and K or more changes nothing.
    """

    name = "top_k"
    strength_parameter = "k"
    epsilon: float | None = None
    k: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("defense.k", self.k, 1, whole=True)

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return posteriors (B, K) with at most k classes; of equal probabilities, the first classes are kept."""
        kept = clean.argsort(dim=1, descending=True, stable=True)[:, : self.k]
        answer = torch.zeros_like(clean).scatter(1, kept, clean.gather(1, kept))
        return answer / answer.sum(dim=1, keepdim=True)
