"""The feasible answers to a batch of queries, and linear programs and projections over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mad.solvers.metric import TINY, dot

ROUNDS = 30
Pulls = tuple[Tensor, Tensor]  # Dykstra's corrections of two sets, (B, K) each


@dataclass(frozen=True)
class Problem:
    """The problem of B queries: minimize cos(q - p, u) over C = {q on the simplex, ||q - y||_1 <= 2 tau, q_j <= q_top}.

    Args:
        y: clean posteriors (B, K).
        p: the surrogate's posteriors (B, K).
        tau: the mass that may move, half the L1 budget, (B,).
        theta: inner products (B, K, K), None for the identity.
        top: the class that must stay on top (B,), or None.
    """

    y: Tensor
    p: Tensor
    tau: Tensor
    theta: Tensor | None = None
    top: Tensor | None = None

    @property
    def u(self) -> Tensor:
        """The clean direction y - p, (B, K)."""
        return self.y - self.p

    def rows(self, index: Tensor) -> Problem:
        """Return the queries of a mask or of indices (n,)."""
        theta, top = (None if part is None else part[index] for part in (self.theta, self.top))
        return Problem(self.y[index], self.p[index], self.tau[index], theta, top)

    def project(self, points: Tensor, pulls: Pulls | None = None) -> tuple[Tensor, Pulls | None]:
        """Return the point of C nearest to each of ``points`` in the Euclidean metric, (B, K).

        With a top class it takes ``ROUNDS`` of Dykstra's alternating projections, onto the ball and onto the wedge of
        points with that class on top. They converge from any ``pulls``; those of a similar call save most rounds.
        """
        if self.top is None:
            return project(points, self.y, self.tau), None
        ball, wedge = pulls or (torch.zeros_like(points), torch.zeros_like(points))
        q = points - ball - wedge
        nearest, ball, wedge = torch.empty_like(points), ball.clone(), wedge.clone()
        part, rows = self, torch.arange(len(points), device=points.device)
        b, w = ball, wedge
        for step in range(ROUNDS):
            inside = project(q + b, part.y, part.tau)
            b = q + b - inside
            lifted = lift_top(inside + w, assigned(part.top))
            w = inside + w - lifted
            moved, q = (lifted - inside).abs().amax(dim=1) >= 1e-6, lifted
            going = moved if step < ROUNDS - 1 else torch.zeros_like(moved)
            if going.all():
                continue
            done = rows[~going]
            nearest[done], ball[done], wedge[done] = inside[~going], b[~going], w[~going]
            if not going.any():
                break
            part, rows, q, b, w = part.rows(going), rows[going], q[going], b[going], w[going]
        inside = nearest
        return self.feasible(inside), (ball, wedge)

    def feasible(self, q: Tensor) -> Tensor:
        """Move points of the ball along a line toward y until the top class is on top, (B, K)."""
        if self.top is None:
            return q
        place = self.top.unsqueeze(1)
        lead, wanted = self.y.gather(1, place) - self.y, q.gather(1, place) - q
        step = torch.where(wanted < 0, lead / (lead - wanted).clamp(min=TINY), 1.0).amin(dim=1, keepdim=True)
        return torch.lerp(self.y, q, step.clamp(0, 1))

    def lowest(self, cost: Tensor) -> Tensor:
        """Return a point of C with the lowest <cost, q>, (B, K)."""
        tau = self.tau.unsqueeze(1)
        if self.top is None:  # all to the cheapest class, from the most costly ones first
            rank = cost.argsort(dim=1, descending=True)
            given = torch.zeros_like(self.y).scatter_(1, rank, poured(tau, self.y.gather(1, rank)))
            return (self.y - given).scatter_add_(1, rank[:, -1:], tau)
        # With the top class held at level h the rest is a linear program; its value is convex in h.
        place = self.top.unsqueeze(1)
        peak = self.y.gather(1, place)
        low, high = (peak - tau).clamp(min=1 / self.y.shape[1]), (peak + tau).clamp(max=1)
        for _ in range(40):
            left, right = torch.lerp(low, high, 1 / 3), torch.lerp(low, high, 2 / 3)
            worse = self._at_level(cost, left)[1] > self._at_level(cost, right)[1]
            low, high = torch.where(worse.unsqueeze(1), left, low), torch.where(worse.unsqueeze(1), high, right)
        return self.feasible(self._at_level(cost, (low + high) / 2)[0])

    def _at_level(self, cost: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return the lowest point whose top class is at ``level`` (B, 1), and its cost; infinite if there is none."""
        box = Box.of(self.y, self.tau).below(self, level, level)
        moved = fill(-cost, cost, box, self.tau)
        q = self.y + moved.up - moved.down
        return q, torch.where(moved.possible, dot(cost, q), torch.inf)


def assigned(top: Tensor | None) -> Tensor:
    """Return the top classes of a problem that has them."""
    assert top is not None
    return top


class Box(NamedTuple):
    """Bounds on the mass given to (up) and taken from (down) each class, all (n, K)."""

    up_low: Tensor
    up_high: Tensor
    down_low: Tensor
    down_high: Tensor

    @classmethod
    def of(cls, y: Tensor, tau: Tensor) -> Box:
        """Return the whole ball's bounds."""
        zero, most = torch.zeros_like(y), tau.unsqueeze(1)
        return cls(zero, torch.minimum(most, 1 - y), zero, torch.minimum(most, y))

    def below(self, problem: Problem, low: Tensor, high: Tensor) -> Box:
        """Return the bounds with the top class between two levels (n, 1), and all classes below the higher level."""
        assert problem.top is not None
        y, place = problem.y, problem.top.unsqueeze(1)
        peak = y.gather(1, place)
        room = (high - y).clamp(min=0)
        excess = (y - high).clamp(min=0)
        up_high, down_low = torch.minimum(self.up_high, room), torch.maximum(self.down_low, excess)
        return Box(
            self.up_low.scatter(1, place, torch.maximum(self.up_low.gather(1, place), low - peak)),
            up_high,
            down_low,
            self.down_high.scatter(1, place, torch.minimum(self.down_high.gather(1, place), (peak - low).clamp(min=0))),
        )


