"""The two contracts of image data."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Split(NamedTuple):
    """Images, uint8 of shape (N, C, H, W), and their labels, int64 of shape (N,)."""

    images: Tensor
    labels: Tensor


class Dataset(Protocol):
    """What a victim is trained and judged on."""

    name: str
    classes: int
    shape: tuple[int, int, int]

    def train(self) -> Split:
        """Return the training split."""

    def test(self) -> Split:
        """Return the held-out split; nothing is ever tuned on it."""


class Pool(Protocol):
    """The adversary's own images."""

    name: str

    def images(self, shape: tuple[int, int, int]) -> Tensor:
        """Return the images, uint8 (N, C, H, W); ``shape`` is (C, H, W) of what the victim takes."""


def unit(images: Tensor) -> Tensor:
    """Return images as floats in [0, 1]: what models and the API take."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images
