"""The normalization of pixels inside networks for color images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LARGE = 64
"""From this many pixels a side on, networks take the form that ImageNet's have; below, the form for CIFAR's."""


def large(shape: Sequence[int]) -> bool:
    """Return whether images of a shape (C, H, W) get ImageNet's form of a network: from 64 pixels on."""
    return min(shape[1:]) >= LARGE


class Standardize(nn.Module):
    """Subtract a mean and divide by a standard deviation per channel; average both for other numbers of channels."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            value = torch.tensor(values, dtype=torch.float32)
            value = value if len(value) == channels else value.mean().repeat(channels)
            self.register_buffer(name, value.view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to the same shape."""
        return (images - self.mean) / self.std


def standardize(
    shape: Sequence[int], mean: Sequence[float] | None, std: Sequence[float] | None, weights: str | None
) -> Standardize:
    """Return the normalization layer for images (C, H, W).

    The default mean and standard deviation are CIFAR's, or ImageNet's for large images and for ImageNet weights.
    """
    photographs = bool(weights) or large(shape)
    usual = (IMAGENET_MEAN, IMAGENET_STD) if photographs else (CIFAR_MEAN, CIFAR_STD)
    return Standardize(shape[0], mean or usual[0], std or usual[1])
