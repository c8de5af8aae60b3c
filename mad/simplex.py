"""Geometry of posteriors: pure functions on tensors (B, K)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROUNDING = 5e-6  # how far a row's sum may be from 1, and a distance above epsilon, without repair
ROUNDED = 0.01  # how far the sum of a row may be from 1 whose numbers were rounded for sending or writing
FAR = 0.1  # how far the sum of such a row may be from 1 at most: what is further off was cut, not rounded
DECIMALS = (2, 3, 4)  # in which rows may be written whose sum is further off
FLOAT = 1e-6  # how far float32 may be from such a decimal
TOLERANCE = 1e-4  # how far the sum of a float32 softmax over a thousand classes may be from 1


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Return the L1 distance of each row, (B,), in [0, 2] for posteriors."""
    return (a - b).abs_().sum(dim=1)


def entropy_in_bits(rows: Tensor) -> Tensor:
    """Return the entropy of each row of probabilities (..., K), in [0, log2 K] bits."""
    return torch.special.entr(rows.double()).sum(dim=-1) / math.log(2)


def are_posteriors(rows: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Return whether every row (B, K) is finite, non-negative and sums to one, within a tolerance."""
    if not len(rows):
        return True
    least, most = (bound.item() for bound in torch.aminmax(rows.sum(dim=1)))
    return bool(rows.amin().item() >= 0 and least >= 1 - tolerance and most <= 1 + tolerance)  # NaN compares false


def nearly_one(rows: Tensor) -> Tensor:
    """Return whether each row (B, K) of numbers that are not negative sums to one but for rounding, (B,).

    A sum may be off by ``ROUNDED``. That of a row which is written in two decimals (or in three or four) may be off by
    what rounding to these can cause: half of the last decimal for each of the K numbers, 0.05 for ten classes; never
    by more than ``FAR``.
    """
    rows = rows.double()
    sums = rows.sum(dim=1)
    near = (sums - 1).abs() <= ROUNDED
    for decimals in DECIMALS:
        step = 10.0**-decimals
        written = ((rows / step).round() * step - rows).abs().amax(dim=1) <= FLOAT
        half = step / 2 + FLOAT
        # What was rounded may have been more by that, or less where it is not 0: then it may have summed to one.
        close = (sums - 1).abs() <= FAR + FLOAT * rows.shape[1]
        near |= written & close & (sums - half * (rows > 0).sum(dim=1) <= 1) & (sums + half * rows.shape[1] >= 1)
    return near


def rescaled(rows: Tensor) -> Tensor | None:
    """Return rows (B, K) that sum to one as posteriors do; rounded ones, see ``nearly_one``, are rescaled.

    None if a row is not finite, has a negative entry, or is further off.
    """
    if are_posteriors(rows):
        return rows
    rounded = are_posteriors(rows, ROUNDED) or bool((rows >= 0).all() and nearly_one(rows).all())
    return rows / rows.sum(dim=1, keepdim=True) if rounded else None


def common_sum(rows: Tensor) -> float | None:
    """Return what rows (B, K) without a negative number all sum to, such as 100 for percent; None if they do not.

    Percent may be rounded as ``nearly_one`` says of posteriors; any other sum holds within ``TOLERANCE`` of itself.
    """
    if not len(rows) or not bool((rows >= 0).all() and rows.isfinite().all()):
        return None
    sums = rows.double().sum(dim=1)
    if bool(nearly_one(rows.double() / 100).all()):
        return 100.0
    middle = sums.mean().item()
    return middle if middle > 0 and bool(((sums / middle - 1).abs() <= TOLERANCE).all()) else None


def repair(rows: Tensor, clean: Tensor) -> tuple[Tensor, int]:
    """Bring every row onto the simplex: set negative entries to 0 and rescale.

    A row that is not finite or has no positive entry is replaced by the row of ``clean``.

    Returns:
        The rows (B, K), and how many were replaced.
    """
    if are_posteriors(rows, ROUNDING):  # the usual case
        return rows, 0
    mass = rows.clamp(min=0)
    total = mass.sum(dim=1, keepdim=True)
    whole = torch.isfinite(rows).all(dim=1, keepdim=True) & (total > 0) & total.isfinite()
    # By row: what is done to one must not depend on the others of its batch.
    fine = (rows >= 0).all(dim=1, keepdim=True) & ((rows.sum(dim=1, keepdim=True) - 1).abs() <= ROUNDING)
    return torch.where(fine, rows, torch.where(whole, mass / total, clean)), int((~whole).sum())


def shrink(rows: Tensor, clean: Tensor, epsilon: float, slack: float = ROUNDING / 10) -> Tensor:
    """Move each row along a straight line toward ``clean`` until their L1 distance is at most ``epsilon``.

    A row that is further by no more than ``slack`` stays. Points between two posteriors are posteriors, so the result
    also stays on the simplex.
    """
    distance = l1(rows, clean)
    if not len(rows) or distance.amax().item() <= epsilon + slack:
        return rows
    step = (epsilon / distance.clamp(min=1e-12)).unsqueeze(1)
    near = (distance <= epsilon + slack).unsqueeze(1)  # by row, as in ``repair``
    return torch.where(near, rows, torch.lerp(clean, rows, step.clamp(max=1)))
