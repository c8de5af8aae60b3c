"""Branch and bound with the constraint that the top class stays on top; several classes may then receive mass.

A box bounds the mass that each class receives and gives, and so the level (probability) of the top class, which all
other classes must stay below.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mad.solvers.metric import dot, times
from mad.solvers.problem import Box, Problem, assigned, fill
from mad.solvers.search import APEX, SLOP, SLOPES, Cut, Search, next_slope

HOPS = 4  # linear programs that lead from the start to a local optimum


class Levels(NamedTuple):
    """Boxes (n, K) of the rows (n,)."""

    row: Tensor
    slope: Tensor
    box: Box

    def rows(self, index: Tensor | slice) -> Levels:
        """Return some of the boxes."""
        return Levels(self.row[index], self.slope[index], Box(*(side[index] for side in self.box)))


class TopStays(Search[Levels]):
    """The search; see ``search`` for the bound. With ``theta``, or many classes, it ends at the limit for some rows."""

    @property
    def limit(self) -> int:  # type: ignore[override]
        """With ``theta`` many boxes are needed before the best answer is found at all."""
        return 500 if self.problem.theta is None else 10_000

    def roots(self) -> Levels:
        """Return one box per row, the whole ball; first improve the best points by moves between extreme points."""
        problem, row = self.problem, torch.arange(len(self.problem.y), device=self.problem.y.device)
        for _ in range(HOPS):
            slope = self.slope.unsqueeze(1)
            self.keep(row, problem.lowest(self.along - slope * times(problem.theta, self.best - problem.p)))
        return Levels(row, self.slope, Box.of(problem.y, problem.tau))

    def bound(self, boxes: Levels) -> tuple[Tensor, Levels, Cut, Cut]:
        """Bound each box by fillings in which no class exceeds the highest level of the top class."""
        row, problem = boxes.row, self.problem.rows(boxes.row)
        box = narrowed(boxes.box.below(problem, *levels(problem, boxes.box)), problem.tau)
        along, weight, square = self.along[row], self.weight[row], self.square[row]
        up_middle, down_middle = (box.up_low + box.up_high) / 2, (box.down_low + box.down_high) / 2
        middle = up_middle - down_middle
        bent = times(problem.theta, middle)
        # z = up - down; z^T Theta z <= m^T Theta m + 2 m^T Theta (z - m) + sum weight (z - m)^2, squares by chords.
        rise = 2 * (along + bent + weight * down_middle)
        fall = 2 * (weight * up_middle - along - bent)
        chords = box.up_low * box.up_high + box.down_low * box.down_high
        constant = square - dot(middle, bent) + dot(weight, middle**2 - chords)

        empty = ((box.up_low > box.up_high + SLOP) | (box.down_low > box.down_high + SLOP)).any(dim=1)
        best, slope = torch.where(empty, torch.inf, torch.full_like(square, -torch.inf)), boxes.slope
        cuts: tuple[Cut, Cut] | None = None
        for _ in range(SLOPES):
            k = slope.unsqueeze(1)
            moved = fill(k * rise - 2 * along, k * fall + 2 * along, box, problem.tau)
            n = square + dot(along, moved.up - moved.down)
            over = constant + dot(rise, moved.up) + dot(fall, moved.down)
            value = torch.where(moved.possible, 2 * slope * n - slope**2 * over, torch.inf)
            best = torch.maximum(best, value)
            allowed = (moved.possible & ~empty).nonzero().squeeze(1)
            q = (problem.y + moved.up - moved.down)[allowed]
            self.keep(row[allowed], problem.rows(allowed).feasible(q))
            cut, below = Cut(n, over, moved.up, moved.down), n > slope * over
            cuts = (cut, cut) if cuts is None else (cut.where(below, cuts[0]), cut.where(~below, cuts[1]))
            slope = next_slope(*cuts)
        assert cuts is not None
        return best, Levels(row, slope, box), *cuts

    def cut(self, boxes: Levels, bound: Tensor, low: Cut, high: Cut) -> tuple[Levels, Tensor]:
        """Cut each box where its bound is loosest: at an amount, between giving and receiving, or at the top level."""
        problem, box, weight = self.problem.rows(boxes.row), boxes.box, self.weight[boxes.row].repeat(1, 2)
        classes = problem.y.shape[1]
        up, down = (low.up + high.up) / 2, (low.down + high.down) / 2
        at = torch.cat([up, down], dim=1)
        lows = torch.cat([box.up_low, box.down_low], dim=1)
        highs = torch.cat([box.up_high, box.down_high], dim=1)
        slack = weight * (at - lows) * (highs - at)
        if problem.theta is not None:  # the weight is itself an overestimate, which only smaller boxes mend
            slack = slack + weight * (highs - lows) ** 2 / 8
        loose, place = slack.max(dim=1, keepdim=True)
        point = at.gather(1, place)
        a, b = lows.gather(1, place), highs.gather(1, place)
        point = torch.minimum(torch.maximum(point, a + 0.1 * (b - a)), b - 0.1 * (b - a))
        # If a class both gives and receives in the filling: one half forbids giving, the other receiving.
        clash, meet = (2 * weight[:, :classes] * up * down).max(dim=1, keepdim=True)
        split = clash > loose
        # If another class is above the top class: cut at the level between the two.
        top, q = assigned(problem.top).unsqueeze(1), problem.y + up - down
        above = q.amax(dim=1, keepdim=True) - q.gather(1, top)
        level = q.gather(1, top) + above / 2 - problem.y.gather(1, top)
        wrong = above > torch.maximum(clash, loose)
        coordinate = torch.where(level > 0, top, top + classes)
        place, point = torch.where(wrong, coordinate, place), torch.where(wrong, level.abs(), point)
        split &= ~wrong

        near_high = torch.where(split, highs.scatter(1, meet, 0.0), highs.scatter(1, place, point))
        far_high = torch.where(split, highs.scatter(1, meet + classes, 0.0), highs)
        far_low = torch.where(split, lows, lows.scatter(1, place, point))
        # A class that must move on one side does not move on the other.
        apart = far_low.gather(1, place) > 0
        partner = (place + classes) % (2 * classes)
        far_high = torch.where(apart & ~split, far_high.scatter(1, partner, 0.0), far_high)
        open_ = ((loose > APEX) | split | (wrong & (above > SLOP))).squeeze(1)
        low_pair, high_pair = (lows[open_], far_low[open_]), (near_high[open_], far_high[open_])
        (up_low, down_low), (up_high, down_high) = (torch.cat(pair).chunk(2, dim=1) for pair in (low_pair, high_pair))
        halves = Box(up_low, up_high, down_low, down_high)
        return Levels(boxes.row[open_].repeat(2), boxes.slope[open_].repeat(2), halves), open_


def levels(problem: Problem, box: Box) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest level of the top class in each box, (n, 1) each."""
    place = assigned(problem.top).unsqueeze(1)
    peak, up_low, up_high, down_low, down_high = (side.gather(1, place) for side in (problem.y, *box))
    return peak + up_low - down_high, peak + up_high - down_low


def narrowed(box: Box, tau: Tensor) -> Box:
    """Lower each upper bound to the mass that the lower bounds of the other classes leave."""
    spare_up = (tau - box.up_low.sum(dim=1)).clamp(min=0).unsqueeze(1)
    spare_down = (tau - box.down_low.sum(dim=1)).clamp(min=0).unsqueeze(1)
    return Box(
        box.up_low,
        torch.minimum(box.up_high, box.up_low + spare_up),
        box.down_low,
        torch.minimum(box.down_high, box.down_low + spare_down),
    )
