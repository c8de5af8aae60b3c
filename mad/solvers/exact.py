"""The global maximum of the angular objective over all answers in the budget.

H = 2 - 2 cos(q - p, u), so the angle between q - p and u = y - p must be as large as possible. There are three cases:

1. **Mirror.** q = p + t (p - y), t > 0, reverses the gradient: cos = -1, the lowest value possible. It lies within
   the budget iff (1 + t) ||p - y||_1 <= epsilon, and on the simplex iff t (y_k - p_k) <= p_k for every k.
2. **Obtuse.** Some allowed q has <q - p, u> < 0. There {cos <= c}, c < 0, is a convex cone, so cos is quasi-convex and
   its lowest value is reached by descent: the problem is to find the point of the convex cone spanned by the allowed
   q - p that is nearest to -u.
3. **Acute.** No allowed q has <q - p, u> < 0. Then {cos >= c} is a convex cone, cos is quasi-concave, and its lowest
   value is at an extreme point. There are too many to try them all; ``search`` finds the best one and proves that no
   other is better.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from mad.solvers import corners, levels
from mad.solvers.argmax import TIE, argmax_vertex
from mad.solvers.level import TopStays
from mad.solvers.metric import TINY, cosine, dot, times
from mad.solvers.problem import Problem
from mad.solvers.receiver import OneReceiver
from mad.solvers.vertex import NO_DIRECTION, vertex

ROUNDS = 300  # most iterations of the descent; it stops when no point moves
STEPS, STILL = 30, 1e-4  # most steps of the secant rule, and the relative change of t at which it stops,
GAIN = 1e-7  # unless cos still falls by this


def exact(
    y: Tensor,
    p: Tensor,
    epsilon: float,
    theta: Tensor | None = None,
    *,
    keep_top: bool = False,
    tally: Counter[str] | None = None,
) -> Tensor:
    """Return defended posteriors (B, K) with the largest H that the L1 budget allows.

    A search that ends at its limit of boxes returns the best answer that it has found, without the proof that none is
    better. That happens with ``keep_top``, for more than ten classes or with ``theta``.

    Args:
        y: clean posteriors (B, K).
        p: the surrogate's posteriors (B, K).
        epsilon: L1 budget in [0, 2].
        theta: inner products of the surrogate's gradients (B, K, K); None for its last linear layer.
        keep_top: allow only answers whose top class is that of y.
        tally: counts the answers without a proof, as ``unproven``.
    """
    if epsilon == 0 or not len(y):
        return y
    tau = torch.full_like(y[:, 0], epsilon / 2)
    best = solve(Problem(y, p, tau, theta), vertex(y, p, epsilon, theta), None if keep_top else tally)
    if not keep_top:
        return best
    problem = Problem(y, p, tau, theta, y.argmax(dim=1))
    place = y.argmax(dim=1, keepdim=True)
    lost = (best.gather(1, place) < best.amax(dim=1, keepdim=True)).squeeze(1).nonzero().squeeze(1)
    if len(lost):
        published = argmax_vertex(y, p, epsilon, theta)[lost]
        best = best.index_copy(0, lost, solve(problem.rows(lost), published, tally))
    lead = best.gather(1, place) - best.scatter(1, place, 0.0).amax(dim=1, keepdim=True)
    level = torch.where(lead < TIE / 2, TIE, 0.0).to(y.dtype)
    return best.scatter_add(1, place, level) / (1 + level)


def solve(problem: Problem, start: Tensor, tally: Counter[str] | None = None) -> Tensor:
    """Return the best allowed points (B, K), none worse than ``start`` (B, K)."""
    turned, found = mirror(problem)
    best = torch.where(found.unsqueeze(1), turned, start)
    directed = problem.u.norm(dim=1) > NO_DIRECTION
    rows = (~found & directed).nonzero().squeeze(1)
    if not len(rows):
        return best
    rest, answer = problem.rows(rows), best[rows]
    lowest = lowest_point(rest, times(rest.theta, rest.u))
    obtuse = cosine(lowest - rest.p, rest.u, rest.theta) < 0
    blunt, sharp = obtuse.nonzero().squeeze(1), (~obtuse).nonzero().squeeze(1)
    if len(blunt):
        answer[blunt] = (turn if problem.theta is None else descend)(rest.rows(blunt), lowest[blunt])
    if len(sharp) and problem.y.shape[1] > 2:  # with two classes every such point is a multiple of u from p
        answer[sharp] = searched(rest.rows(sharp), answer[sharp], tally)
    wide, before = (cosine(q - rest.p, rest.u, rest.theta) for q in (answer, best[rows]))
    return best.index_copy(0, rows, torch.where((wide <= before).unsqueeze(1), answer, best[rows]))


def lowest_point(problem: Problem, cost: Tensor) -> Tensor:
    """Return an allowed point with the lowest <cost, q>, (B, K)."""
    few = problem.top is not None and cost.shape[1] <= levels.MOST
    return levels.lowest_with_top(problem, cost) if few else problem.lowest(cost)


def searched(problem: Problem, start: Tensor, tally: Counter[str] | None) -> Tensor:
    """Return the best extreme points (B, K), none worse than ``start`` (B, K)."""
    if problem.top is not None and problem.theta is None and start.shape[1] <= corners.MOST:
        return corners.best_corner(problem, start)
    search = OneReceiver(problem, start) if problem.top is None else TopStays(problem, start)
    best = search.run()
    if tally is not None:
        tally["unproven"] += int(search.unproven.sum())
    return best


def mirror(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return p + t (p - y) with the largest t allowed (B, K), and whether there is one (B,)."""
    p, u = problem.p, problem.u
    least = torch.zeros_like(problem.tau)
    most = 2 * problem.tau / u.abs().sum(dim=1).clamp(min=TINY) - 1
    most = torch.minimum(most, torch.where(u > 0, p / u.clamp(min=TINY), torch.inf).amin(dim=1))
    if problem.top is not None:  # t (u_top - u_j) <= p_top - p_j bounds t from above or from below
        place = problem.top.unsqueeze(1)
        slope, room = u.gather(1, place) - u, p.gather(1, place) - p
        bound = room / torch.where(slope == 0, 1.0, slope)
        most = torch.minimum(most, torch.where(slope > 0, bound, torch.inf).amin(dim=1))
        least = torch.maximum(least, torch.where(slope < 0, bound, 0.0).amax(dim=1))
        most = torch.where(((slope == 0) & (room < 0)).any(dim=1), -1.0, most)
    # t must be large enough that the gradient's direction is not rounding error.
    found = (most * u.norm(dim=1) > NO_DIRECTION) & (most >= least)
    q = (p - most.clamp(0, 1e6).unsqueeze(1) * u).clamp(min=0)
    return q / q.sum(dim=1, keepdim=True), found


