"""Truncation to the most likely classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad.defenses.base import Defense
from mad.errors import check_number


@dataclass
class TopK(Defense):
    """Keep the k largest probabilities and rescale them to sum to one.

    The published code leaves the sum below one; honest users take answers for posteriors, so these are.

    Args:
        epsilon: L1 budget in [0, 2]; None, as published, for none.
        k: how many classes are shown, at least 1; fewer is stronger, and all of them changes nothing.
    """

    name = "top_k"
    strength_parameter = "k"
    epsilon: float | None = None
    k: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("defense.k", self.k, 1, whole=True)

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return posteriors with at most k classes; of equal ones, those that come first stay."""
        kept = clean.argsort(dim=1, descending=True, stable=True)[:, : self.k]
        answer = torch.zeros_like(clean).scatter(1, kept, clean.gather(1, kept))
        return answer / answer.sum(dim=1, keepdim=True)
