"""Synthetic shifts of the owner's own images, on which a gate learns what honest images do not look like."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def shifts(images: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
    """Return shifted copies of images (N, C, H, W) in [0, 1], by name; no other data go into them.

    Args:
        images: honest images, of which pairs are mixed.
        draw: a CPU generator.
    """
    others = images[torch.randperm(len(images), generator=draw)]
    noise = torch.randn(images.shape, generator=draw)
    height, width = images.shape[2] // 2, images.shape[3] // 2
    left = torch.cat([images[:, :, :, :width], others[:, :, :, width:]], dim=3)
    upper = torch.cat([images[:, :, :height], others[:, :, height:]], dim=2)
    square = images.shape[2] == images.shape[3]
    found = {
        "noise": images + 0.15 * noise,
        "much noise": images + 0.4 * noise,
        "blur": blurred(images),
        "a quarter turn": images.rot90(1, (2, 3)) if square else images.flip(2),
        "three quarter turns": images.rot90(3, (2, 3)) if square else images.flip(2, 3),
        "upside down": images.flip(2),
        "mirrored": images.flip(3),
        "an eighth turn": turned(images, math.pi / 4),
        "mean of two": (images + others) / 2,
        "maximum of two": torch.maximum(images, others),
        "left and right of two": left,
        "upper and lower of two": upper,
        "patches": images.roll((height, width), (2, 3)),
        "shrunk": shrunk(images, 0.7),
        "inverted": 1 - images,
        "half the contrast": images / 2,
    }
    return {name: each.clamp(0, 1) for name, each in found.items()}


def blurred(images: Tensor) -> Tensor:
    """Return images whose pixels are means of 5 x 5."""
    return F.avg_pool2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), 5, stride=1)


def turned(images: Tensor, angle: float) -> Tensor:
    """Return images that are turned about their center by an angle in radians."""
    c, s = math.cos(angle), math.sin(angle)
    grid = F.affine_grid(
        images.new_tensor([[c, -s, 0], [s, c, 0]]).expand(len(images), 2, 3), list(images.shape), False
    )
    return F.grid_sample(images, grid, align_corners=False)


def shrunk(images: Tensor, factor: float) -> Tensor:
    """Return images that are shrunk to the center, with a black frame."""
    size = [max(1, round(factor * side)) for side in images.shape[2:]]
    small = F.interpolate(images, size, mode="bilinear", antialias=True)
    top, left = ((side - own) // 2 for side, own in zip(images.shape[2:], size, strict=True))
    return F.pad(small, (left, images.shape[3] - size[1] - left, top, images.shape[2] - size[0] - top))
