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

import torch
from torch import Tensor

from mad.solvers.halves import AT_ONCE, SLOP, Halves
from mad.solvers.metric import TINY
from mad.solvers.problem import Problem
from mad.solvers.sets import falls

MOST = 10  # classes


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


class Corners(Halves):
    """The search for a few queries."""

    def run(self) -> Tensor:
        """Return the best points (n, K)."""
        for step in (self.share, self.fall, self.climb, self.hold):
            step()
            self.refresh()
        return self.problem.feasible(torch.zeros_like(self.best).scatter(1, self.rank, self.best))

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
            h, new, far = (each[which] for each in (h[:, 0], n[row, way], square[row, way]))
            row, way, over = row[which], way[which], over[able].clamp(min=0)
            new, far = self.with_tied(row, tied, h, new, far)
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
        for j in range(-1, self.large):
            held = held - (self.peak if j < 0 else self.y[:, j : j + 1] * self.sets.member[:, j])
            count = count - (1 if j < 0 else self.sets.member[:, j])
            level = torch.minimum(level, torch.where(count > 0, (self.tau + held) / count.clamp(min=1), torch.inf))
        given = (1 + self.sets.size) * level - self.held - self.peak  # what classes that are not tied give
        able = (given >= -SLOP) & (level <= 1 + SLOP)
        ahead = level - self.own
        n = self.square + ahead * self.rise + self.tied_n[0] + level * self.tied_n[1]
        square = self.square + ahead * ahead + self.tied_square[0]
        square = square + level * (level * self.sets.size + self.tied_square[1])

        def complete(row: Tensor, way: Tensor) -> None:
            over = given[row, way].unsqueeze(1) - self.held.index_select(0, row)
            able = self.sets.apart.index_select(0, way) & (over >= -SLOP) & (over <= self.padded[row, :1] + SLOP)
            which, empty = able.nonzero(as_tuple=True)
            h, new, far = (each[row, way][which] for each in (level, n, square))
            row, way, over = row[which], way[which], -over[able].clamp(min=0)
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
            up, down, whose = rising[some, tied].clamp(min=0), giving[some, tied], row[some]
            new, far = self.with_tied(whose, tied, h[some, 0], n[row, way][some], square[row, way][some])
            # The bound again, now that the tied classes are known. The class that rises has one of the extreme u.
            k, ends = self.k[whose, 0], torch.stack(self.range, dim=1)[whose]
            least = 2 * k * new - k * k * (far + up * up) + (2 * (k - k * k) * up).unsqueeze(1).mul(ends).amin(dim=1)
            rest = (1 - self.sets.member[tied]).unsqueeze(1)
            drop = self.filled(self.falling[whose], y[some].unsqueeze(1), down.unsqueeze(1), rest).squeeze(1)
            good = (least + drop < self.lowest[whose]).nonzero().squeeze(1)
            some, tied, up, down, new, far = (each[good] for each in (some, tied, up, down, new, far))
            over = down.unsqueeze(1) - held.index_select(0, some)
            able = self.sets.apart.index_select(0, tied) & (over >= -SLOP) & (over <= y[some, :1] + SLOP)
            pair, empty = able.nonzero(as_tuple=True)
            whose, tied = row[some][pair], tied[pair]
            gain, _, longer, _ = self.table.index_select(0, whose * len(self.sets.size) + empty).unbind(1)
            new, far, member = new[pair] + gain, far[pair] + longer, self.sets.member
            moved = up[pair], over[able].clamp(min=0)
            self.pairs(whose, h[some, 0][pair], new, far, *moved, lambda i: (member[empty[i]], member[tied[i]]))

        self.complete(mass >= -SLOP, bound, complete)
