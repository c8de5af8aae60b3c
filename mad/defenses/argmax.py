"""The API as labels only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad.defenses.base import Defense


@dataclass
class Argmax(Defense):
    """Answer with the top class, one-hot: ``top_k`` with k = 1, the most that truncation can do.

    Args:
        epsilon: L1 budget in [0, 2]: how far to go toward the label; None for all the way.
    """

    name = "argmax"
    epsilon: float | None = None

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return one-hot posteriors."""
        return torch.zeros_like(clean).scatter(1, clean.argmax(dim=1, keepdim=True), 1.0)
