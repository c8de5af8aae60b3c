"""The best extreme point for up to ten classes, with the constraint that the top class stays on top.

Let h be the level (probability) of the top class. At an extreme point of the allowed answers every other class stays at
its y, is tied with the top class at h, or is emptied, except for one class while h is free, or two where h is a y. As
``tau`` of mass goes up and as much comes down, the states of all classes determine the rest:

    share     the tied classes and the top class have all mass; inside the L1 ball
    fall      the classes that fall (the top class, tied ones, emptied ones) give tau, which determines h; of the
              classes that rise one is below h
    climb     the classes that rise to h take tau, which determines h; of the classes that fall one is not emptied
    hold      h is the y of the top class, or of another one; one class rises to below h, and one falls to above 0

There are up to 3^9 states. Half of each state (who falls, who is tied, or the level) determines h, and then the
parabola of ``search`` bounds what the other half can reach: on [y, h] and on [0, y] the square of a class lies below
its chord, and the best filling of the chords is a greedy one. Only halves whose bound is below the best point so far
are completed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mad.solvers.metric import TINY
from mad.solvers.problem import Problem

MOST = 10  # classes
AT_ONCE = 2**19  # numbers in the tensors of one step
SLOP = 1e-6  # mass that may be lost by rounding


State = Callable[[Tensor], tuple[Tensor, Tensor]]  # which classes are emptied, and which are tied, of some points


class Sets(NamedTuple):
    """The subsets of some classes.

    Args:
        member: whether each class is in each set, as numbers (S, m).
        size: the number of its classes, (S,).
        apart: whether two sets have no class in common, bool (S, S).
        other: the first class that is not in the set, int64 (S,); m if there is none.
        later: the second one.
    """

    member: Tensor
    size: Tensor
    apart: Tensor
    other: Tensor
    later: Tensor


class Falls(NamedTuple):
    """The ways in which classes may fall.

    Args:
        empty: whether each class is emptied, (F, m).
        tied: whether it falls to the level of the top class, (F, m).
        rest: whether neither, (F, m).
        other: the first class that does neither, int64 (F,); m if there is none.
        free: which ``Sets`` have none of the classes that fall, bool (F, S).
    """

    empty: Tensor
    tied: Tensor
    rest: Tensor
    other: Tensor
    free: Tensor


@functools.lru_cache(maxsize=32)
def sets(others: int, dtype: torch.dtype, device: torch.device) -> Sets:
    """Return all subsets of a number of classes, small ones first."""
    member = torch.arange(2**others).unsqueeze(1) >> torch.arange(others) & 1
    member = member[member.sum(dim=1).argsort(stable=True)]
    apart = member @ member.T == 0
    place = torch.arange(others)
    other = torch.where(member == 0, place, others).amin(dim=1)
    later = torch.where((member == 0) & (place != other.unsqueeze(1)), place, others).amin(dim=1)
    found = member.to(device, dtype), member.sum(dim=1).to(device, dtype)
    return Sets(*found, apart.to(device), other.to(device), later.to(device))


@functools.lru_cache(maxsize=64)
def falls(others: int, large: int, dtype: torch.dtype, device: torch.device) -> Falls:
    """Return all ways in which classes may fall if only the first ``large`` may be tied then."""
    base = torch.tensor([3] * large + [2] * (others - large))
    weight = torch.cat([torch.ones(1, dtype=torch.long), base.cumprod(0)[:-1]])
    digit = torch.arange(int(base.prod())).unsqueeze(1) // weight % base
    rest, empty, tied = (digit == value for value in range(3))
    other = torch.where(rest, torch.arange(others), others).amin(dim=1)
    free = (~rest).long() @ sets(others, torch.long, torch.device("cpu")).member.T == 0
    numbers = (each.to(device, dtype) for each in (empty, tied, rest))
    return Falls(*numbers, other.to(device), free.to(device))


def best_corner(problem: Problem, start: Tensor) -> Tensor:
    """Return the extreme point with the largest angle, or ``start`` where none is better, (B, K).

    Where no allowed answer has an obtuse angle, that is the best answer of all. Theta must be the identity.
    """
    assert problem.top is not None
    largest = problem.y.scatter(1, problem.top.unsqueeze(1), 0.0)
    reach = (problem.y.amax(dim=1) - problem.tau).clamp(min=1 / problem.y.shape[1])
    large = (largest > reach.unsqueeze(1)).sum(dim=1)  # how many classes may fall to the level of the top class
    best = start.clone()
    for count in large.unique().tolist():
        rows = (large == count).nonzero().squeeze(1)
        size = max(1, int(AT_ONCE / (2 ** problem.y.shape[1] * 1.5**count * 8)))
        for some in rows.split(size):
            best[some] = Corners(problem.rows(some), start[some], count).run()
    return best


class Corners:
    """The search for a few queries. Classes are in the order of falling y, without the top class, (n, m)."""

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

    def run(self) -> Tensor:
        """Return the best points (n, K)."""
        for step in (self.share, self.fall, self.climb, self.hold):
            step()
            self.refresh()
        return self.problem.feasible(torch.zeros_like(self.best).scatter(1, self.rank, self.best))

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
        k = self.k
        gain = k * k * (self.u - self.p) - 2 * k * self.u
        return self.filled(gain, self.y.unsqueeze(1), mass, allowed)

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

    def share(self) -> None:
        """Try the corners of the simplex's wedge: the tied classes and the top class share all mass."""
        level = 1 / (1 + self.sets.size)
        q = torch.cat([self.sets.member * level.unsqueeze(1), level.unsqueeze(1)], dim=1)  # (S, K)
        u = self.whole_y - self.whole_p
        n = (u @ q.T - (u * self.whole_p).sum(dim=1, keepdim=True)).clamp(min=0)
        square = level - 2 * self.whole_p @ q.T + (self.whole_p**2).sum(dim=1, keepdim=True)
        # Mass that goes up: what the set's classes are below the level, less what they are above it.
        rises = (level - self.y.unsqueeze(2)).clamp(min=0) * self.sets.member.T
        up = rises.sum(dim=1) + (level - self.peak).clamp(min=0)
        score = torch.where(up <= self.tau + SLOP / 2, n * n / square.clamp(min=TINY), torch.inf)
        value, found = score.min(dim=1)
        self.keep(torch.arange(len(self.y), device=q.device), value, q[found])

    def fall(self) -> None:
        """Try the points at which all that falls is tied or emptied."""
        ways = falls(self.y.shape[1], self.large, self.y.dtype, self.y.device)
        left = self.tau - self.y @ ways.empty.T
        count = 1 + ways.tied.sum(dim=1)
        level = (self.peak + self.y @ ways.tied.T - left) / count
        # A tied class that falls is above the level, and the others are below it.
        least = torch.where(ways.tied > 0, self.y.unsqueeze(1), 2.0).amin(dim=2) if self.large else 2.0
        able = (left >= -SLOP) & (self.padded[:, ways.other] <= level + SLOP) & (least >= level - SLOP)
        ahead = level - self.own
        fallen = (ways.empty + ways.tied).T
        n = self.square + ahead * self.rise - (self.u * self.y) @ fallen + level * (self.u @ ways.tied.T)
        square = self.square + ahead * ahead + (self.y * (2 * self.p - self.y)) @ fallen
        square = square + level * (level * (count - 1) - 2 * self.p @ ways.tied.T)

        # The most classes that tau can lift to the level: those that need least.
        room = (level.unsqueeze(2) - self.y.unsqueeze(1)).clamp(min=0) * ways.rest
        most = ((room.cumsum(dim=2) <= self.tau.unsqueeze(2) + 10 * SLOP) & (ways.rest > 0)).sum(dim=2)

        def complete(row: Tensor, way: Tensor) -> None:
            h = level[row, way].unsqueeze(1)
            sets = int(self.ends[int(most[row, way].max().item())].item())
            over = self.tau.index_select(0, row) - self.sets.size[:sets] * h + self.held[:, :sets].index_select(0, row)
            able = free[:, :sets].index_select(0, way) & (over >= -SLOP) & (over <= h + SLOP)
            which, tied = able.nonzero(as_tuple=True)
            numbers = h[:, 0], n[row, way], square[row, way]
            h, new, far, over = (*(each[which] for each in numbers), over[able].clamp(min=0))
            row, way = row[which], way[which]
            gain, slope, longer, bend = self.table.index_select(0, row * len(self.sets.size) + tied).unbind(1)
            new, far = new + gain + h * slope, far + longer + h * (bend + h * self.sets.size[tied])
            self.finish(
                row, h, new, far, over, lambda i: (ways.empty[way[i]], ways.tied[way[i]] + self.sets.member[tied[i]])
            )

        free, rest = ways.free, ways.rest.unsqueeze(0)
        self.complete(able, lambda: self.parabola(n, square) + self.up(level, self.tau, rest), complete, most)

    def climb(self) -> None:
        """Try the points at which all that rises is tied."""
        count, held = 1 + self.sets.size, self.held + self.peak
        level = (self.tau + held) / count
        # Which tied classes rise: the sum of (h - y)^+ over them is at least that of h - y over any of them.
        for j in range(-1, self.y.shape[1]):
            held = held - (self.peak if j < 0 else self.y[:, j : j + 1] * self.sets.member[:, j])
            count = count - (1 if j < 0 else self.sets.member[:, j])
            level = torch.minimum(level, torch.where(count > 0, (self.tau + held) / count.clamp(min=1), torch.inf))
        given = (1 + self.sets.size) * level - self.held - self.peak  # what classes that are not tied give
        able = (given >= -SLOP) & (level <= 1 + SLOP) & (self.padded[:, self.sets.later] <= level + self.padded[:, :1])
        ahead = level - self.own
        n = self.square + ahead * self.rise + self.tied_n[0] + level * self.tied_n[1]
        square = self.square + ahead * ahead + self.tied_square[0]
        square = square + level * (level * self.sets.size + self.tied_square[1])

        def complete(row: Tensor, way: Tensor) -> None:
            over = given[row, way].unsqueeze(1) - self.held.index_select(0, row)
            able = self.sets.apart.index_select(0, way) & (over >= -SLOP) & (over <= self.padded[row, :1] + SLOP)
            which, empty = able.nonzero(as_tuple=True)
            numbers = level[row, way], n[row, way], square[row, way]
            h, new, far, over = (*(each[which] for each in numbers), -over[able].clamp(min=0))
            row, way = row[which], way[which]
            gain, _, longer, _ = self.table.index_select(0, row * len(self.sets.size) + empty).unbind(1)
            state = self.sets.member
            self.finish(row, h, new + gain, far + longer, over, lambda i: (state[empty[i]], state[way[i]]))

        rest = (1 - self.sets.member).unsqueeze(0)
        self.complete(able, lambda: self.parabola(n, square) + self.down(given, rest), complete)

    def hold(self) -> None:
        """Try the points at which the level is the y of a class, one class rises to below it and one does not empty."""
        level = self.whole_y.roll(1, dims=1)  # the top class first
        mass = self.tau - (self.peak - level)
        every = torch.ones_like(self.y[:1, :1].unsqueeze(0)).expand(1, 1, self.y.shape[1])
        ahead = level - self.own
        n, square = self.square + ahead * self.rise, self.square + ahead * ahead

        def bound() -> Tensor:
            least = self.parabola(n, square) + self.up(level, self.tau, every)
            return least + self.down(mass.clamp(min=0), every)

        def complete(row: Tensor, way: Tensor) -> None:
            h = level[row, way].unsqueeze(1)
            y, held, member = self.y[row], self.held[row], self.sets.member.T
            rising = self.tau[row] - (h - y).clamp(min=0) @ member  # left for the class below the level
            # Of the tied ones, those above the level give; the class that does not empty gives what is left.
            giving = mass[row, way].unsqueeze(1) - (y - h).clamp(min=0) @ member
            some, tied = ((rising >= -SLOP) & (rising <= h + SLOP) & (giving >= -SLOP)).nonzero(as_tuple=True)
            over = giving[some, tied].unsqueeze(1) - held.index_select(0, some)
            able = self.sets.apart.index_select(0, tied) & (over >= -SLOP) & (over <= y[some, :1] + SLOP)
            pair, empty = able.nonzero(as_tuple=True)
            some, tied, down = some[pair], tied[pair], over[able].clamp(min=0)
            up, h, new, far = rising[some, tied].clamp(min=0), h[some, 0], n[row, way][some], square[row, way][some]
            row = row[some]
            gain, slope, longer, bend = self.table.index_select(0, row * len(self.sets.size) + tied).unbind(1)
            new, far = new + gain + h * slope, far + longer + h * (bend + h * self.sets.size[tied])
            gain, _, longer, _ = self.table.index_select(0, row * len(self.sets.size) + empty).unbind(1)
            member = self.sets.member
            self.pairs(row, h, new + gain, far + longer, up, down, lambda i: (member[empty[i]], member[tied[i]]))

        self.complete(mass >= -SLOP, bound, complete)

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

    def first(self, row: Tensor, value: Tensor) -> Tensor:
        """Return the places of values (L,) that are the lowest of their row, and below its best so far."""
        lowest = torch.full_like(self.lowest, torch.inf).scatter_reduce(0, row, value, "amin")
        return ((value == lowest[row]) & (value < self.lowest[row])).nonzero().squeeze(1)

    def keep(self, row: Tensor, value: Tensor, q: Tensor) -> None:
        """Remember points (L, K) that are better than their row's best."""
        better = (value < self.lowest[row]).nonzero().squeeze(1)
        self.best[row[better]], self.lowest[row[better]] = q[better], value[better]
