"""Images in IDX files, the format of MNIST and its many relatives."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mad.datasets.content import checksum_of, place
from mad.errors import MadError, UnfitError

MAGIC = 0x0803  # unsigned bytes in three dimensions
LABELS = 0x0801  # in one
GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class IdxImages:
    """The gray images of one or several IDX files, in the files' order, as a pool.

    Args:
        path: a file such as ``t10k-images-idx3-ubyte``, or several.
        name: the name of the pool.
    """

    path: str | list[str] | None = field(default=None, compare=False)
    name: str = "idx"
    content: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # The fingerprint holds the files' content, not their paths.
        object.__setattr__(self, "content", [sha256(bytes_of(file)).hexdigest() for file in self.files])

    @property
    def files(self) -> list[str]:
        """The paths of the files."""
        given = [self.path] if isinstance(self.path, str) else self.path
        if not given or not isinstance(given, (list, tuple)) or not all(isinstance(file, str) for file in given):
            raise MadError(
                f"pool.path must be an IDX file of images, or a list of some, got {given!r}; set pool.path=FILE"
            )
        return list(given)

    def images(self, shape: tuple[int, int, int]) -> Tensor:
        """Return the images, uint8 (N, 1, H, W); ``shape`` is ignored.

        Raises:
            MadError: if a file holds no gray images, or the files hold different sizes.
        """
        found = []
        for file, named in zip(self.files, self.content, strict=True):
            content = bytes_of(file)
            if sha256(content).hexdigest() != named:  # the fingerprint is that of the former images
                raise MadError(f"pool.path={file} changed after the start: start again")
            found.append(parsed(content, file))
        sizes = sorted({tuple(images.shape[1:]) for images in found})
        if len(sizes) > 1:
            raise MadError(f"the files of pool.path hold images of {' and '.join(map(str, sizes))}; give one size")
        return torch.cat(found)

    def labels(self) -> Tensor:
        """Return the labels, int64 (N,), of the files in the same folders, ``labels-idx1`` in place of ``images-idx3``.

        Raises:
            UnfitError: if there are no such files.
        """
        found = []
        for file in self.files:
            beside = labels_beside(file)
            if beside is None:
                raise UnfitError(f"{file} has no labels beside it, looked for labels-idx1; take another pool")
            found.append(parsed_labels(bytes_of(str(beside)), str(beside)))
        return torch.cat(found)

    def contents(self) -> None:
        """Return None, because the field ``content`` determines the images."""

    def label_contents(self) -> list[str]:
        """Return checksums of the files of labels, for the fingerprint of an attack that uses labels."""
        return [checksum_of(beside) for beside in map(labels_beside, self.files) if beside]


def labels_beside(file: str) -> Path | None:
    """Return the path of the labels that belong to a file of images; None if there is none."""
    images = place(file)
    beside = images.with_name(images.name.replace("images-idx3", "labels-idx1"))
    return beside if beside != images and beside.is_file() else None


def bytes_of(file: str) -> bytes:
    """Return the content of a file; MadError if it cannot be read."""
    try:
        return place(file).read_bytes()
    except (OSError, ValueError) as error:  # a NUL in a path is a ValueError
        why = getattr(error, "strerror", None) or error
        raise MadError(f"pool.path={file}: {why}; set pool.path to an IDX file of images") from error


def parsed(content: bytes, file: str) -> Tensor:
    """Return the images, uint8 (N, 1, H, W), that an IDX file holds."""
    header = np.frombuffer(content[:16], dtype=">u4") if len(content) >= 16 else np.zeros(4, dtype=">u4")
    magic, count, height, width = header.tolist()
    if magic != MAGIC or len(content) != 16 + count * height * width or not count * height * width:
        packed = "; gunzip it first" if content[:2] == GZIP else ""
        raise MadError(f"{file} is no whole IDX file of images (unsigned bytes in three dimensions){packed}")
    pixels = np.frombuffer(content, dtype=np.uint8, offset=16).copy()
    return torch.from_numpy(pixels).view(count, 1, height, width)


def parsed_labels(content: bytes, file: str) -> Tensor:
    """Return the labels, int64 (N,), that an IDX file holds."""
    if content[:8] != struct.pack(">II", LABELS, max(0, len(content) - 8)) or len(content) == 8:
        raise MadError(f"{file} is no whole IDX file of labels (unsigned bytes in one dimension)")
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=8).copy()).long()
