"""Images of two sources, one behind the other: a transfer set's, and some that an adversary has besides."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad.datasets.base import Images, to_unit_range
from mad.datasets.held_out import chosen


@dataclass(frozen=True)
class Joined:
    """A stream of the images of a stream, and then of those of a tensor.

    Args:
        first: the stream.
        then: images of the same shape, uint8 or float in [0, 1], (n, C, H, W).
    """

    first: Images
    then: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        _, *sides = self.first.shape
        return (len(self), sides[0], sides[1], sides[2])

    def __len__(self) -> int:
        """Return N."""
        return len(self.first) + len(self.then)

    def __getitem__(self, row: int) -> Tensor:
        """Return one image, (C, H, W), of the type that its source has; ``batches`` puts both types into one range."""
        here = len(self.first)
        return self.first[row] if row < here else self.then[row - here]


def joined(images: Images, rows: Tensor, more: Tensor) -> Images:
    """Return the images of ``rows``, int64 (m,), and then further ones: (m + n, C, H, W), a tensor or a stream.

    Args:
        images: uint8 or float in [0, 1], (N, C, H, W), in memory or a stream.
        rows: which of them.
        more: uint8 or float in [0, 1], (n, C, H, W).
    """
    if not isinstance(images, Tensor):
        return Joined(chosen(images, rows), more)
    both = [images[rows], more.to(images.device)]
    return torch.cat(both if images.dtype == more.dtype else [to_unit_range(each) for each in both])
