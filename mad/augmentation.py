"""Random changes of training images: a whole batch at a time, on its own device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

PAD = 4


def crop(images: Tensor, draw: Generator) -> Tensor:
    """Return images (B, C, H, W) of the same type, each moved by up to ``PAD`` pixels, with zeros where none were."""
    height, width = images.shape[2:]
    padded = F.pad(images, [PAD] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (B, C, top, left, H, W)
    top, left = torch.randint(2 * PAD + 1, (2, len(images)), generator=draw).to(images.device)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def flip(images: Tensor, draw: Generator) -> Tensor:
    """Return images (B, C, H, W), each mirrored left to right or not, with equal chances."""
    mirrored = torch.rand(len(images), generator=draw).lt(0.5).to(images.device)
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


def augmented(images: Tensor, kind: str, draw: Generator) -> Tensor:
    """Return images changed as ``kind`` says: ``none``, ``crop`` or ``crop_flip``; ``draw`` is a CPU generator."""
    if kind == "none":
        return images
    moved = crop(images, draw)
    return flip(moved, draw) if kind == "crop_flip" else moved
