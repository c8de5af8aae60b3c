"""MAD as the published code runs it: one image at a time, K backward passes, and K products with K x D gradients.

The slow twin that ``query.py`` is measured against. Written from the method's description: last layer's weights,
normalised objective, best one-hot corner, straight-line step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def answer(victim: nn.Module, surrogate: nn.Module, weight: Tensor, image: Tensor, epsilon: float) -> Tensor:
    """Return the defended posterior (1, K) of one image (1, C, H, W); ``weight`` is the surrogate's last layer's."""
    with torch.no_grad():
        y = F.softmax(victim(image), dim=1)[0]
    losses = -F.log_softmax(surrogate(image), dim=1)[0]
    rows = [torch.autograd.grad(loss, weight, retain_graph=True)[0].flatten() for loss in losses]
    gradients = torch.stack(rows)  # (K, D)

    def deviation(corner: Tensor) -> Tensor:
        poisoned, clean = gradients.T @ corner, gradients.T @ y
        return (poisoned / poisoned.norm() - clean / clean.norm()).square().sum()

    corners = torch.eye(len(y), device=y.device)
    best = corners[max(range(len(y)), key=lambda k: deviation(corners[k]).item())]
    step = (epsilon / ((y - best).abs().sum() + 1e-7)).clamp(max=1)
    return ((1 - step) * y + step * best).unsqueeze(0)
