"""The contracts of image data, and the one way to go through images."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils import data

from mad.errors import MadError

WHOLE = 1_000_000_000  # bytes of images that are kept in memory, and moved to a device at once
WORKERS = min(8, os.cpu_count() or 1)
VALUES = 10_000_000  # in a batch: 66 images of 224 x 224; what a network makes of 1000 is tens of GB


class Stream(Protocol):
    """Images too large to be kept in memory, decoded where they are needed: in worker processes."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""

    def __len__(self) -> int:
        """Return N."""

    def __getitem__(self, row: int) -> Tensor:
        """Return one image, uint8 (C, H, W).

        Raises:
            MadError: if it cannot be read.
        """


Images = Tensor | Stream


class Split(NamedTuple):
    """Images, uint8 of shape (N, C, H, W), and their labels, int64 of shape (N,)."""

    images: Images
    labels: Tensor


class Dataset(Protocol):
    """What a victim is trained and judged on.

    What is in it belongs to the fingerprint: every image and label is read for it (of a stream, a sample of
    the images), unless there is a method ``contents`` (see ``mad.datasets.checked``). So it is with a pool.
    """

    @property
    def name(self) -> str:
        """What it is called; names folders."""

    @property
    def classes(self) -> int:
        """K."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""

    def train(self) -> Split:
        """Return the training split."""

    def test(self) -> Split:
        """Return the test split; nothing is ever tuned on it."""


class Pool(Protocol):
    """The adversary's own images."""

    @property
    def name(self) -> str:
        """What it is called."""

    def images(self, shape: tuple[int, int, int]) -> Images:
        """Return the images, uint8 (N, C, H, W); ``shape`` is (C, H, W) of what the victim takes."""


@runtime_checkable
class Labelled(Pool, Protocol):
    """A pool whose images are sorted into classes of their own."""

    def labels(self) -> Tensor:
        """Return the class of each image, int64 (N,), in the order of ``images``.

        Raises:
            MadError: if this one's are not.
        """


def to_unit_range(images: Tensor) -> Tensor:
    """Return images as floats in [0, 1]: what models and the API take."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def unlike(images: Tensor, shape: Sequence[int]) -> str | None:
    """Return in what images differ from uint8 or float32 in [0, 1] of (N, C, H, W), and what to do; None in nothing."""
    if tuple(images.shape[1:]) != tuple(shape):
        return f"expected images of {tuple(shape)}, got {tuple(images.shape[1:])}"
    if images.dtype == torch.uint8:
        return None
    if images.dtype != torch.float32:
        floats, hint = images.is_floating_point(), "images.float(), in [0, 1]"
        return f"expected images of uint8 or float32, got {images.dtype}; take {hint if floats else 'uint8, 0 to 255'}"
    low, high = (bound.item() for bound in images.aminmax())
    if low >= 0 and high <= 1:
        return None
    hint = "a network may normalize them itself"
    if not math.isfinite(low) or not math.isfinite(high):
        hint = "look for what is not finite"
    elif low > -0.1 and high < 1.1:
        hint = "take images.clamp(0, 1)"
    elif low >= 0 and high <= 255:
        hint = "take images / 255"
    return f"expected float images in [0, 1], got {low:.6g} to {high:.6g}; {hint}"


def batch_limit(size: int, shape: Sequence[int]) -> int:
    """Return ``size``, or how many images (C, H, W) of that shape a batch can hold where that is fewer; at least 1."""
    return max(1, min(size, VALUES // math.prod(shape)))


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """Return images on a device; above ``WHOLE`` bytes, where they are: ``batches`` moves those batch by batch."""
    return images if images.nbytes > WHOLE else images.to(device)


def allocate(*shape: int) -> Tensor:
    """Return room for images, float32 of that shape on the CPU; above ``WHOLE`` bytes, in an unnamed file in TMPDIR.

    The file's disk space is free again when the tensor is, or the process ends, however it does.

    Raises:
        MadError: if the disk has no such room.
    """
    size = math.prod(shape)
    if 4 * size <= WHOLE:
        return torch.empty(shape)
    try:
        with tempfile.NamedTemporaryFile(prefix="mad-") as file:
            if hasattr(os, "posix_fallocate"):  # a disk that is full only later would kill the process
                os.posix_fallocate(file.fileno(), 0, 4 * size)
            return torch.from_file(file.name, shared=True, size=size).view(shape)
    except OSError as error:
        raise MadError(
            f"{4 * size / 1e9:.1f} GB of images find no room in {tempfile.tempdir or 'TMPDIR'}: {error.strerror}; "
            "set TMPDIR to a folder of a larger disk, or lower attack.budget"
        ) from error


def batches(images: Images, rows: Tensor | None, size: int, device: torch.device) -> Iterator[Tensor]:
    """Yield batches (size, C, H, W) on a device, of the type the images have: pass each through ``to_unit_range``.

    Args:
        images: a tensor of no more than ``WHOLE`` bytes is moved to the device at once, so move it there first (with
            ``to_device``) where there are many passes.
        rows: int64 (B,), which images and in which order; None for all of them as they lie.
        size: images a batch; the last may be smaller.
        device: where the batches are needed.

    Raises:
        MadError: if an image of a stream cannot be read.
    """
    if isinstance(images, Tensor):
        there = to_device(images, device)
        parts = there.split(size) if rows is None else (there[some] for some in rows.to(there.device).split(size))
        yield from (part.to(device) for part in parts)
        return
    chosen = torch.arange(len(images)) if rows is None else rows.cpu()
    loader = data.DataLoader(
        Decoded(images),
        batch_size=None,
        sampler=[some.tolist() for some in chosen.split(size)],
        num_workers=WORKERS,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the default would draw from the global one
    )
    for batch in loader:
        if isinstance(batch, MadError):
            raise batch
        yield batch.to(device, non_blocking=True)


class Decoded(data.Dataset[Tensor | MadError]):
    """A stream by whole batches, as a worker reads it. An error is handed over, since a raised one grows many lines."""

    def __init__(self, images: Stream) -> None:
        self.images = images

    def __getitem__(self, rows: list[int]) -> Tensor | MadError:
        """Return images (B, C, H, W), or what is wrong with one of them."""
        try:
            return torch.stack([self._image(row) for row in rows])
        except MadError as error:
            return error

    def _image(self, row: int) -> Tensor:
        try:
            image = self.images[row]
            wrong = unlike(image[None], self.images.shape[1:])
        except MadError:
            raise
        except Exception as error:
            raise MadError(
                f"image {row} of {type(self.images).__name__} cannot be read: {type(error).__name__}: {error}"
            ) from error
        if wrong:
            raise MadError(f"image {row} of {type(self.images).__name__}: {wrong}")
        return image
