"""ModelGuard-W's linear program (Tang et al., USENIX Security 2024), solved exactly for a batch of posteriors.

    minimize  sum_j log(y_j + 1e-6) q_j   over q on the simplex with ||q - y||_1 <= epsilon and q_top >= q_j + margin

Fix the cap s = q_top - margin of the other classes. What remains is a knapsack: mass goes from the most likely classes
to the least likely ones, each of which holds up to s. Its value f(s) is convex and linear between the points at which
another class is filled, emptied or pressed to the cap. There are at most 4 K of them, each the root of a linear
equation; f is evaluated at all of them, so the best one is the optimum. A row takes O(K log K).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

MARGIN = 1e-4  # of the published code: how far the top class stays above every other
OFFSET = 1e-6  # of the published code, which makes the cost of a probability of zero finite
PREFER = 1e-12  # a weight on moves of the top class, so that rounding does not choose between equally good answers
ABSENT = 2.0  # a probability that no cap reaches


class Sums(NamedTuple):
    """Sums over the i least likely of the n classes other than the top one, for i = 0 ... n: (B, n + 1) each.

    ``mass`` sums y, ``cost`` the costs, ``paid`` costs times y; ``y`` and ``price`` are y and the cost of class i + 1,
    and ``last`` is the cost of class i.
    """

    mass: Tensor
    cost: Tensor
    paid: Tensor
    y: Tensor
    price: Tensor
    last: Tensor


class Plan(NamedTuple):
    """A cap s of the classes other than the top one, how much they receive and how much they give, (B, n) each."""

    cap: Tensor
    up: Tensor
    down: Tensor


def modelguard(y: Tensor, epsilon: float, margin: float = MARGIN) -> Tensor:
    """Return the answers of ModelGuard-W to posteriors.

    Args:
        y: posteriors (B, K), K at least 2.
        epsilon: L1 budget in [0, 2].
        margin: how far the top class, the first of equals, must be above every other class; at most epsilon / (2 K) is
            asked for, which every posterior can reach.

    Returns:
        Posteriors (B, K) of y's dtype, computed in float64.
    """
    classes, tau = y.shape[1], epsilon / 2
    margin = min(margin, tau / classes)
    ordered, order = y.double().sort(dim=1, descending=True, stable=True)
    prices = (ordered + OFFSET).log()
    top, low = ordered[:, :1], ordered[:, 1:].flip(1)
    sums = summed(low, prices[:, 1:].flip(1))
    plan = best(top, low, prices[:, :1], sums, tau, margin)
    others = moved(low, plan)
    answer = torch.cat([plan.cap + margin, others.flip(1)], dim=1)
    return torch.empty_like(answer).scatter_(1, order, answer).to(y.dtype)


def summed(low: Tensor, price: Tensor) -> Sums:
    """Return the sums over classes (B, n), ordered from the least likely, and their costs."""
    mass, cost, paid = pad(torch.stack([low, price, price * low], dim=1).cumsum(dim=2), (1, 0)).unbind(1)
    return Sums(mass, cost, paid, pad(low, (0, 1), value=ABSENT), pad(price, (0, 1)), pad(price, (1, 0)))


def best(top: Tensor, low: Tensor, price: Tensor, sums: Sums, tau: float, margin: float) -> Plan:
    """Return the plan of the best cap, (B, 1) each; ``top`` and ``price`` (B, 1) are of the top class."""
    n = low.shape[1]
    count = torch.arange(1, n + 1, device=low.device)
    rest, held = sums.mass[:, -1:], sums.mass[:, 1:]
    whole = rest + top - margin  # the mass that is shared at caps s: n s for the others, and s for the top class
    full = whole / (count + 1)
    # Up to which cap the first i classes can be filled: by the budget, by what the top class leaves of it if it
    # receives, too, and by the mass there is.
    reach = torch.minimum((tau + held) / count, (tau + top - margin + held) / (count + 1))
    reach = torch.minimum(reach, full).cummin(dim=1).values
    # At which caps the others give all of classes h + 1 ... n, and the classes above the cap are pressed to it.
    emptied = pressed(rest - tau - margin + top, 1, low, sums.mass)  # the top class gives, too
    emptied_up = pressed(rest - tau, 0, low, sums.mass)  # it receives
    least = torch.maximum(emptied[:, -1:], full[:, -1:])
    most = (top + tau).minimum(rest + top) - margin
    points = torch.cat([low, top - margin, reach, emptied, emptied_up, least, most], dim=1)
    caps = points.maximum(least).minimum(most)

    pull = caps + margin - top  # what the top class receives
    under = torch.searchsorted(low, caps)  # classes that can receive
    i = torch.searchsorted(-reach, -caps, right=True).minimum(under)  # classes that are filled
    mass, cost, paid, following, follow_price = (each.gather(1, i) for each in sums[:5])
    filled = i * caps - mass
    room = (whole - caps - i * caps).minimum(caps) - following  # of the class after them
    part = (tau - pull.clamp(min=0) - filled).minimum(room).clamp(min=0)
    up = filled + part
    down = up + pull

    forced = rest - sums.mass.gather(1, under) - (n - under) * caps
    at_cap = ((down - forced) / caps).long().clamp(min=0)  # emptied classes, if only some of those above the cap are
    gone = (rest - sums.mass).flip(1)[:, 1:].contiguous()  # what the n - h most likely hold
    beyond = torch.searchsorted(gone, down, right=True)
    h = n - torch.where(at_cap < n - under, at_cap, beyond)
    e = torch.minimum(under, h)  # classes that are neither emptied nor pressed to the cap
    given = down - (rest - sums.mass.gather(1, e) - (h - e) * caps)
    value = price * caps + caps * (cost + sums.cost.gather(1, h) - sums.cost.gather(1, e)) + part * follow_price
    value += sums.paid.gather(1, e) - paid - given * sums.last.gather(1, h)
    chosen = torch.add(value, pull.abs(), alpha=PREFER).argmin(dim=1, keepdim=True)
    return Plan(*(each.gather(1, chosen) for each in (caps, up, down)))


def pressed(held: Tensor, more: int, low: Tensor, mass: Tensor) -> Tensor:
    """Return for h = 0 ... n the cap s at which sum_j<=h (y_j - s)^+ = held - mass_h' + more s, (B, n + 1).

    With e classes below the cap, s = (held - mass_e) / (h - e + more); the right e is the largest with y_e <= s.
    """
    n = low.shape[1]
    h = torch.arange(n + 1, device=low.device)
    edge = (held - mass[:, 1:]) / low.clamp(min=1e-300) + (h[1:] - more)
    e = torch.searchsorted(-edge.cummin(dim=1).values, -h.double().expand_as(mass).contiguous(), right=True)
    e = torch.minimum(e, h)
    return (held - mass.gather(1, e)) / (h - e + more).clamp(min=0.5)


def moved(low: Tensor, plan: Plan) -> Tensor:
    """Return the classes other than the top one (B, n) after a plan: least likely first filled, most likely emptied."""
    room = (plan.cap - low).clamp(min=0)
    kept = torch.minimum(low, plan.cap)
    up = (plan.up - (room.cumsum(dim=1) - room)).clamp(min=0).minimum(room)
    spare = plan.down - (low - kept).sum(dim=1, keepdim=True)
    above = kept.sum(dim=1, keepdim=True) - kept.cumsum(dim=1)
    return kept + up - (spare - above).clamp(min=0).minimum(kept)
