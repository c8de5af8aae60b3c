"""The global maximum of the angular objective over everything the budget allows.

H = 2 - 2 cos(q - p, u), so the angle between q - p and u = y - p is to be as wide as possible. Three cases:

1. **Mirror.** q = p + t (p - y), t > 0, turns the gradient right round: cos = -1, which nothing can beat. It lies
   within the budget iff (1 + t) ||p - y||_1 <= epsilon, and on the simplex iff t (y_k - p_k) <= p_k for every k.
2. **Obtuse.** Some allowed q has <q - p, u> < 0. There {cos <= c}, c < 0, is a convex cone, so cos is quasi-convex and
   its lowest value is reached by descent: the problem is to find the point of the convex cone spanned by the allowed
   q - p that is nearest to -u.
3. **Acute.** No allowed q has. Then {cos >= c} is a convex cone, cos is quasi-concave, and its lowest value is at an
   extreme point. There are too many to list; ``branch`` finds the best one and proves that it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mad.solvers.metric import TINY, cosine, dot, times
from mad.solvers.problem import Problem
from mad.solvers.receiver import OneReceiver
from mad.solvers.vertex import NO_DIRECTION, vertex

ROUNDS = 300  # of the descent; it stops earlier once nothing moves


def exact(
    y: Tensor, p: Tensor, epsilon: float, theta: Tensor | None = None, *, keep_top: bool = False
) -> Tensor:
    """Return defended posteriors (B, K) with the largest H that the L1 budget allows.

    Args:
        y: clean posteriors (B, K).
        p: the surrogate's posteriors (B, K).
        epsilon: L1 budget in [0, 2].
        theta: inner products of the surrogate's gradients (B, K, K); None for its last linear layer.
        keep_top: only answers whose top class is that of y.
    """
    if epsilon == 0 or not len(y):
        return y
    tau = torch.full_like(y[:, 0], epsilon / 2)
    problem = Problem(y, p, tau, theta, y.argmax(dim=1) if keep_top else None)
    best = problem.feasible(vertex(y, p, epsilon, theta))

    turned, found = mirror(problem)
    undecided = ~found & (length(problem) > NO_DIRECTION)
    best = torch.where(found.unsqueeze(1), turned, best)
    rows = undecided.nonzero().squeeze(1)
    if not len(rows):
        return best
    rest = problem.rows(rows)
    start = rest.lowest(times(rest.theta, rest.u))
    obtuse = cosine(start - rest.p, rest.u, rest.theta) < 0
    answer = best[rows]
    if obtuse.any():
        answer[obtuse] = descend(rest.rows(obtuse), start[obtuse])
    if not obtuse.all():
        answer[~obtuse] = OneReceiver(rest.rows(~obtuse), answer[~obtuse]).run()
    return best.index_copy(0, rows, keep_better(rest, answer, best[rows]))


def length(problem: Problem) -> Tensor:
    """Return ||u||, (B,), in the Euclidean metric."""
    return problem.u.norm(dim=1)


def keep_better(problem: Problem, q: Tensor, other: Tensor) -> Tensor:
    """Return, row by row, the posterior at the wider angle."""
    angles = [cosine(each - problem.p, problem.u, problem.theta) for each in (q, other)]
    return torch.where((angles[0] <= angles[1]).unsqueeze(1), q, other)


def mirror(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return p + t (p - y) with the largest t allowed (B, K), and whether there is one (B,)."""
    y, p, u = problem.y, problem.p, problem.u
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
    # A gradient that has all but vanished has no direction: t must leave one.
    found = (most * u.norm(dim=1) > NO_DIRECTION) & (most >= least)
    q = (p - most.clamp(0, 1e6).unsqueeze(1) * u).clamp(min=0)
    return q / q.sum(dim=1, keepdim=True), found & (u.norm(dim=1) > NO_DIRECTION)


def descend(problem: Problem, start: Tensor) -> Tensor:
    """Return the point q of C with the lowest cos(q - p, u), (B, K), from a start where it is negative.

    Minimises ||scale (q - p) + u||^2, jointly convex in (scale, scale q): the scale in closed form, q by a projected
    gradient step, each undone where the angle does not widen. With Theta the identity that step lands on the exact
    minimum for its scale.
    """
    steep = 1.0 if problem.theta is None else torch.linalg.matrix_norm(problem.theta, ord=2).unsqueeze(1)
    q, previous = start, start
    lowest = cosine(q - problem.p, problem.u, problem.theta)
    speed = torch.ones_like(problem.tau).unsqueeze(1)
    for _ in range(ROUNDS):
        faster = (1 + (1 + 4 * speed**2).sqrt()) / 2
        ahead = q + (speed - 1) / faster * (q - previous)
        moved = _step(problem, ahead, steep)
        value = cosine(moved - problem.p, problem.u, problem.theta)
        worse = value > lowest
        if worse.any():  # momentum overshot: step from where it stands, and start the momentum anew
            plain = _step(problem, q, steep)
            moved = torch.where(worse.unsqueeze(1), plain, moved)
            value = cosine(moved - problem.p, problem.u, problem.theta)
            faster = torch.where(worse.unsqueeze(1), 1.0, faster)
        gain = (lowest - value).clamp(min=0)
        previous, q, speed = q, torch.where((value <= lowest).unsqueeze(1), moved, q), faster
        lowest = torch.minimum(lowest, value)
        if gain.max() <= torch.finfo(q.dtype).eps:
            break
    return q


def _step(problem: Problem, q: Tensor, steep: Tensor | float) -> Tensor:
    v, u = q - problem.p, problem.u
    along, across = times(problem.theta, u), times(problem.theta, v)
    scale = (-dot(v, along) / dot(v, across).clamp(min=TINY)).clamp(min=1e-6).unsqueeze(1)
    return problem.project(q - (across + along / scale) / steep, rounds=100)