class Moved(NamedTuple):
    """The mass that each class receives and gives, (n, K) each, and whether the bounds are feasible, (n,)."""

    up: Tensor
    down: Tensor
    possible: Tensor


def fill(gain_up: Tensor, gain_down: Tensor, box: Box, tau: Tensor) -> Moved:
    """Maximize <gain_up, up> + <gain_down, down> in the box, with equal mass going up and down, at most tau.

    The greedy solution fills the classes with the largest gains first. The gain of the last unit of the mass M falls as
    M grows, so the best M is where it becomes negative.
    """
    forced_up, forced_down = box.up_low.sum(dim=1, keepdim=True), box.down_low.sum(dim=1, keepdim=True)
    up, up_rank = gain_up.sort(dim=1, descending=True)
    down, down_rank = gain_down.sort(dim=1, descending=True)
    up_room = (box.up_high - box.up_low).clamp(min=0).gather(1, up_rank)
    down_room = (box.down_high - box.down_low).clamp(min=0).gather(1, down_rank)
    up_end, down_end = forced_up + up_room.cumsum(dim=1), forced_down + down_room.cumsum(dim=1)
    least = torch.maximum(forced_up, forced_down)
    most = torch.minimum(tau.unsqueeze(1), torch.minimum(up_end[:, -1:], down_end[:, -1:]))
    # The two marginal gains at the end of each step of either staircase; M is the last end that still gains.
    ends = torch.minimum(torch.cat([up_end, down_end], dim=1), most)
    at_up = up.gather(1, torch.searchsorted(up_end, ends).clamp(max=up.shape[1] - 1))
    at_down = down.gather(1, torch.searchsorted(down_end, ends).clamp(max=down.shape[1] - 1))
    mass = torch.maximum(torch.where(at_up + at_down > 0, ends, least).amax(dim=1, keepdim=True), least)
    return Moved(
        box.up_low.scatter_add(1, up_rank, poured(mass - forced_up, up_room)),
        box.down_low.scatter_add(1, down_rank, poured(mass - forced_down, down_room)),
        (least <= most + 1e-6).squeeze(1),
    )


def poured(mass: Tensor, room: Tensor) -> Tensor:
    """Distribute a mass (n, 1) over capacities ``room`` (n, K), from left to right; return (n, K)."""
    end = room.cumsum(dim=1)
    return torch.minimum((mass - end + room).clamp(min=0), room)


def project(points: Tensor, y: Tensor, tau: Tensor) -> Tensor:
    """Return the nearest posteriors within 2 tau of y in L1, (B, K), in the Euclidean metric.

    If the budget binds, classes are raised to points - a or lowered to points - b, a > b, each until tau has moved:
    two separate waterfillings. If a <= b, the budget does not bind, and the result is the projection onto the simplex.
    """
    d, mass = points - y, tau.unsqueeze(1)
    a = level_above(d, mass)
    raised = (d - a).clamp(min=0)
    b = level_below(d, y, mass)
    lowered = torch.minimum((b - d).clamp(min=0), y)
    bound, q = a > b, y + raised - lowered
    if bound.all():
        return q
    free = (points - level_above(points, torch.ones_like(mass))).clamp(min=0)
    return torch.where(bound, q, free)


def level_above(values: Tensor, mass: Tensor) -> Tensor:
    """Return c with sum (values - c)^+ = mass, (B, 1)."""
    ordered = values.sort(dim=1, descending=True).values
    count = torch.arange(1, values.shape[1] + 1, device=values.device, dtype=values.dtype)
    return ((ordered.cumsum(dim=1) - mass) / count).amax(dim=1, keepdim=True)


def level_below(d: Tensor, y: Tensor, mass: Tensor) -> Tensor:
    """Return b with sum min(y, (b - d)^+) = mass, (B, 1); the sum grows linearly between its 2 K corners."""
    corners, rank = torch.cat([d, d + y], dim=1).sort(dim=1)
    slope = torch.where(rank < d.shape[1], 1.0, -1.0).to(d.dtype).cumsum(dim=1)
    value = torch.zeros_like(corners)
    value[:, 1:] = (corners.diff(dim=1) * slope[:, :-1]).cumsum(dim=1)
    at = (torch.searchsorted(value, mass) - 1).clamp(0, corners.shape[1] - 1)
    return corners.gather(1, at) + (mass - value.gather(1, at)) / slope.gather(1, at).clamp(min=1)


def lift_top(points: Tensor, top: Tensor) -> Tensor:
    """Return the nearest points (B, K) with class ``top`` on top: it and the classes above it get their mean."""
    place = top.unsqueeze(1)
    others = points.scatter(1, place, -torch.inf).sort(dim=1, descending=True).values[:, :-1]
    count = torch.arange(2, points.shape[1] + 1, device=points.device, dtype=points.dtype)
    peak = points.gather(1, place)
    level = torch.maximum(peak, ((peak + others.cumsum(dim=1)) / count).amax(dim=1, keepdim=True))
    return torch.minimum(points, level).scatter(1, place, level)
