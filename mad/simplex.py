"""Geometry of posteriors: pure functions on tensors of shape (B, K)."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-4  # how far from 1 a float32 softmax over a thousand classes may sum


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Return the L1 distance of each row, (B,), in [0, 2] for posteriors."""
    return (a - b).abs().sum(dim=1)


def is_posterior(rows: Tensor) -> Tensor:
    """Tell, for each row, whether it is finite, non-negative and sums to one; bool (B,)."""
    return (rows.amin(dim=1) >= 0) & ((rows.sum(dim=1) - 1).abs() <= TOLERANCE)  # NaN compares false


def repair(rows: Tensor, clean: Tensor) -> Tensor:
    """Bring every row onto the simplex: drop negative mass, rescale; rows that cannot be saved become ``clean``."""
    mass = rows.clamp(min=0)
    total = mass.sum(dim=1, keepdim=True)
    saved = mass / total
    return torch.where(torch.isfinite(rows).all(dim=1, keepdim=True) & (total > 0) & total.isfinite(), saved, clean)


def shrink(rows: Tensor, clean: Tensor, epsilon: float) -> Tensor:
    """Move each row straight back toward ``clean`` until it lies within ``epsilon`` of it in L1.

    The segment between two posteriors stays on the simplex, so both promises hold at once.
    """
    step = (epsilon / l1(rows, clean).clamp(min=1e-12)).clamp(max=1).unsqueeze(1)
    return torch.lerp(clean, rows, step)
