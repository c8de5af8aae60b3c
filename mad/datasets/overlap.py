"""Which images of a pool are also among those that stolen models are scored on."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from mad.datasets.base import Images, to_unit_range
from mad.datasets.content import checksum_of
from mad.datasets.folder import Files
from mad.datasets.held_out import Part
from mad.datasets.pictures import Encoded, Source

DECODED = 200  # images of a stream that are compared with images in memory
PART = 10_000  # images that are turned into an array at once
FILES = 10_000  # files of a stream that are compared with another stream's


def warning(pool: str, images: Images, of: str, others: Images) -> str:
    """Return a warning that a pool has images that thieves are scored on; empty if none was found.

    Args:
        pool: the pool's name.
        images: its images.
        of: whose the others are, for the warning.
        others: the images that thieves are scored on.
    """
    known, seen = in_both(images, others)
    shared = f"warning: pool {pool} shares {known} of {seen} compared images with {of}"
    return f"{shared}: what a thief is scored on is what it has asked about" if known else ""


def in_both(images: Images, others: Images) -> tuple[int, int]:
    """Return how many of some images are also among others, and how many were compared.

    Two streams of files are compared by the bytes of ``FILES`` files of the first, at most; else by pixels, to the
    byte, and of a stream ``DECODED`` images, evenly spaced. Nothing is compared of other shapes, and of two streams
    that are not both of files.

    Args:
        images: images (N, C, H, W), uint8 or floats in [0, 1], in memory or a stream.
        others: likewise.
    """
    if tuple(images.shape[1:]) != tuple(others.shape[1:]):
        return 0, 0
    if isinstance(images, Tensor) and isinstance(others, Tensor):
        as_floats = images.dtype != others.dtype
        seen = set(pixels(others, as_floats))
        return sum(each in seen for each in pixels(images, as_floats)), len(images)
    if isinstance(images, Tensor) or isinstance(others, Tensor):
        held, stream = (images, others) if isinstance(images, Tensor) else (others, images)
        assert isinstance(held, Tensor)
        rows = spaced(len(stream), DECODED)
        return in_both(torch.stack([stream[row] for row in rows]), held) if rows else (0, 0)
    ours, theirs = files(images), files(others)
    if ours is None or theirs is None:
        return 0, 0
    some = [ours[row] for row in spaced(len(ours), FILES)]
    sizes = {size(each) for each in some} & {size(each) for each in theirs}
    known = {checksum(each) for each in theirs if size(each) in sizes}
    return sum(size(each) in sizes and checksum(each) in known for each in some), len(some)


def pixels(images: Tensor, as_floats: bool) -> list[int]:
    """Return a hash of each image; at every start, so a tensor is turned into an array in parts and not by image."""
    parts = (to_unit_range(some) if as_floats else some for some in images.split(PART))
    return [hash(each.tobytes()) for some in parts for each in some.cpu().contiguous().numpy()]


def spaced(count: int, most: int) -> list[int]:
    """Return so many rows of ``count`` at most, evenly spaced."""
    return torch.linspace(0, count - 1, min(most, count)).long().tolist()


def files(images: Images) -> Sequence[Source] | None:
    """Return the files of a stream, or of a part of one; None if it is not made of files."""
    if isinstance(images, Files):
        return images.files
    if isinstance(images, Part) and (whole := files(images.images)) is not None:
        return [whole[row] for row in images.rows]
    return None


def size(file: Source) -> int:
    """Return the bytes of an image file."""
    return len(file.data) if isinstance(file, Encoded) else Path(file).stat().st_size


def checksum(file: Source) -> str:
    """Return the SHA-256 of an image file's bytes."""
    return sha256(file.data).hexdigest() if isinstance(file, Encoded) else checksum_of(Path(file))
