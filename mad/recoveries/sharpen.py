"""Sharpened answers: each one raised to a power."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad.errors import check_number
from mad.recoveries.base import Recovery


@dataclass
class Sharpen(Recovery):
    """Raise each answer to a power, and rescale it: a temperature below 1. It undoes what only flattens answers.

    Args:
        power: above 0; 1 leaves answers as they are, and below 1 they get flatter. It is the inverse of a temperature.
    """

    name = "sharpen"
    power: float = 2.0

    def __post_init__(self) -> None:
        check_number("recovery.power", self.power, 1e-3, 1e3)

    def __call__(self, answers: Tensor, images: Tensor | None = None) -> Tensor:
        """Return targets (B, K), proportional to ``answers`` to the power; the order of the classes is kept."""
        # On logarithms, so that no power underflows to a row of zeros; log 0 is -inf, whose softmax is 0 again.
        return torch.softmax(self.power * answers.double().log(), dim=1).to(answers.dtype)
