"""Branch and bound over the simplex and the L1 ball; at an extreme point, one class receives all the moved mass.

A box bounds the mass that each donor gives. The receiver stays open, and one filling bounds all K receivers at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mad.solvers.metric import TINY, dot, times
from mad.solvers.problem import poured
from mad.solvers.search import APEX, SLOP, SLOPES, Cut, Search, next_slope


class Donors(NamedTuple):
    """Which classes may receive, bool (n, K), and the bounds on the mass that each class gives, (n, K) each."""

    row: Tensor
    slope: Tensor
    receivers: Tensor
    low: Tensor
    high: Tensor

    def rows(self, index: Tensor | slice) -> Donors:
        """Return some of the boxes."""
        return Donors(*(part[index] for part in self))

    def narrowed(self, tau: Tensor) -> Donors:
        """Tighten each bound to the part of a mass (n, 1) that the others leave; an empty box has no receiver."""
        spare = tau - self.low.sum(dim=1, keepdim=True)
        high = torch.minimum(self.high, self.low + spare.clamp(min=0))
        total = high.sum(dim=1, keepdim=True)
        low = torch.maximum(self.low, torch.minimum(tau - total + high, high))
        possible = (spare > -SLOP) & (total > tau - SLOP)
        return Donors(self.row, self.slope, self.receivers & (low <= SLOP) & possible, low, high)


class OneReceiver(Search[Donors]):
    """The search; see ``search`` for the bound. It usually takes a few boxes per row."""

    limit = 1000

    def roots(self) -> Donors:
        """Return one box per row, or one per receiver if Theta makes the gains depend on the receiver."""
        y, tau = self.problem.y, self.problem.tau.unsqueeze(1)
        roomy = 1 - y >= tau
        self.judge_corners(~roomy)
        row = torch.arange(len(y), device=y.device)
        if self.problem.theta is not None:
            row, only = roomy.nonzero(as_tuple=True)
            roomy = F.one_hot(only, y.shape[1]).bool()
        return Donors(row, self.slope[row], roomy, torch.zeros_like(y[row]), y[row])

    def judge_corners(self, cramped: Tensor) -> None:
        """Score the corners e_k that the budget reaches, for classes whose room is less than the budget."""
        problem = self.problem
        toward = times(problem.theta, problem.p)
        own = 1.0 if problem.theta is None else problem.theta.diagonal(dim1=1, dim2=2)
        n = self.along - dot(problem.p, self.along).unsqueeze(1)
        square = (dot(problem.p, toward).unsqueeze(1) - 2 * toward + own).clamp(min=TINY)
        corner = torch.where(cramped, n.clamp(min=0) ** 2 / square, torch.inf).argmin(dim=1)
        row = cramped.any(dim=1).nonzero().squeeze(1)
        self.keep(row, F.one_hot(corner[row], problem.y.shape[1]).to(problem.y.dtype))

    def bound(self, boxes: Donors) -> tuple[Tensor, Donors, Cut, Cut]:
        """Bound all receivers of each box with one sort a slope, and refine for the most promising one."""
        tau = self.problem.tau[boxes.row].unsqueeze(1)
        boxes = boxes.narrowed(tau)
        row, _, receivers, low, high = boxes
        along, weight = self.along[row], self.weight[row]
        theta = None if self.problem.theta is None else self.problem.theta[row]
        middle, own = (low + high) / 2, torch.ones_like(along)
        bent, toward = times(theta, middle), along
        if theta is not None:
            own = theta.diagonal(dim1=1, dim2=2)
            toward = along + tau * times(theta, boxes.receivers.to(along.dtype))
        square = self.square[row].unsqueeze(1)
        constant = square + (weight * ((high - low) / 2) ** 2 - middle * bent).sum(dim=1, keepdim=True)
        width, mass = high - low, (tau - low.sum(dim=1, keepdim=True)).clamp(min=0)
        n_of, over_of = square + tau * along, constant + 2 * tau * along + tau**2 * own

        best = torch.where(receivers, -torch.inf, torch.inf)
        slope = boxes.slope.unsqueeze(1)
        cuts: tuple[Cut, Cut] | None = None
        for _ in range(SLOPES):
            gain = 2 * slope * (bent - toward) + 2 * along
            ranked, rank = gain.sort(dim=1, descending=True)
            room = width.gather(1, rank)
            given = poured(mass, room)
            # The receiver r cannot give to itself: at best its share comes from the last donor of the filling.
            last = torch.where(given > 0, ranked, torch.inf).amin(dim=1, keepdim=True)
            t = torch.zeros_like(width).scatter_(1, rank, given)
            value = 2 * slope * n_of - slope**2 * over_of - slope * dot(gain, low + t).unsqueeze(1)
            best = torch.maximum(best, value + slope * t * (gain - last).clamp(min=0))
            # The most promising receiver, exactly.
            pick = best.argmin(dim=1, keepdim=True)
            room = room * (rank != pick)
            t = low + torch.zeros_like(width).scatter_(1, rank, poured(mass, room))
            n = n_of.gather(1, pick).squeeze(1) - dot(along, t)
            over = over_of.gather(1, pick).squeeze(1) + 2 * dot(bent - toward, t)
            up = torch.zeros_like(t).scatter_(1, pick, tau)
            short = (mass - room.sum(dim=1, keepdim=True) > SLOP) | best.gather(1, pick).isinf()
            k = slope.squeeze(1)
            sharp = torch.where(short.squeeze(1), torch.inf, 2 * k * n - k**2 * over).unsqueeze(1)
            best = best.scatter(1, pick, torch.maximum(best.gather(1, pick), sharp))
            full = (~short).nonzero(as_tuple=True)[0]
            self.keep(row[full], (self.problem.y[row] + up - t)[full])
            cut, below = Cut(n, over, up, t), n > k * over
            cuts = (cut, cut) if cuts is None else (cut.where(below, cuts[0]), cut.where(~below, cuts[1]))
            slope = next_slope(*cuts).unsqueeze(1)
        assert cuts is not None
        receivers = best < self.target(row).unsqueeze(1)
        return best.amin(dim=1), boxes._replace(receivers=receivers, slope=slope.squeeze(1)), *cuts

    def cut(self, boxes: Donors, bound: Tensor, low: Cut, high: Cut) -> tuple[Donors, Tensor]:
        """Cut each box between two receivers or in the mass that one class gives, where its bound is loosest."""
        weight, t = self.weight[boxes.row], (low.down + high.down) / 2
        slack = weight * (t - boxes.low) * (boxes.high - t)
        if self.problem.theta is not None:  # the weight is itself an overestimate, which only smaller boxes mend
            slack = slack + weight * (boxes.high - boxes.low) ** 2 / 8
        loose, place = slack.max(dim=1, keepdim=True)
        u = self.problem.u[boxes.row]
        one, other = (u.gather(1, each.up.argmax(dim=1, keepdim=True)) for each in (low, high))
        k = (low.n / low.over.clamp(min=TINY)).unsqueeze(1)
        torn = (torch.minimum(low.value, high.value) - bound).unsqueeze(1) > k**2 * loose
        torn &= (one - other).abs() > 1e-7
        middle = (one + other) / 2

        a, b = boxes.low.gather(1, place), boxes.high.gather(1, place)
        point = torch.minimum(torch.maximum(t.gather(1, place), a + 0.1 * (b - a)), b - 0.1 * (b - a))
        near = boxes._replace(
            receivers=boxes.receivers & (~torn | (u <= middle)),
            high=torch.where(torn, boxes.high, boxes.high.scatter(1, place, point)),
        )
        far = boxes._replace(
            receivers=boxes.receivers & (~torn | (u > middle)),
            low=torch.where(torn, boxes.low, boxes.low.scatter(1, place, point)),
        )
        open_ = ((loose > APEX) | torn).squeeze(1)
        halves = zip(near.rows(open_), far.rows(open_), strict=True)
        return Donors(*(torch.cat(pair) for pair in halves)), open_
