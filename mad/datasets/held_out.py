"""A part of the training split that no victim learns from, to calibrate and tune on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mad.datasets.base import Dataset, Images, Split, Stream
from mad.datasets.checked import split
from mad.errors import MadError
from mad.seeds import generator


@dataclass(frozen=True)
class Part:
    """Some images of a stream.

    Args:
        images: the stream.
        rows: which of its images, in order.
    """

    images: Stream
    rows: Sequence[int]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return (len(self.rows), *self.images.shape[1:])

    def __len__(self) -> int:
        """Return N."""
        return len(self.rows)

    def __getitem__(self, row: int) -> Tensor:
        """Return one image, uint8 (C, H, W)."""
        return self.images[self.rows[row]]


def chosen(images: Images, rows: Tensor) -> Images:
    """Return some images, in the order of ``rows``, int64 (B,)."""
    return images[rows] if isinstance(images, Tensor) else Part(images, rows.tolist())


def divided(dataset: Dataset, share: float) -> tuple[Split, Split]:
    """Return a data set's training split without a share of it, and that share.

    Which images these are depends on the data set's name and the share only: victims of all seeds agree on it.

    Args:
        dataset: the data set.
        share: in (0, 1).

    Raises:
        MadError: if either part would be empty; or as ``checked.split`` does.
    """
    whole = split(dataset, "train")
    size = len(whole.labels)
    count = round(share * size)
    if not 0 < count < size:
        raise MadError(f"dataset {dataset.name}: {share:g} of its {size} training images is {count}: change the share")
    order = torch.randperm(size, generator=generator(0, f"validation of {dataset.name}"))
    rest, held = (Split(chosen(whole.images, rows), whole.labels[rows]) for rows in (order[count:], order[:count]))
    return rest, held
