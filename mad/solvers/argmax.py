"""The published search for MAD-argmax: corners of the part of the simplex where the top class stays on top.

A corner is uniform over a set of classes that contains the top class. Up to ten classes all 2^(K-1) sets are tried. For
more classes a set grows greedily, one class per step, until TRIALS candidates have been tried or no class is left.

For more than ten classes, the published code and ``as_published`` neither try nor count the set of the top class only,
which is sometimes the best. With 11 to 45 classes the published code crashes, because no class is left before TRIALS.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mad.solvers.metric import TINY, cosine, dot, times
from mad.solvers.vertex import NO_DIRECTION

ENUMERATED = 10  # most classes for which every set is tried
TRIALS = 1024
SAME = 1e-4  # difference of two cosines, times ||u||, that may be rounding
TIE = 1e-5  # how far the top class is above the others of its set, before normalization


def argmax_vertex(
    y: Tensor, p: Tensor, epsilon: float, theta: Tensor | None = None, *, as_published: bool = False
) -> Tensor:
    """Mix y with the best corner that keeps its top class, as far as the L1 budget allows; return (B, K).

    Args:
        y: clean posteriors (B, K).
        p: the surrogate's posteriors (B, K).
        epsilon: L1 budget in [0, 2].
        theta: inner products of the surrogate's gradients (B, K, K); None for its last linear layer.
        as_published: for more than ten classes, search exactly as the published code does.
    """
    corner = enumerate_sets(y, p, theta) if y.shape[1] <= ENUMERATED else grow_sets(y, p, theta, as_published)
    step = (epsilon / (corner - y).abs().sum(dim=1, keepdim=True).clamp(min=TINY)).clamp(max=1)
    return torch.lerp(y, corner, step)


def direction(y: Tensor, p: Tensor) -> Tensor:
    """Return u = y - p, (B, K), or zeros if its direction would be only rounding error."""
    u = y - p
    return torch.where(u.norm(dim=1, keepdim=True) > NO_DIRECTION, u, 0.0)


def enumerate_sets(y: Tensor, p: Tensor, theta: Tensor | None) -> Tensor:
    """Return the corner with the largest angle over all sets that contain the top class, (B, K)."""
    classes, top = y.shape[1], y.argmax(dim=1, keepdim=True)
    number = torch.arange(2 ** (classes - 1), device=y.device)
    bits = (number.unsqueeze(1) >> torch.arange(classes - 1, device=y.device) & 1).to(y.dtype)
    others = torch.arange(classes - 1, device=y.device) + (torch.arange(classes - 1, device=y.device) >= top)
    corners = torch.zeros(len(y), len(number), classes, dtype=y.dtype, device=y.device)
    corners.scatter_(2, others.unsqueeze(1).expand(-1, len(number), -1), bits.expand(len(y), -1, -1))
    corners.scatter_(2, top.unsqueeze(1).expand(-1, len(number), 1), 1 + TIE)
    corners /= corners.sum(dim=2, keepdim=True)
    v = corners - p.unsqueeze(1)
    along = times(theta, direction(y, p)).unsqueeze(2)
    square = (v * (v if theta is None else v @ theta)).sum(dim=2).clamp(min=TINY)
    cosines = (v @ along).squeeze(2) / square.sqrt()
    best = cosines.argmin(dim=1)
    if classes == 2:  # all answers lie on one line, so that both cosines may be the same but for rounding
        best = best.masked_fill(cosines[:, 0] <= cosines[:, 1] + SAME * along.squeeze(2).norm(dim=1), 0)
    return corners[torch.arange(len(y), device=y.device), best]


def grow_sets(y: Tensor, p: Tensor, theta: Tensor | None, as_published: bool = False) -> Tensor:
    """Return the best corner, (B, K), of sets that grow each time by the class that widens the angle most."""
    classes, place = y.shape[1], y.argmax(dim=1, keepdim=True)
    u = direction(y, p)
    along, toward = times(theta, u), times(theta, p)
    own = torch.ones_like(y) if theta is None else theta.diagonal(dim1=1, dim2=2)
    level, square_p = dot(p, along).unsqueeze(1), dot(p, toward).unsqueeze(1)
    chosen = torch.zeros_like(y).scatter_(1, place, 1 + TIE)
    best = chosen / (1 + TIE)
    lowest, tried = cosine(best - p, u, theta).unsqueeze(1), 1
    if as_published:
        lowest, tried = torch.full_like(lowest, torch.inf), 0
    for size in range(2, classes + 1):
        if tried >= TRIALS:
            break
        tried += classes + 1 - size
        mass, bent = size + TIE, times(theta, chosen)
        square = dot(chosen, bent).unsqueeze(1) + 2 * bent + own  # of the unnormalized corner with one more class
        n = (dot(chosen, along).unsqueeze(1) + along) / mass - level
        reach = (dot(chosen, toward).unsqueeze(1) + toward) / mass
        length = (square / mass**2 - 2 * reach + square_p).clamp(min=TINY).sqrt()
        angle = n / (length * dot(u, along).clamp(min=TINY).sqrt().unsqueeze(1))
        value, added = torch.where(chosen > 0, torch.inf, angle).min(dim=1, keepdim=True)
        chosen = chosen.scatter(1, added, 1.0)
        best = torch.where(value < lowest, chosen / mass, best)
        lowest = torch.minimum(lowest, value)
    return best
