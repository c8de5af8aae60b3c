"""The published solver (paper, section 4): the best corner of the simplex, as far as the budget allows."""

from __future__ import annotations

import torch
from torch import Tensor

from mad.solvers.metric import TINY, dot, times

NO_DIRECTION = 1e-7


def vertex(y: Tensor, p: Tensor, epsilon: float, theta: Tensor | None = None) -> Tensor:
    """Mix y with the one-hot posterior e_k of the largest H, as far as the L1 budget allows; return (B, K).

    With u = p - y, <u, p - e_k> = <u, p> - (Theta u)_k and ||p - e_k||^2 = <p, p> - 2 (Theta p)_k + Theta_kk, so all
    K scores take O(K) where Theta is the identity and O(K^2) elsewhere. ||y - e_k||_1 = 2 (1 - y_k) gives the step.
    """
    u = p - y
    along, toward = times(theta, u), times(theta, p)
    square = torch.add(dot(p, toward).unsqueeze(1), toward, alpha=-2)
    square = square.add_(1 if theta is None else theta.diagonal(dim1=1, dim2=2)).clamp_(min=TINY)
    # ||p - y|| is the same for all classes and does not change the argmin.
    score = (dot(u, toward).unsqueeze(1) - along).mul_(square.rsqrt_())
    # At p = y there is no direction to turn away from, and rounding must not choose one: the unnormalized objective
    # ||Theta^(1/2) (e_k - y)||^2 of the last layer still ranks the classes, the least likely first.
    peak = u.amax(dim=1, keepdim=True)  # u sums to zero: its largest entry is zero only if all are
    if len(y) and peak.amin().item() <= NO_DIRECTION:
        score = torch.where(peak > NO_DIRECTION, score, y)
    return mix(y, score.argmin(dim=1), epsilon)


def mix(y: Tensor, target: Tensor, epsilon: float) -> Tensor:
    """Move each y (B, K) straight toward the one-hot posterior of class ``target`` (B,), by L1 ``epsilon`` at most."""
    target = target.unsqueeze(1)
    step = (epsilon / (2 * (1 - y.gather(1, target)).clamp(min=TINY))).clamp(max=1)
    return (y * (1 - step)).scatter_add_(1, target, step)
