"""Branch and bound for the acute case: find the extreme point with the largest angle, and prove that it is.

Let q = y + a - t, with a the mass given to each class and t the mass taken from it. N = <q - p, u> is linear in
(a, t); D^2 = ||q - p||^2 is convex. On a box of (a, t) each square lies below the chord between its ends, so D^2 <= U
with U linear. Since (N - k U)^2 >= 0,

    N^2 / D^2  >=  N^2 / U  >=  2 k N - k^2 U        for every k >= 0,

whose lowest value over the box and the budget is a greedy filling. The chord is exact at the ends of the box, and a
filling leaves at most one receiver and one donor between their ends. The bound is tight except for these, and cutting
the box there makes it tight. A box whose bound is not below the best N^2 / D^2 so far is discarded.

``receiver`` searches the simplex and the L1 ball; ``level`` adds the constraint that the top class stays on top.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from mad.solvers.metric import TINY, dot, times
from mad.solvers.problem import Problem

SLOPES = 2  # values of k tried per bound, starting at the best k of the parent box
SETTLED = 1e-3  # relative change of the best k below which a bound is as tight as its box allows
AT_ONCE = 2**20  # most numbers in the tensors of one round
SLOP = 1e-6  # mass that may be lost by rounding
APEX = 1e-8  # a box whose squares are known this well is not cut further: near q = p no bound is relatively tight


class Cut(NamedTuple):
    """A filling of each box, ``up`` and ``down`` (n, K), and the parabola 2 k N - k^2 U that limits the bound.

    N is ``n`` and U is ``over``, (n,) each.
    """

    n: Tensor
    over: Tensor
    up: Tensor
    down: Tensor

    def where(self, mask: Tensor, other: Cut) -> Cut:
        """Return this cut's rows where the mask (n,) is true, and the other's elsewhere."""
        pairs = zip(self, other, strict=True)
        return Cut(*(torch.where(mask.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in pairs))

    def rows(self, index: Tensor) -> Cut:
        """Return some boxes' cuts."""
        return Cut(*(part[index] for part in self))

    @property
    def value(self) -> Tensor:
        """The parabola's highest value N^2 / U, (n,)."""
        return self.n**2 / self.over.clamp(min=TINY)


B = TypeVar("B", bound="Boxes")


class Boxes(Protocol):
    """A batch of boxes, each of one row of the problem."""

    @property
    def row(self) -> Tensor:
        """Which row, int64 (n,)."""

    @property
    def slope(self) -> Tensor:
        """The first k to try, (n,)."""

    def rows(self: B, index: Tensor | slice) -> B:
        """Return some of the boxes."""


class Search(ABC, Generic[B]):
    """The best points found so far, and how to bound and cut the boxes that may hold better ones."""

    limit: ClassVar[int]  # most boxes per row; beyond it, the best point so far is returned without a proof

    def __init__(self, problem: Problem, start: Tensor) -> None:
        self.problem, self.best = problem, start.clone()
        self.along = times(problem.theta, problem.u)
        self.square = dot(problem.u, self.along)
        # diag(weight) - Theta is positive semidefinite: D^2 stays below the chord whatever Theta's other entries.
        self.weight = torch.ones_like(problem.y) if problem.theta is None else problem.theta.abs().sum(dim=2)
        every = torch.arange(len(problem.y), device=problem.y.device)
        self.lowest, self.slope = self.score(every, self.best)
        # relative to ||u||^2, the value at q = y
        self.unproven = torch.zeros_like(self.lowest, dtype=torch.bool)  # rows whose search ended at the limit
        self.tolerance = self.square * (1e-5 if start.dtype == torch.float32 else 1e-8)

    @abstractmethod
    def roots(self) -> B:
        """Return the boxes to begin with."""

    @abstractmethod
    def bound(self, boxes: B) -> tuple[Tensor, B, Cut, Cut]:
        """Return lower bounds of N^2 / D^2, (n,), the boxes without hopeless parts, and the two cuts of the bounds."""

    @abstractmethod
    def cut(self, boxes: B, bound: Tensor, low: Cut, high: Cut) -> tuple[B, Tensor]:
        """Cut each box in two where its bound is loosest; return the halves, and which boxes could be cut."""

    def run(self) -> Tensor:
        """Return the best point of each row, (B, K)."""
        stack = [self.roots()]
        most = max(1, AT_ONCE // self.problem.y.shape[1])
        searched = torch.zeros_like(self.lowest)
        while stack:
            boxes = stack.pop()
            if len(boxes.row) > most:
                stack.append(boxes.rows(slice(most, None)))
                boxes = boxes.rows(slice(most))
            before = boxes.slope
            bound, boxes, low, high = self.bound(boxes)
            searched.index_add_(0, boxes.row, torch.ones_like(bound))
            hopeful = bound < self.target(boxes.row)
            within = searched[boxes.row] < self.limit
            self.unproven[boxes.row[hopeful & ~within]] = True
            open_ = (hopeful & within).nonzero().squeeze(1)
            if not len(open_):
                continue
            unsettled = (boxes.slope - before).abs() > SETTLED * boxes.slope
            boxes, unsettled = boxes.rows(open_), unsettled[open_]
            halves, cut = self.cut(boxes, bound[open_], low.rows(open_), high.rows(open_))
            again = (~cut & unsettled).nonzero().squeeze(1)
            stack += [part for part in (boxes.rows(again), halves) if len(part.row)]
        return self.best

    def target(self, row: Tensor) -> Tensor:
        """Return the value, (n,), that a bound must be below for its box to be searched further."""
        return self.lowest[row] - self.tolerance[row]

    def score(self, row: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return N^2 / D^2 and N / D^2 of points (n, K)."""
        v = q - self.problem.p[row]
        n = dot(v, self.along[row]).clamp(min=0)
        theta = None if self.problem.theta is None else self.problem.theta[row]
        square = dot(v, times(theta, v)).clamp(min=TINY)
        return n * n / square, n / square

    def keep(self, row: Tensor, q: Tensor) -> None:
        """Remember the points (n, K) that are better than their row's best."""
        score, slope = self.score(row, q)
        lowest = self.lowest.scatter_reduce(0, row, score, "amin")
        better = ((score <= lowest[row]) & (score < self.lowest[row])).nonzero().squeeze(1)
        if len(better):
            self.best[row[better]], self.slope[row[better]] = q[better], slope[better]
            self.lowest = lowest


def next_slope(low: Cut, high: Cut) -> Tensor:
    """Return the k where the lower of two parabolas 2 k N - k^2 U is highest, (n,)."""
    first, second = (cut.n / cut.over.clamp(min=TINY) for cut in (low, high))
    apart = low.over - high.over
    cross = 2 * (low.n - high.n) / torch.where(apart.abs() > TINY, apart, 1.0)
    inside = (cross > torch.minimum(first, second)) & (cross < torch.maximum(first, second))
    slope = torch.where(inside & (apart.abs() > TINY), cross, (first + second) / 2)
    slope = torch.where(2 * second * low.n - second**2 * low.over >= second * high.n, second, slope)
    return torch.where(2 * first * high.n - first**2 * high.over >= first * low.n, first, slope).clamp(0, 1e3)
