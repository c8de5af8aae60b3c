"""Images in IDX files, the format of MNIST and its many relatives."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mad.errors import MadError

MAGIC = 0x0803  # unsigned bytes in three dimensions


@dataclass(frozen=True)
class IdxImages:
    """The gray images of one or several IDX files, in the files' order, as a pool.

    Args:
        path: a file such as ``t10k-images-idx3-ubyte``, or several.
        name: what the pool is called.
    """

    path: str | list[str] | None = field(default=None, compare=False)
    name: str = "idx"
    content: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # The files may lie anywhere: what is in them decides the numbers.
        object.__setattr__(self, "content", [sha256(bytes_of(file)).hexdigest() for file in self.files])

    @property
    def files(self) -> list[str]:
        """The files."""
        given = [self.path] if isinstance(self.path, str) else list(self.path or [])
        if not given:
            raise MadError("pool.path must be an IDX file of images, got none; set pool.path=FILE")
        return given

    def images(self, shape: tuple[int, int, int]) -> Tensor:
        """Return the images, uint8 (N, 1, H, W); the victim's ``shape`` is for the caller to compare.

        Raises:
            MadError: if a file holds no gray images, or the files hold different sizes.
        """
        found = [parsed(bytes_of(file), file) for file in self.files]
        sizes = sorted({tuple(images.shape[1:]) for images in found})
        if len(sizes) > 1:
            raise MadError(f"the files of pool.path hold images of {' and '.join(map(str, sizes))}; give one size")
        return torch.cat(found)


def bytes_of(file: str) -> bytes:
    """Return what is in a file."""
    try:
        return Path(file).expanduser().read_bytes()
    except OSError as error:
        raise MadError(f"pool.path={file}: {error.strerror}; set pool.path to an IDX file of images") from error


def parsed(content: bytes, file: str) -> Tensor:
    """Return the images, uint8 (N, 1, H, W), that an IDX file holds."""
    header = np.frombuffer(content[:16], dtype=">u4") if len(content) >= 16 else np.zeros(4, dtype=">u4")
    magic, count, height, width = header.tolist()
    if magic != MAGIC or len(content) != 16 + count * height * width:
        raise MadError(f"{file} is no whole IDX file of images (unsigned bytes in three dimensions); gunzip it first?")
    pixels = np.frombuffer(content, dtype=np.uint8, offset=16).copy()
    return torch.from_numpy(pixels).view(count, 1, height, width)
