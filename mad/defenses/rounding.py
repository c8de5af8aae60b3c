"""A defense that rounds probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad.defenses.base import Defense
from mad.errors import check_number


@dataclass
class Rounding(Defense):
    """Round every probability to some decimals and rescale to sum to one.

    The published code does not rescale. Rounding may make classes tie. A row in which every probability rounds to zero
    becomes the uniform posterior, where the published code answers with zeros.

    Args:
        epsilon: L1 budget in [0, 2]; None, as published, for no budget.
        decimals: number of decimals, 1 to 7; fewer is stronger (for no decimals, use the defense ``argmax``).
    """

    name = "rounding"
    strength_parameter = "decimals"
    epsilon: float | None = None
    decimals: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("defense.decimals", self.decimals, 1, 7, whole=True)

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return rounded posteriors (B, K), rescaled to sum to one."""
        rounded = clean.round(decimals=self.decimals)
        total = rounded.sum(dim=1, keepdim=True)
        return torch.where(total > 0, rounded / total, 1 / clean.shape[1])
