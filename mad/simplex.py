"""Geometry of posteriors: pure functions on tensors of shape (B, K)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROUNDING = 5e-6  # how far from 1 a row may sum, and a distance pass epsilon, before it is worth a pass to mend
TOLERANCE = 1e-4  # how far from 1 a float32 softmax over a thousand classes may sum


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Return the L1 distance of each row, (B,), in [0, 2] for posteriors."""
    return (a - b).abs_().sum(dim=1)


def entropy_in_bits(rows: Tensor) -> Tensor:
    """Return the entropy of each row of probabilities (..., K), in [0, log2 K] bits."""
    return torch.special.entr(rows.double()).sum(dim=-1) / math.log(2)


def are_posteriors(rows: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Tell whether every row (B, K) is finite, non-negative and sums to one."""
    if not len(rows):
        return True
    least, most = torch.aminmax(rows.sum(dim=1))
    return bool(rows.amin() >= 0 and least >= 1 - tolerance and most <= 1 + tolerance)  # NaN compares false


def repair(rows: Tensor, clean: Tensor) -> tuple[Tensor, int]:
    """Bring every row onto the simplex: drop negative mass, rescale; rows that cannot be saved become ``clean``.

    Returns:
        The rows, and how many could not be saved.
    """
    if are_posteriors(rows, ROUNDING):  # the rule: nothing to do
        return rows, 0
    mass = rows.clamp(min=0)
    total = mass.sum(dim=1, keepdim=True)
    saved = mass / total
    whole = torch.isfinite(rows).all(dim=1, keepdim=True) & (total > 0) & total.isfinite()
    return torch.where(whole, saved, clean), int((~whole).sum())


def shrink(rows: Tensor, clean: Tensor, epsilon: float) -> Tensor:
    """Move each row straight back toward ``clean`` until it lies within ``epsilon`` of it in L1.

    The segment between two posteriors stays on the simplex, so both promises hold at once.
    """
    distance = l1(rows, clean)
    if not len(rows) or distance.amax() <= epsilon + ROUNDING / 10:
        return rows
    step = (epsilon / distance.clamp(min=1e-12)).clamp(max=1).unsqueeze(1)
    return torch.lerp(clean, rows, step)
