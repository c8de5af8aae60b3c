"""ModelGuard-W's linear program (Tang et al., USENIX Security 2024), solved exactly for a batch of posteriors.

    minimize  sum_j log(y_j + 1e-6) q_j   over q on the simplex with ||q - y||_1 <= epsilon and q_top >= q_j + margin

Fix the cap s = q_top - margin of the n other classes. Sorted from the least likely, c_1 <= ... <= c_n are their costs.
By partial summation, their part of the sum is least where the mass A_i of the first i of them is largest, and all
bounds on it are reached at once:

    A_i = min(i s,  sum_{j <= i} min(y_j, s) + tau - (q_top - y_top)^+,  1 - q_top),   tau = epsilon / 2

What remains, f(s) = c_top s - sum_i (c_{i+1} - c_i) A_i + constant, is convex, and linear between at most 3 K points at
which another bound becomes the least or s passes a y_j. Each is the root of a linear equation. f is evaluated at all of
them, so the best one is the optimum. A row takes O(K log K).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

MARGIN = 1e-4  # of the published code: how far the top class stays above every other
OFFSET = 1e-6  # of the published code, which makes the cost of a probability of zero finite
PREFER = 1e-12  # a weight on moves of the top class, so that rounding does not choose between equally good answers
SMALL = 1e-300  # stands for a probability of zero in a quotient


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
    tau = epsilon / 2
    with torch.inference_mode():  # a tenth of the time of such small operations
        answer = solved(y, tau, min(margin, tau / y.shape[1]))
    return answer.clone()  # one that autograd may keep


def solved(y: Tensor, tau: float, margin: float) -> Tensor:
    """Return the answers (B, K) for half of the budget and a margin that every posterior can reach."""
    # Turned around and sorted, the first of equal top classes is the last.
    ordered, order = y.double().flip(1).sort(dim=1, stable=True)
    n = y.shape[1] - 1
    low, top = ordered.split([n, 1], dim=1)
    low = low.contiguous()
    sums = low.cumsum(dim=1)
    cap = best_cap(low, top, sums, (ordered + OFFSET).log_(), tau, margin)
    peak = cap + margin
    held = torch.minimum(low, cap).cumsum_(dim=1).add_(tau - (peak - top).clamp_(min=0))
    mass = held.minimum(ranks(n, y.device).each * cap).minimum(sums[:, -1:] + top - peak)
    answer = torch.cat([pad(mass, (1, 0)).diff(dim=1), peak], dim=1)
    return torch.empty_like(answer).scatter_(1, order, answer).flip(1).to(y.dtype)


class Ranks(NamedTuple):
    """The numbers 1 ... n in the forms that are used: float64, without the last or the first, whole, negative."""

    each: Tensor
    before: Tensor
    after: Tensor
    whole: Tensor
    minus: Tensor


@functools.cache
def ranks(n: int, device: torch.device) -> Ranks:
    """Return the numbers 1 ... n."""
    count = torch.arange(1, n + 1, dtype=torch.float64, device=device)
    return Ranks(count, count[:-1], count[1:], count.long(), -count)


def best_cap(low: Tensor, top: Tensor, sums: Tensor, price: Tensor, tau: float, margin: float) -> Tensor:
    """Return the best cap, (B, 1).

    Args:
        low: the classes other than the top one, (B, n), from the least likely.
        top: the top class, (B, 1).
        sums: the running sums of ``low``.
        price: the costs of all, (B, n + 1).
        tau: half of the budget.
        margin: how far the top class must be above the others.
    """
    n, level = low.shape[1], top - margin
    number = ranks(n, low.device)
    price = price - price[:, :1]  # q sums to a constant, so costs may be shifted; the first becomes 0
    cost, highest = price.split([n, 1], dim=1)
    rest, mass = sums[:, -1:], torch.cat([price[:, :1], sums], dim=1)
    whole = rest + level
    # Sums over i <= k of (c_{i+1} - c_i), which is ``cost``, of i times it, and of y_1 + ... + y_i times it; k < n.
    ranked = number.each * cost - cost.cumsum(dim=1)
    paid = cost * sums - (cost * low).cumsum(dim=1)
    # The bound i s is the least one up to these caps: then the budget binds, or the mass that there is.
    free = sums[:, :-1] + tau
    reach = torch.minimum(free / number.before, (free.minimum(rest) + level) / number.after).cummin(dim=1).values
    # The bound 1 - q_top is the least one from these caps on.
    roots = emptied(whole - tau, 1, low, mass)
    later = torch.full_like(level, torch.inf)
    points = [low, level, reach, roots]
    if bool((low > level).any()):  # classes almost tie with the top one
        later = emptied(rest - tau, 0, low, mass)
        points.append(later)
    least, most = torch.maximum(roots[:, -1:], whole / (n + 1)), rest.clamp(max=tau) + level
    ends = torch.where(roots <= level, roots, later)[:, :-1]
    caps = torch.cat([*points, least, most], dim=1).maximum(least).minimum(most)

    under, minus = torch.searchsorted(low, caps), -caps
    i = torch.searchsorted(-reach, minus, right=True)  # the bound i s is the least one for so many classes
    k = torch.searchsorted(-ends, minus, right=True).maximum(i)  # and 1 - q_top for all above so many
    e = torch.minimum(torch.maximum(under, i), k)
    pull = caps - level
    budget = tau - pull.clamp(min=0)
    below = mass.gather(1, under) - under * caps
    at_e, at_k = cost.gather(1, e), cost.gather(1, k)
    value = (ranked.gather(1, i) - ranked.gather(1, e) + ranked.gather(1, k) - highest) * caps
    value += paid.gather(1, e) - paid.gather(1, i) - budget * cost.gather(1, i)
    value += (budget + below + caps - whole) * at_k - below * at_e
    chosen = torch.add(-value, pull.abs(), alpha=PREFER).argmin(dim=1, keepdim=True)
    return caps.gather(1, chosen)


def emptied(held: Tensor, more: int, low: Tensor, mass: Tensor) -> Tensor:
    """Return for h = 1 ... n the cap s at which sum_{j <= h} min(y_j, s) = held - more s, (B, n).

    With e classes below the cap, s = (held - mass_e) / (h - e + more); the right e is the largest with y_e <= s. It is
    infinite where the sum stays below.
    """
    number = ranks(low.shape[1], low.device)
    edge = (mass[:, 1:] - held) / low.clamp(min=SMALL) - (number.each - more)
    e = torch.searchsorted(edge.cummax(dim=1).values, number.minus.expand_as(low).contiguous(), right=True)
    e = torch.minimum(e, number.whole)
    root = (held - mass.gather(1, e)) / (number.whole - e + more)
    return root if more else root.nan_to_num(nan=torch.inf, posinf=torch.inf)
