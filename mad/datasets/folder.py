"""A folder of images as a pool, such as images that an adversary collected."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, NoReturn

import torch
from torch import Tensor

from mad.datasets import base, pictures
from mad.datasets.base import Images, Stream
from mad.datasets.checked import say
from mad.datasets.content import checksum_of, place
from mad.errors import MadError

ENDINGS = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".avif", ".jp2", ".tif", ".tiff", ".tga"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
}
SYSTEMS = {"thumbs.db", "desktop.ini"}  # files that file managers leave; ignored, like hidden files


@dataclass(frozen=True)
class ImageFolder:
    """All images below a folder, read by ``pictures.pixels``, resized and center-cropped to the victim's size.

    Links are followed. Hidden files and folders are ignored. Files without an image's extension are ignored too, and
    a line on stderr counts them. Of a file with several frames the first is used, which another line says. The names
    and bytes of all images are part of the fingerprint: they are read once per process, a gigabyte in some seconds.

    Args:
        path: the folder.
        name: the name of the pool.
        content: computed, and not to be given: the checksum of the images' names and bytes.
    """

    path: str | None = field(default=None, compare=False)
    name: str = "image_folder"
    content: str = ""
    version: ClassVar[int] = 2  # version 1 clipped 16-bit images and ignored transparency and orientation

    def __post_init__(self) -> None:
        if not self.files:
            raise MadError(f"no image below pool.path={self.path}; looked for {' '.join(sorted(ENDINGS))}")
        # The fingerprint holds the folder's content, not its path.
        object.__setattr__(self, "content", self._content())

    def _content(self) -> str:
        """Return the checksum of the images' names and bytes; files that have not changed are not read again."""
        checksum = sha256()
        for file in self.files:
            try:
                checksum.update(f"{file.relative_to(self.place).as_posix()}\0{checksum_of(file)}\n".encode())
            except (OSError, ValueError) as error:
                raise MadError(f"{file} cannot be read ({error}); remove it") from error
        return checksum.hexdigest()

    @property
    def place(self) -> Path:
        """The folder, with ``~`` expanded.

        Raises:
            MadError: if ``path`` is not a folder.
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
        """The image files, sorted by path."""
        return images_below(self.place, f"pool {self.name}")

    def images(self, shape: tuple[int, int, int]) -> Images:
        """Return the images, uint8 (N, C, H, W): in memory, or as a stream if they are above ``IN_MEMORY`` bytes.

        Raises:
            MadError: if the shape does not have 1 or 3 channels, if a file is not a valid image (of a stream only the
                headers are checked here), or if the files have changed since this pool was created.
        """
        if shape[0] not in (1, 3):
            raise MadError(f"an image folder gives 1 or 3 channels, the victim takes {shape[0]}")
        say_frames(f"pool {self.name}", self.files, map(pictures.header, self.files))
        if self._content() != self.content:  # the fingerprint is that of the former images
            raise MadError(f"images below pool.path={self.path} changed after the start: start again")
        return loaded(Files(self.files, shape))

    def labels(self) -> Tensor:
        """Return labels, int64 (N,): one class per folder directly below ``path``, and one for images outside them."""
        tops = [file.relative_to(self.place).parts[:-1][:1] for file in self.files]
        places = {top: number for number, top in enumerate(sorted(set(tops)))}
        return torch.tensor([places[top] for top in tops])

    def contents(self) -> None:
        """Return None, because the field ``content`` determines the data."""


def images_below(place: Path, who: str) -> list[Path]:
    """Return the image files below a folder, sorted by path; a line on stderr, which ``who`` begins, counts others."""
    every = list(walked(place))
    images = sorted(file for file in every if file.suffix.lower() in ENDINGS)
    others = Counter(file.suffix.lower() or file.name for file in every if file.suffix.lower() not in ENDINGS)
    if images and others:
        some = ", ".join(f"{count} {ending}" for ending, count in others.most_common(5))
        say(f"{who}: left out {others.total()} files below {place} that are no images ({some})")
    return images


def say_frames(who: str, files: Sequence[pictures.Source], headers: Iterable[pictures.Header]) -> None:
    """Print a line on stderr, which ``who`` begins, if there are files of several frames, of which one is read."""
    several = [row for row, header in enumerate(headers) if header.frames > 1]
    if several:
        say(
            f"{who}: took only the first frame of {len(several)} files with several ({files[several[0]]}); "
            "save further frames as files of their own"
        )


def visible(name: str) -> bool:
    """Return whether the name of a file or folder is neither hidden nor in ``SYSTEMS``."""
    return not name.startswith(".") and name.lower() not in SYSTEMS


def walked(top: Path) -> Iterator[Path]:
    """Yield the visible files below a folder; links are followed.

    Raises:
        MadError: if a folder cannot be read, if a link is broken or leads to a folder above itself, or if an entry with
            an image's extension is not a regular file.
    """

    def stop(error: OSError) -> NoReturn:
        raise MadError(f"{error.filename}: {error.strerror}; make it readable, or remove it") from error

    for folder, names, files in os.walk(top, followlinks=True, onerror=stop):
        names[:] = [name for name in names if visible(name)]
        for link in (Path(folder, name) for name in names):
            if link.is_symlink() and link.resolve() in above(Path(folder)):
                raise MadError(f"{link} is a link to a folder that it lies in; remove the link")
        for file in (Path(folder, name) for name in files if visible(name)):
            if file.is_symlink() and not file.exists():
                raise MadError(f"{file} is a link to {os.readlink(file)}, which is not there; mend or remove the link")
            if file.suffix.lower() in ENDINGS and not file.is_file():
                raise MadError(f"{file} is no regular file; remove it")
            yield file


def above(folder: Path) -> set[Path]:
    """Return a folder and its parents, with and without links resolved: a link to one of them makes an endless walk."""
    real = folder.resolve()
    return {real, *real.parents, *(parent.resolve() for parent in folder.absolute().parents)}


@dataclass(frozen=True)
class Files:
    """A stream of image files, each decoded, resized and center-cropped when it is needed.

    Args:
        files: the files, or their bytes.
        size: (C, H, W) of the decoded images.
        border: share of the image, in [0, 0.5), that is first cut off on each side. 1/16 and a size of 224 pixels give
            the same as resizing to 256 pixels and cropping the center.
    """

    files: Sequence[pictures.Source]
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


def loaded(stream: Stream) -> Images:
    """Return a stream's images in memory, (N, C, H, W); above ``IN_MEMORY`` bytes, the stream itself."""
    if math.prod(stream.shape) > base.IN_MEMORY:
        return stream
    return torch.stack([stream[row] for row in range(len(stream))])
