"""Linear programs over the allowed answers with the constraint that the top class stays on top, for few classes.

Once the level h of the top class is fixed, mass goes from the costly classes to the cheap ones, none above h. The
lowest cost is convex in h and linear between levels at which a class is just filled or just emptied. Those levels are
tried all at once; around the best of them, finer ones are tried, because not all of the kinks are among them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mad.solvers.problem import Problem, level_above

MOST = 16  # classes; with more, a search over h that needs less memory is faster
FINER = 16  # levels tried between the neighbors of the best one, in each of ROUNDS
ROUNDS = 3
SAME = 1e-7  # levels that differ by less are equal


def lowest_with_top(problem: Problem, cost: Tensor) -> Tensor:
    """Return an allowed point with the lowest <cost, q>, (B, K)."""
    assert problem.top is not None
    place, tau = problem.top.unsqueeze(1), problem.tau.unsqueeze(1)
    rank = cost.scatter(1, place, torch.inf).argsort(dim=1)  # the top class comes last
    y, cost = problem.y.gather(1, rank), cost.gather(1, rank)
    peak, others = y[:, -1:], y[:, :-1]
    program = Program(others, peak, cost, tau)
    below, above = others.cumsum(dim=1), others.flip(1).cumsum(dim=1)
    count = torch.arange(1, others.shape[1] + 1, dtype=y.dtype, device=y.device)
    levels = [
        peak,
        peak + tau,
        others,
        (tau + peak + below) / (count + 1),  # the cheapest classes and the top class take tau
        (tau + below) / count,  # or without the top class
        peak - tau + above,  # the top class and the most costly ones give tau
        (1 / (count + 1)).expand_as(others),  # the cheapest ones have all mass
    ]
    least = level_above(y, tau).clamp(min=1 / y.shape[1])  # all that is above it falls to it
    level = torch.minimum(torch.maximum(torch.cat(levels, dim=1), least), (peak + tau).clamp(max=1)).sort(dim=1).values
    share = torch.linspace(0, 1, FINER // 2, dtype=y.dtype, device=y.device)
    for _ in range(ROUNDS):
        low, middle, high, kink = around(level, program.value(level))
        level = torch.cat([torch.lerp(low, middle, share), torch.lerp(middle, high, share), kink], dim=1)
        level = level.sort(dim=1).values
    level = torch.cat(around(level, program.value(level)), dim=1)
    level = level.gather(1, program.value(level).argmin(dim=1, keepdim=True))
    q = torch.cat([program.others(level).squeeze(1), level], dim=1)
    return problem.feasible(torch.zeros_like(q).scatter(1, rank, q))


def around(level: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the best of rising levels (n, H), between its neighbors, and where the lines beside it meet; (n, 1) each.

    That is the lowest point of a convex function (n, H) that is linear on both sides of it.
    """
    best = value.argmin(dim=1, keepdim=True)
    m = level.gather(1, best)
    points: list[Tensor] = []
    values: list[Tensor] = []
    for side in (-1, 1):
        start = m
        for _ in range(2):  # the next level, past equal ones; the last one's next is itself
            past = side * (level - start) > SAME
            nearest = torch.where(past, side * level, torch.inf).argmin(dim=1, keepdim=True)
            at = torch.where(past.any(dim=1, keepdim=True), nearest, best if start is m else points[-1])
            points.append(at)
            values.append(value.gather(1, at))
            start = level.gather(1, at)
    b, a, c, d = (level.gather(1, at) for at in points)
    g, f, v, w = values
    left = torch.where(b > a, (g - f) / (b - a).clamp(min=1e-12), 0.0)
    right = torch.where(d > c, (w - v) / (d - c).clamp(min=1e-12), 0.0)
    meet = b + (v - g - right * (c - b)) / (left - right).clamp(max=-1e-12)
    meet = torch.where(meet.isfinite(), meet, m)
    return b, m, c, torch.minimum(torch.maximum(meet, b), c)


class Program:
    """The linear program at given levels.

    Args:
        y: what the classes but the top class hold, by rising cost, (n, m).
        peak: what the top class holds, (n, 1).
        cost: of all classes, the top class last, (n, m + 1).
        tau: the most mass that may move, (n, 1).
    """

    def __init__(self, y: Tensor, peak: Tensor, cost: Tensor, tau: Tensor) -> None:
        self.y, self.peak, self.cost, self.tau = y.unsqueeze(1), peak, cost, tau

    def others(self, level: Tensor) -> Tensor:
        """Return what the other classes hold at best, (n, H, m), for levels (n, H); NaN where a level is impossible."""
        h = level.unsqueeze(2)
        forced = (self.y - h).clamp(min=0)
        kept = self.y - forced
        room = h - kept
        must_rise, must_fall = (level - self.peak).clamp(min=0), (self.peak - level).clamp(min=0) + forced.sum(dim=2)
        up, down = room.masked_fill(forced > 0, 0.0).cumsum(dim=2), kept.flip(2).cumsum(dim=2)
        # Mass goes up to the first j classes and comes from the others, for the j with which most can move.
        none = torch.zeros_like(h)
        rises = must_rise.unsqueeze(2) + torch.cat([none, up], dim=2)
        falls = must_fall.unsqueeze(2) + torch.cat([none, down], dim=2).flip(2)
        mass = torch.minimum(torch.minimum(rises, falls).amax(dim=2), self.tau)
        least = torch.maximum(must_rise, must_fall)
        mass = torch.where(mass < least - 1e-6, torch.nan, torch.maximum(mass, least))
        room = room.masked_fill(forced > 0, 0.0)
        given = torch.minimum(((mass - must_rise).unsqueeze(2) - up + room).clamp(min=0), room)
        taken = ((mass - must_fall).unsqueeze(2) - down + kept.flip(2)).clamp(min=0)
        return kept + given - torch.minimum(taken, kept.flip(2)).flip(2)

    def value(self, level: Tensor) -> Tensor:
        """Return the lowest cost at each level (n, H); infinite where it is impossible."""
        cost = (self.others(level) @ self.cost[:, :-1].unsqueeze(2)).squeeze(2) + self.cost[:, -1:] * level
        return torch.where(cost.isnan(), torch.inf, cost)
