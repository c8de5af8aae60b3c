"""Held-out parts of a training split, for calibration and tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mad.datasets.base import Dataset, Images, Split, Stream
from mad.datasets.cached import cached
from mad.datasets.checked import split
from mad.errors import MadError
from mad.seeds import generator


@dataclass(frozen=True)
class Part:
    """A stream of some images of another stream.

    Args:
        images: the other stream.
        rows: the rows of its images, in order.
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
    """Return the images of ``rows``, int64 (B,), in that order: (B, C, H, W), a tensor or a stream."""
    return images[rows] if isinstance(images, Tensor) else Part(images, rows.tolist())


def divided(dataset: Dataset, share: float) -> tuple[Split, Split]:
    """Return two parts of a data set's training split: the training images, and the held-out images.

    The division depends only on the data set's name and the share, so victims of all seeds hold out the same images.

    Args:
        dataset: the data set.
        share: share of the images that are held out, in (0, 1).

    Raises:
        MadError: if either part would be empty, or if the split is not valid (see ``checked.split``).
    """
    return cached(dataset, f"divided {share}", lambda: parted(dataset, share))


def parted(dataset: Dataset, share: float) -> tuple[Split, Split]:
    """Divide a data set's training split; see ``divided``."""
    whole = split(dataset, "train")
    size = len(whole.labels)
    count = round(share * size)
    if not 0 < count < size:
        raise MadError(f"dataset {dataset.name}: {share:g} of its {size} training images is {count}: change the share")
    order = torch.randperm(size, generator=generator(0, f"validation of {dataset.name}"))
    rest, held = (Split(chosen(whole.images, rows), whole.labels[rows]) for rows in (order[count:], order[:count]))
    return rest, held
