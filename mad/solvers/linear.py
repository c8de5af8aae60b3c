"""The global maximum of a linear objective <scores, q> over the simplex and the L1 ball: a greedy transport of mass."""

from __future__ import annotations

import torch
from torch import Tensor

from mad.solvers.problem import poured


def linear(y: Tensor, scores: Tensor, epsilon: float) -> Tensor:
    """Return the posteriors (B, K) with the highest <scores, q> among those within L1 ``epsilon`` of y.

    epsilon / 2 of mass is taken from the classes with the lowest scores, from each at most what it holds, and all of it
    is given to the class with the highest score. One sort a row; of equal scores, the class with the lower number
    counts as lower.

    Args:
        y: clean posteriors (B, K).
        scores: what a unit of mass on each class is worth, (B, K).
        epsilon: L1 budget in [0, 2].
    """
    rank = scores.argsort(dim=1, stable=True)
    mass = torch.full_like(y[:, :1], epsilon / 2)
    # The best class comes last: where all others hold less than the mass, the rest moves from it to itself.
    given = poured(mass, y.gather(1, rank))
    moved = y.scatter_add(1, rank, -given).scatter_add(1, rank[:, -1:], given.sum(dim=1, keepdim=True))
    return moved.clamp_(min=0)
