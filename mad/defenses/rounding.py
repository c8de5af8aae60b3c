"""Rounded probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad.defenses.base import Defense
from mad.errors import check_number


@dataclass
class Rounding(Defense):
    """Round every probability to some decimals and rescale to sum to one.

    The published code does not rescale. Classes may tie once they are rounded. A row too flat to keep anything is all
    zeros there; here it is the uniform posterior, which says as little.

    Args:
        epsilon: L1 budget in [0, 2]; None, as published, for none.
        decimals: how many are kept, 1 to 7; fewer is stronger (``argmax`` is the defense for none).
    """

    name = "rounding"
    strength_parameter = "decimals"
    epsilon: float | None = None
    decimals: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("defense.decimals", self.decimals, 1, 7, whole=True)

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return posteriors in few different values."""
        rounded = clean.round(decimals=self.decimals)
        total = rounded.sum(dim=1, keepdim=True)
        return torch.where(total > 0, rounded / total, 1 / clean.shape[1])
