"""A pool's images in the victim's shape: what an adversary does whose images have another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mad.datasets.base import Images, Stream, batch_limit

LUMA = (0.299, 0.587, 0.114)
CHUNK = 1000  # images


@dataclass(frozen=True)
class Resized:
    """A stream of another stream's images, each resized when it is needed.

    Args:
        images: the other stream.
        size: (C, H, W) of the images to return.
    """

    images: Stream
    size: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return (len(self.images), *self.size)

    def __len__(self) -> int:
        """Return N."""
        return len(self.images)

    def __getitem__(self, row: int) -> Tensor:
        """Return one image, (C, H, W)."""
        return tensor(self.images[row][None], self.size)[0]


def resized(images: Images, shape: Sequence[int]) -> Images:
    """Return images in a shape (C, H, W), in their type: center-cropped to its proportions, then resized.

    Color becomes gray by its luma; gray becomes three equal channels.

    Args:
        images: uint8 or float, (N, 1, h, w) or (N, 3, h, w); a tensor or a stream.
        shape: (C, H, W), with 1 or 3 channels.
    """
    size = (int(shape[0]), int(shape[1]), int(shape[2]))
    if not isinstance(images, Tensor):
        return Resized(images, size)
    parts = images.split(batch_limit(CHUNK, [max(a, b) for a, b in zip(images.shape[1:], size, strict=True)]))
    return torch.cat([tensor(part, size) for part in parts])


def fits(found: Sequence[int], shape: Sequence[int]) -> bool:
    """Return whether images (N, C, H, W) of a shape can be brought to a shape (C, H, W)."""
    return len(found) == 4 and found[1] in (1, 3) and shape[0] in (1, 3) and min(found[2:]) > 0


def tensor(images: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Return a batch in a size (C, H, W); see ``resized``."""
    channels, height, width = size
    values = images.float()
    if values.shape[1] == 3 and channels == 1:
        values = (values * torch.tensor(LUMA).view(3, 1, 1)).sum(dim=1, keepdim=True)
    old = values.shape[2:]
    scale = min(old[0] / height, old[1] / width)
    crop = [max(1, min(have, round(want * scale))) for have, want in zip(old, (height, width), strict=True)]
    top, left = ((have - keep) // 2 for have, keep in zip(old, crop, strict=True))
    values = values[:, :, top : top + crop[0], left : left + crop[1]]
    values = F.interpolate(values, (height, width), mode="bilinear", antialias=True, align_corners=False)
    values = values.expand(-1, channels, -1, -1)
    if images.dtype == torch.uint8:
        return values.round().clamp(0, 255).to(torch.uint8).contiguous()
    return values.clamp(0, 1).to(images.dtype).contiguous()
