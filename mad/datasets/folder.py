"""A directory of images, as an adversary would gather them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mad.datasets import base
from mad.datasets.base import Images
from mad.errors import MadError

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True)
class ImageFolder:
    """Every image below ``path``, converted to the victim's channels, resized and centre-cropped to its size."""

    path: str | None = field(default=None, compare=False)
    name: str = "image_folder"
    content: Any = field(default=None)

    def __post_init__(self) -> None:
        if not self.path or not isinstance(self.path, (str, Path)) or not Path(self.path).is_dir():
            raise MadError(f"pool.path must be a folder of images, got {self.path!r}; set pool.path=FOLDER")
        if not self.files:
            raise MadError(f"no image below pool.path={self.path}; looked for {' '.join(sorted(ENDINGS))}")
        # The folder may lie anywhere: what is in it decides the numbers.
        listing = [
            [file.relative_to(self.path).as_posix(), sha256(file.read_bytes()).hexdigest()] for file in self.files
        ]
        object.__setattr__(self, "content", listing)

    @cached_property
    def files(self) -> list[Path]:
        """The image files in a fixed order."""
        return sorted(file for file in Path(str(self.path)).rglob("*") if file.suffix.lower() in ENDINGS)

    def images(self, shape: tuple[int, int, int]) -> Images:
        """Return the images as uint8 of (N, *shape): in memory, or as a stream where they are above ``WHOLE`` bytes."""
        if shape[0] not in (1, 3):
            raise MadError(f"an image folder gives 1 or 3 channels, the victim takes {shape[0]}")
        return loaded(Files(self.files, shape))

    def labels(self) -> Tensor:
        """Return which of the folders right below ``path`` each image lies in; those in none are a class too."""
        tops = [file.relative_to(str(self.path)).parts[:-1][:1] for file in self.files]
        places = {top: place for place, top in enumerate(sorted(set(tops)))}
        return torch.tensor([places[top] for top in tops])


@dataclass(frozen=True)
class Files:
    """Image files, each decoded when it is asked for: converted, resized and centre-cropped.

    Args:
        files: where they lie.
        size: (C, H, W) to convert to.
        border: the share of an image, in [0, 0.5), that is cut off on each side first; 1/16 before resizing to 224
            pixels is the same as resizing to 256 and cutting out the centre.
    """

    files: Sequence[Path | str]
    size: tuple[int, int, int]
    border: float = 0.0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return (len(self.files), *self.size)

    def __len__(self) -> int:
        """Return N."""
        return len(self.files)

    def __getitem__(self, row: int) -> Tensor:
        """Return one image, uint8 (C, H, W)."""
        import numpy as np
        from PIL import Image, ImageOps, UnidentifiedImageError

        (channels, height, width), file = self.size, self.files[row]
        try:
            with Image.open(file) as image:
                fitted = ImageOps.fit(
                    image.convert("L" if channels == 1 else "RGB"), (width, height), bleed=self.border
                )
        except (UnidentifiedImageError, OSError) as error:
            raise MadError(f"{file} cannot be read as an image; remove it from the pool") from error
        return torch.from_numpy(np.array(fitted)).view(height, width, channels).permute(2, 0, 1)


def loaded(stream: Files) -> Images:
    """Return a stream, or its images in memory where they are no more than ``WHOLE`` bytes."""
    return stream if math.prod(stream.shape) > base.WHOLE else torch.stack([stream[row] for row in range(len(stream))])
