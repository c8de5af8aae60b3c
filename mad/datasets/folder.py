"""A directory of images, as an adversary would gather them."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, NoReturn

import torch
from torch import Tensor

from mad.datasets import base, pictures
from mad.datasets.base import Images
from mad.datasets.checked import say
from mad.datasets.content import checksum_of, place
from mad.errors import MadError

ENDINGS = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".avif", ".jp2", ".tif", ".tiff", ".tga"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
}
SYSTEMS = {"thumbs.db", "desktop.ini"}  # what file managers leave, beside hidden files


@dataclass(frozen=True)
class ImageFolder:
    """Every image below ``path``, as ``pictures.pixels`` reads it, resized and centre-cropped to the victim's size.

    Links are followed. Hidden files and folders are passed over; files whose endings name no image are, too, and a line
    says so. Of a file with several frames the first is taken, and a line says so. The names and the bytes of all
    images are part of the fingerprint: they are read once in a process, a gigabyte in some seconds.

    Args:
        path: the folder.
        name: what the pool is called.
    """

    path: str | None = field(default=None, compare=False)
    name: str = "image_folder"
    content: str = ""
    version: ClassVar[int] = 2  # 1 clipped 16 bits, and dropped transparency and orientation

    def __post_init__(self) -> None:
        if not self.files:
            raise MadError(f"no image below pool.path={self.path}; looked for {' '.join(sorted(ENDINGS))}")
        # The folder may lie anywhere: what is in it decides the numbers.
        object.__setattr__(self, "content", self._content())

    def _content(self) -> str:
        """Return the checksum of the images' names and bytes; what did not change since is not read again."""
        checksum = sha256()
        for file in self.files:
            try:
                checksum.update(f"{file.relative_to(self.place).as_posix()}\0{checksum_of(file)}\n".encode())
            except (OSError, ValueError) as error:
                raise MadError(f"{file} cannot be read ({error}); remove it from the pool") from error
        return checksum.hexdigest()

    @property
    def place(self) -> Path:
        """The folder.

        Raises:
            MadError: if it is none.
        """
        try:
            found = place(self.path) if self.path and isinstance(self.path, (str, Path)) else None
            if found is not None and found.is_dir():
                return found
        except OSError:  # a name that is too long
            pass
        raise MadError(f"pool.path must be a folder of images, got {self.path!r}; set pool.path=FOLDER")

    @cached_property
    def files(self) -> list[Path]:
        """The image files in a fixed order."""
        every = list(walked(self.place))
        images = sorted(file for file in every if file.suffix.lower() in ENDINGS)
        others = Counter(file.suffix.lower() or file.name for file in every if file.suffix.lower() not in ENDINGS)
        if images and others:
            some = ", ".join(f"{count} {ending}" for ending, count in others.most_common(5))
            say(f"pool {self.name}: left out {others.total()} files below {self.place} that are no images ({some})")
        return images

    def images(self, shape: tuple[int, int, int]) -> Images:
        """Return the images as uint8 of (N, *shape): in memory, or as a stream where they are above ``WHOLE`` bytes.

        Raises:
            MadError: if one is none, as far as its header tells where they are a stream.
        """
        if shape[0] not in (1, 3):
            raise MadError(f"an image folder gives 1 or 3 channels, the victim takes {shape[0]}")
        several = [file for file in self.files if pictures.check(file) > 1]
        if several:
            say(
                f"pool {self.name}: took only the first frame of {len(several)} files with several ({several[0]}); "
                "save further frames as files of their own"
            )
        if self._content() != self.content:  # the cell's name stands for other images
            raise MadError(f"images below pool.path={self.path} changed after the start: start again")
        return loaded(Files(self.files, shape))

    def labels(self) -> Tensor:
        """Return which of the folders right below ``path`` each image lies in; those in none are a class too."""
        tops = [file.relative_to(self.place).parts[:-1][:1] for file in self.files]
        places = {top: number for number, top in enumerate(sorted(set(tops)))}
        return torch.tensor([places[top] for top in tops])

    def contents(self) -> None:
        """Return nothing more: ``content`` is what they are."""


def visible(name: str) -> bool:
    """Whether a file or folder is neither hidden nor what a file manager left."""
    return not name.startswith(".") and name.lower() not in SYSTEMS


def walked(top: Path) -> Iterator[Path]:
    """Yield the visible files below a folder; links are followed.

    Raises:
        MadError: if a folder cannot be read, a link leads nowhere or back up, or what is named an image is no file.
    """

    def stop(error: OSError) -> NoReturn:
        raise MadError(f"{error.filename}: {error.strerror}; make it readable, or remove it from the pool") from error

    for folder, names, files in os.walk(top, followlinks=True, onerror=stop):
        names[:] = [name for name in names if visible(name)]
        for link in (Path(folder, name) for name in names):
            if link.is_symlink() and link.resolve() in above(Path(folder)):
                raise MadError(f"{link} is a link to a folder that it lies in; remove the link")
        for file in (Path(folder, name) for name in files if visible(name)):
            if file.is_symlink() and not file.exists():
                raise MadError(f"{file} is a link to {os.readlink(file)}, which is not there; mend or remove the link")
            if file.suffix.lower() in ENDINGS and not file.is_file():
                raise MadError(f"{file} is no regular file; remove it from the pool")
            yield file


def above(folder: Path) -> set[Path]:
    """Return a folder and all above it, on the way taken and without links: a walk into one of them would not end."""
    real = folder.resolve()
    return {real, *real.parents, *(parent.resolve() for parent in folder.absolute().parents)}


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
        from PIL import ImageOps

        channels, height, width = self.size
        fitted = ImageOps.fit(pictures.pixels(self.files[row], channels), (width, height), bleed=self.border)
        return torch.from_numpy(np.array(fitted)).view(height, width, channels).permute(2, 0, 1)


def loaded(stream: Files) -> Images:
    """Return a stream, or its images in memory where they are no more than ``WHOLE`` bytes."""
    return stream if math.prod(stream.shape) > base.WHOLE else torch.stack([stream[row] for row in range(len(stream))])
