"""Conformal tests: surprises of single scores, rules that combine them, and thresholds that hold in finite samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

CAP = 15.0  # surprises above this count as this in the learned rule
MOST = 80.0  # exp of it is finite in float32
TAIL = 0.9  # beyond this quantile a score's tail is taken to be exponential


def tails(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return honest scores (L, N), sorted, where each tail begins, and its mean length, (L, 1); for ``surprises``."""
    ordered = scores.sort(dim=1).values
    at = min(scores.shape[1] - 1, int(TAIL * scores.shape[1]))
    start, beyond = ordered[:, at : at + 1], ordered[:, at + 1 :] - ordered[:, at : at + 1]
    length = beyond.mean(dim=1, keepdim=True) if beyond.shape[1] else torch.ones_like(start)
    return ordered, start, length.clamp(min=1e-6)


def surprises(scores: Tensor, ordered: Tensor, start: Tensor, length: Tensor) -> Tensor:
    """Return -log p of scores (L, B): p is the share of honest scores that are as large, or that of their tail."""
    count = ordered.shape[1]
    above = count - torch.searchsorted(ordered, scores.contiguous())
    found = math.log(count + 1) - (above + 1.0).log()
    return torch.where(scores > start, -math.log(1 - TAIL) + (scores - start) / length, found)


def learned(found: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of capped surprises."""
    return found.clamp(max=CAP) @ weights


def fisher(found: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of surprises (Fisher, 1932)."""
    return found.sum(dim=1)


def harmonic(found: Tensor, weights: Tensor) -> Tensor:
    """Return -log of the harmonic mean of p-values (Wilson, PNAS 2019)."""
    return found.logsumexp(dim=1)


def cauchy(found: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of tan((1/2 - p) pi) (Liu and Xie, JASA 2020), which is near 1/(pi p) for small p.

    Large p count as 0.99, since one of nearly 1 would outweigh all small ones.
    """
    p = (-found.clamp(max=MOST)).exp().clamp(max=0.99)
    rough = (found.clamp(max=MOST)).exp() / math.pi
    return torch.where(p < 1e-4, rough, ((0.5 - p) * math.pi).tan()).mean(dim=1)


def bonferroni(found: Tensor, weights: Tensor) -> Tensor:
    """Return the largest surprise: that of the least p-value, whose correction no calibration needs."""
    return found.amax(dim=1)


def square(found: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of squared surprises, between Fisher's sum and the largest."""
    return found.square().sum(dim=1)


RULES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "learned": learned,
    "fisher": fisher,
    "harmonic": harmonic,
    "cauchy": cauchy,
    "bonferroni": bonferroni,
    "square": square,
}


def learned_weights(honest: Tensor, shifted: Tensor, share: float = 0.5) -> Tensor:
    """Return weights (L,), at least 0 and summing to 1, that tell honest surprises (N, L) from shifted ones (M, L).

    They are the coefficients of a logistic regression, in which both sides count alike, mixed with equal weights, so
    that no score is left out which the synthetic shifts happen not to need.

    Args:
        honest: surprises of honest images.
        shifted: surprises of shifted ones.
        share: share of the learned weights in the mixture; the rest is equal weights.
    """
    both = torch.cat([honest, shifted]).double().clamp(max=CAP)
    odd = torch.cat([torch.zeros(len(honest)), torch.ones(len(shifted))]).to(both)
    counts = torch.where(odd > 0, 1 / len(shifted), 1 / len(honest)) / 2
    width = both.shape[1]
    free = both.new_zeros(width + 1).requires_grad_()
    search = torch.optim.LBFGS([free], max_iter=200)

    def loss() -> Tensor:
        search.zero_grad()
        size = 0.1 * free[:-1].exp()
        logits = both @ size + free[-1]
        found = torch.nn.functional.binary_cross_entropy_with_logits(logits, odd, counts, reduction="sum")
        found = found + 1e-3 * size.sum()
        found.backward()
        return found

    with torch.enable_grad():
        search.step(loss)
    size = free.detach()[:-1].exp()
    if not size.isfinite().all() or size.sum() <= 0:
        size = torch.ones_like(size)
    return (share * size / size.sum() + (1 - share) / width).to(honest)


def groups_of(shares: Tensor, count: int, alpha: float, least: float = 2.0) -> Tensor:
    """Return the group of each class, int64 (K,): a class has one of its own if it has calibration images enough.

    Enough are those of which at least ``least`` are expected to be above the threshold of alpha. The others share group
    0, and take the smallest of those with enough along if they have not enough together: a group without a finite
    threshold would let everything pass. The groups are a function of other images' class shares, so calibration images
    stay exchangeable with queries.

    Args:
        shares: the share of each class, (K,), among images that are not for calibration.
        count: calibration images of all classes.
        alpha: share of honest queries that may be touched.
        least: see above.
    """
    own = shares * count * alpha >= least
    while own.any() and not own.all() and shares[~own].sum() * count * alpha < least:
        own[shares.where(own, torch.inf).argmin()] = False
    return torch.where(own, own.cumsum(dim=0), 0)


def thresholds(scores: Tensor, groups: Tensor, count: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Return for each group the threshold that at most a share alpha of honest scores exceeds, and two counts.

    With n calibration scores in a group the threshold is the k-th largest, k = floor(alpha (n + 1)): a new honest score
    is above it with a probability of at most k / (n + 1). With k = 0 it is infinite. The second tensor holds n and k.

    Args:
        scores: calibration scores, (N,).
        groups: the group of each, int64 (N,).
        count: number of groups.
        alpha: in [0, 1].
    """
    found = torch.full((count,), torch.inf, dtype=scores.dtype, device=scores.device)
    sizes = torch.zeros(count, 2, dtype=torch.int64)
    for group in range(count):
        own = scores[groups == group]
        k = math.floor(alpha * (len(own) + 1) + 1e-9)
        sizes[group] = torch.tensor([len(own), k])
        if k > len(own):
            found[group] = -torch.inf
        elif k:
            found[group] = own.topk(k).values[-1]
    return found, sizes
