"""What the search of ``corners`` computes with: bounds of halves of states, and the best points of whole states."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mad.solvers.metric import TINY
from mad.solvers.problem import Problem
from mad.solvers.sets import sets

AT_ONCE = 2**20  # numbers in the tensors of one step
SLOP = 1e-6  # mass that may be lost by rounding
State = Callable[[Tensor], tuple[Tensor, Tensor]]  # which classes are emptied, and which are tied, of some points


class Halves:
    """A few queries, their best points so far, and how to bound and score others; see ``corners``.

    Classes are in the order of falling y, without the top class, (n, m).

    Args:
        problem: the queries, with a top class and without Theta.
        start: allowed points (n, K).
        large: at most how many classes may fall to the level of the top class.
    """

    def __init__(self, problem: Problem, start: Tensor, large: int) -> None:
        assert problem.top is not None
        assert problem.theta is None
        place = problem.top.unsqueeze(1)
        self.rank = problem.y.scatter(1, place, -1.0).argsort(dim=1, descending=True)  # the top class comes last
        self.whole_y, self.whole_p = problem.y.gather(1, self.rank), problem.p.gather(1, self.rank)
        self.problem, self.large = problem, large
        self.y, self.p, self.tau = self.whole_y[:, :-1], self.whole_p[:, :-1], problem.tau.unsqueeze(1)
        self.peak, self.own = self.whole_y[:, -1:], self.whole_p[:, -1:]  # the top class's
        self.u, self.rise = self.y - self.p, self.peak - self.own
        self.best = start.gather(1, self.rank)
        v, u = self.best - self.whole_p, self.whole_y - self.whole_p
        n, square = (v * u).sum(dim=1).clamp(min=0), (v * v).sum(dim=1).clamp(min=TINY)
        self.lowest = n * n / square
        # The parabola's k, at which the bound of the best point is tight.
        self.k = (n / square).unsqueeze(1)
        self.square = (self.u * self.u).sum(dim=1, keepdim=True)
        self.ends = torch.tensor([math.comb(self.y.shape[1], size) for size in range(self.y.shape[1] + 1)]).cumsum(0)
        self.sets = sets(self.y.shape[1], self.y.dtype, self.y.device)
        self.padded = torch.cat([self.y, torch.zeros_like(self.peak)], dim=1)
        member = self.sets.member.T
        self.held = self.y @ member  # of each set (n, S): what its classes hold,
        # and what N and D^2 gain if they are tied at h (a constant, and factors of h and h^2) or emptied.
        self.tied_n = -(self.u * self.y) @ member, self.u @ member
        self.tied_square = (self.y * (2 * self.p - self.y)) @ member, -2 * self.p @ member
        self.table = torch.stack([*self.tied_n, *self.tied_square], dim=2).flatten(0, 1)  # of each set, (n S, 4)
        self.range = self.u.amin(dim=1), self.u.amax(dim=1)

    def up(self, level: Tensor, mass: Tensor, allowed: Tensor) -> Tensor:
        """Return the lowest rise of the parabola if a mass goes up, by chords; (n, ...), infinite if it cannot.

        Args:
            level: h, (n, ...).
            mass: (n, 1) or (n, ...).
            allowed: which classes may rise, as numbers (n or 1, ..., m).
        """
        k = self.k
        gain = (2 * k - k * k) * self.u + k * k * self.p
        return self.filled(gain, (level.unsqueeze(-1) - self.y.unsqueeze(1)).clamp(min=0), mass, allowed) - (
            k * k * level * mass
        )

    def down(self, mass: Tensor, allowed: Tensor) -> Tensor:
        """Return the lowest rise of the parabola if a mass comes down, as ``up`` does."""
        return self.filled(self.falling, self.y.unsqueeze(1), mass, allowed)

    @property
    def falling(self) -> Tensor:
        """What a unit of mass that comes down along the chord of each class adds to the parabola, (n, m)."""
        return self.k * self.k * (self.u - self.p) - 2 * self.k * self.u

    def filled(self, gain: Tensor, room: Tensor, mass: Tensor, allowed: Tensor) -> Tensor:
        """Return the least sum of gain (n, m) times amounts that fill a mass, (n, ...)."""
        order = gain.argsort(dim=1).unsqueeze(1)
        room = room * allowed
        room = room.expand(-1, max(room.shape[1], mass.shape[1]), -1)
        room = room.gather(2, order.expand_as(room))
        end = room.cumsum(dim=2)
        given = torch.minimum((mass.unsqueeze(2) - end + room).clamp(min=0), room)
        total = (given @ gain.gather(1, order.squeeze(1)).unsqueeze(2)).squeeze(2)
        return torch.where(mass > end[:, :, -1] + SLOP, torch.inf, total)

    def parabola(self, n: Tensor, square: Tensor) -> Tensor:
        """Return 2 k N - k^2 D^2."""
        return 2 * self.k * n - self.k * self.k * square

    def with_tied(self, row: Tensor, tied: Tensor, h: Tensor, n: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
        """Return N and D^2 after sets of classes were tied at h, (L,) each."""
        gain, slope, longer, bend = self.table.index_select(0, row * len(self.sets.size) + tied).unbind(1)
        return n + gain + h * slope, square + longer + h * (bend + h * self.sets.size[tied])

    def complete(
        self,
        able: Tensor,
        bound: Callable[[], Tensor],
        how: Callable[[Tensor, Tensor], None],
        order: Tensor | None = None,
    ) -> None:
        """Complete the halves whose bound is below the best point: the most promising one of each row first.

        Args:
            able: the halves that are possible, bool (n, F).
            bound: returns their bounds (n, F) at the current k.
            how: completes halves by their rows and numbers, (L,) each.
            order: halves are completed in this order, (n, F), so that similar ones are taken together.
        """
        value, way = torch.where(able, bound(), torch.inf).min(dim=1)
        row = (value < self.lowest).nonzero().squeeze(1)
        if not len(row):
            return
        how(row, way[row])
        self.refresh()
        row, way = (able & (bound() < self.lowest.unsqueeze(1))).nonzero(as_tuple=True)
        size = max(1, AT_ONCE // len(self.sets.size))
        if order is not None and len(row) > size:
            turn = order[row, way].argsort()
            row, way = row[turn], way[turn]
        for rows, ways in zip(row.split(size), way.split(size), strict=True):
            if len(rows):
                how(rows, ways)

    def refresh(self) -> None:
        """Set the parabola's k to N / D^2 of the best points, where their own bound is tight."""
        v, u = self.best - self.whole_p, self.whole_y - self.whole_p
        self.k = ((v * u).sum(dim=1) / (v * v).sum(dim=1).clamp(min=TINY)).clamp(min=0).unsqueeze(1)

    def finish(self, row: Tensor, h: Tensor, n: Tensor, square: Tensor, over: Tensor, state: State) -> None:
        """Score points at which one class that stays moves by ``over``.

        Args:
            row: the row of each point, (L,).
            h: the level of the top class and of the tied ones, (L,).
            n: N before that class moves, (L,).
            square: D^2 before.
            over: how much it moves, (L,): up, or down where it is negative.
            state: returns which classes are emptied and which are tied, (., m) each, of some of the points.
        """
        # N^2 / D^2 is convex in the class's u: its lowest value over the range of u bounds all classes.
        low, high, lowest = torch.stack([*self.range, self.lowest], dim=1).index_select(0, row).unbind(1)
        flat = (n - square - over * over) / torch.where(over == 0, 1.0, over)  # there N = D^2
        u = torch.minimum(torch.maximum(flat, low), high)
        bound = (n + u * over).clamp(min=0) ** 2 / (square + 2 * u * over + over * over).clamp(min=TINY)
        some = (bound < lowest).nonzero().squeeze(1)
        if not len(some):
            return
        row, h, n, square, over = (each[some].unsqueeze(1) for each in (row, h, n, square, over))
        row = row.squeeze(1)
        empty, tied = state(some)
        y, u, stays = self.y[row], self.u[row], 1 - empty - tied
        moved = y + over
        above = (stays > 0) & (y > h + SLOP)  # only the class that moves may have been there
        fits = (stays > 0) & (moved <= h + SLOP) & (moved >= -SLOP) & (above.sum(dim=1, keepdim=True) <= above)
        score = (n + u * over).clamp(min=0) ** 2 / (square + 2 * u * over + over * over).clamp(min=TINY)
        score = torch.where(fits, score, torch.inf)
        still = torch.where((over.abs() <= SLOP) & ~above.any(dim=1, keepdim=True), n * n / square, torch.inf)
        value, which = torch.cat([score, still], dim=1).min(dim=1)
        at = self.first(row, value)
        if len(at):
            q = torch.cat([tied * h + stays * y, torch.zeros_like(h)], dim=1)[at]
            q = q.scatter_add(1, which[at].unsqueeze(1), over[at])
            q[:, -1:] = h[at]
            self.keep(row[at], value[at], q.clamp(min=0))

    def pairs(self, row: Tensor, h: Tensor, n: Tensor, square: Tensor, up: Tensor, down: Tensor, state: State) -> None:
        """Score points at which one class that stays rises by ``up``, and another one falls by ``down``, (L,) each."""
        low, high, lowest = torch.stack([*self.range, self.lowest], dim=1).index_select(0, row).unbind(1)
        # N grows by x = u_receiver up - u_giver down, and D^2 by 2 x and a constant: convex in x, as in ``finish``.
        square = square + up * up + down * down
        x = torch.minimum(torch.maximum(n - square, low * up - high * down), high * up - low * down)
        bound = (n + x).clamp(min=0) ** 2 / (square + 2 * x).clamp(min=TINY)
        some = (bound < lowest).nonzero().squeeze(1)
        if not len(some):
            return
        row, h, n, square, up, down = (each[some] for each in (row, h, n, square, up, down))
        empty, tied = state(some)
        y, u, stays = self.y[row], self.u[row], 1 - empty - tied
        up_, down_, h_ = (each.unsqueeze(1) for each in (up, down, h))
        rises = (stays > 0) & (y + up_ <= h_ + SLOP)
        above = (stays > 0) & (y > h_ + SLOP)  # only the class that falls may have been there
        gives = (stays > 0) & (down_ <= y + SLOP) & (y - down_ <= h_ + SLOP) & (above.sum(dim=1, keepdim=True) <= above)
        x = (u * up_).unsqueeze(1) - (u * down_).unsqueeze(2)  # (L, giver, receiver)
        score = (n.view(-1, 1, 1) + x).clamp(min=0) ** 2 / (square.view(-1, 1, 1) + 2 * x).clamp(min=TINY)
        apart = ~torch.eye(y.shape[1], dtype=torch.bool, device=y.device)
        fits = gives.unsqueeze(2) & rises.unsqueeze(1) & apart
        value, which = torch.where(fits, score, torch.inf).flatten(1).min(dim=1)
        at = self.first(row, value)
        if len(at):
            giver, receiver = which[at] // y.shape[1], which[at] % y.shape[1]
            q = (tied * h_ + stays * y)[at].scatter_add(1, receiver.unsqueeze(1), up_[at])
            q = q.scatter_add(1, giver.unsqueeze(1), -down_[at])
            self.keep(row[at], value[at], torch.cat([q, h_[at]], dim=1).clamp(min=0))

    def first(self, row: Tensor, value: Tensor) -> Tensor:
        """Return the places of values (L,) that are the lowest of their row, and below its best so far."""
        lowest = torch.full_like(self.lowest, torch.inf).scatter_reduce(0, row, value, "amin")
        return ((value == lowest[row]) & (value < self.lowest[row])).nonzero().squeeze(1)

    def keep(self, row: Tensor, value: Tensor, q: Tensor) -> None:
        """Remember points (L, K) that are better than their row's best."""
        better = (value < self.lowest[row]).nonzero().squeeze(1)
        self.best[row[better]], self.lowest[row[better]] = q[better], value[better]