def turn(problem: Problem, start: Tensor) -> Tensor:
    """Return the point q of C with the lowest cos(q - p, u), (B, K), from a start where it is negative.

    Minimizes ||(q - p) / t + u||^2 over t > 0 and q, which is jointly convex in (1 / t, q / t). For a given t the
    best q is the projection of the mirror point p - t u; for a given q the best t is t' = D^2 / -N. Where t' > t the
    optimum has a larger t: a root of t' - t, found by the secant rule within a bracket. As t is stationary there, an
    error in t costs its square in cos.
    """
    found = start.clone()
    rows = torch.arange(len(start), device=start.device)
    p, u, q, pulls, before = problem.p, problem.u, start, None, None
    t = best_step(q - p, u)
    low, high = torch.zeros_like(t), torch.full_like(t, torch.inf)
    lowest = cosine(q - p, u)
    for _ in range(STEPS):
        moved, pulls = problem.project(p - t * u, pulls)
        value = cosine(moved - p, u)
        q = torch.where((value < lowest).unsqueeze(1), moved, q)
        gained = lowest - value > GAIN  # a projection that is repeated from its pulls is closer
        lowest = torch.minimum(lowest, value)
        wanted = best_step(moved - p, u)
        off = wanted - t
        low, high = torch.where(off > 0, t, low), torch.where(off > 0, high, t)
        after = wanted
        if before is not None:  # halve the bracket if the secant leaves it
            slope = (off - before[1]) / torch.where(t == before[0], 1.0, t - before[0])
            secant = t - off / torch.where(slope == 0, -1.0, slope)
            halved = torch.where(high.isinf(), 2 * wanted, (low + high) / 2)
            after = torch.where((secant >= low) & (secant <= high) & (t != before[0]), secant, halved)
        going = (off.abs() > STILL * t).squeeze(1) | gained
        found[rows] = q
        if not going.any():
            break
        before, t = (t, off), after
        if not going.all():  # the others go on alone
            problem, rows = problem.rows(going), rows[going]
            p, u, q, t, low, high, lowest = (each[going] for each in (p, u, q, t, low, high, lowest))
            before = before[0][going], before[1][going]
            pulls = None if pulls is None else (pulls[0][going], pulls[1][going])
    return found


def best_step(v: Tensor, u: Tensor) -> Tensor:
    """Return D^2 / -N of v = q - p, (B, 1)."""
    return (dot(v, v) / (-dot(v, u)).clamp(min=TINY)).unsqueeze(1)


def descend(problem: Problem, start: Tensor) -> Tensor:
    """Return the same as ``turn``, for a Theta that is not the identity.

    Minimizes ||scale (q - p) + u||^2 in the Theta inner product. The scale has a closed form; q takes projected
    gradient steps with momentum, each of which is undone if the angle does not widen.
    """
    steep = torch.linalg.matrix_norm(problem.theta, ord=2).unsqueeze(1)
    q, previous, pulls = start, start, None
    lowest = cosine(q - problem.p, problem.u, problem.theta)
    speed = torch.ones_like(problem.tau).unsqueeze(1)
    for _ in range(ROUNDS):
        faster = (1 + (1 + 4 * speed**2).sqrt()) / 2
        moved, pulls = problem.project(target(problem, q + (speed - 1) / faster * (q - previous), steep), pulls)
        value = cosine(moved - problem.p, problem.u, problem.theta)
        worse = (value > lowest).unsqueeze(1)
        if worse.any():  # momentum overshot: step from the current point and reset the momentum
            again, pulls = problem.project(target(problem, q, steep), pulls)
            moved = torch.where(worse, again, moved)
            value = cosine(moved - problem.p, problem.u, problem.theta)
            faster = torch.where(worse, 1.0, faster)
        gain = lowest - value
        previous, q, speed = q, torch.where((gain >= 0).unsqueeze(1), moved, q), faster
        lowest = torch.minimum(lowest, value)
        if gain.max() <= torch.finfo(q.dtype).eps:
            break
    return q


def target(problem: Problem, q: Tensor, steep: Tensor) -> Tensor:
    """Return the points (B, K) after a gradient step at the best scale, before the projection."""
    v, u = q - problem.p, problem.u
    along, across = times(problem.theta, u), times(problem.theta, v)
    scale = (-dot(v, along) / dot(v, across).clamp(min=TINY)).clamp(min=1e-6).unsqueeze(1)
    return q - (across + along / scale) / steep
