"""Gradients that are estimated from the values of a function alone."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_directions(count: int, like: Tensor, draw: torch.Generator) -> Tensor:
    """Return random unit vectors for each image, (count, B, C, H, W), uniform on the sphere."""
    drawn = torch.randn(count, *like.shape, generator=draw, device=like.device)
    return drawn / drawn.flatten(2).norm(dim=2).view(count, len(like), 1, 1, 1)


def forward_differences(values: Tensor, along: Tensor, step: float) -> Tensor:
    """Return the estimated gradients (B, C, H, W) of a function of each image: the mean of d (f_i - f_0) / step u_i.

    Args:
        values: (1 + m, B), the function at the images, and at a step along each of m directions.
        along: the directions u_i, unit vectors in d dimensions, (m, B, C, H, W).
        step: the length of the step.
    """
    slopes = (values[1:] - values[:1]) * (along[0, 0].numel() / step / len(along))
    return torch.einsum("mb,mbchw->bchw", slopes, along)
