"""A defense that answers with labels only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad.defenses.base import Defense


@dataclass
class Argmax(Defense):
    """Answer with the top class, one-hot. The same as ``top_k`` with k = 1, the strongest truncation.

    Args:
        epsilon: L1 budget in [0, 2], which limits how far answers move toward the label; None for no limit.
    """

    name = "argmax"
    epsilon: float | None = None

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return one-hot posteriors."""
        return torch.zeros_like(clean).scatter(1, clean.argmax(dim=1, keepdim=True), 1.0)
