"""The contracts of data sets and pools, and the functions that iterate over images."""

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

IN_MEMORY = 1_000_000_000  # the most bytes of images that are kept in memory or moved to a device at once
WORKERS = min(8, os.cpu_count() or 1)
VALUES = 10_000_000  # numbers in a batch: 66 images of 224 x 224; activations of 1000 of them would take tens of GB


class Stream(Protocol):
    """Images that do not fit in memory; worker processes decode each one when it is needed."""

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
    """Contract of a data set, on which a victim is trained and evaluated.

    Its data are part of the fingerprint. By default every image and label is hashed; of a stream, all labels and a
    sample of the images. A method ``contents`` replaces the hash (see ``mad.datasets.checked``). The same holds for a
    pool.
    """

    @property
    def name(self) -> str:
        """The name of the data set; also names folders."""

    @property
    def classes(self) -> int:
        """Number of classes K."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""

    def train(self) -> Split:
        """Return the training split."""

    def test(self) -> Split:
        """Return the test split, which must not be used for tuning."""


class Pool(Protocol):
    """Contract of a pool: the images that an adversary has."""

    @property
    def name(self) -> str:
        """The name of the pool."""

    def images(self, shape: tuple[int, int, int]) -> Images:
        """Return the images, uint8 (N, C, H, W); ``shape`` is the victim's (C, H, W)."""


@runtime_checkable
class Labelled(Pool, Protocol):
    """A pool whose images have labels; their classes need not be the victim's."""

    def labels(self) -> Tensor:
        """Return the label of each image, int64 (N,), in the order of ``images``.

        Raises:
            MadError: if this pool has no labels.
        """


def to_unit_range(images: Tensor) -> Tensor:
    """Return images as floats in [0, 1], the input of models and of the API; uint8 is divided by 255."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def unlike(images: Tensor, shape: Sequence[int]) -> str | None:
    """Return what is wrong with images, and how to fix it; None if they are valid.

    Valid images are (N, C, H, W), uint8 or float32 in [0, 1], with ``shape`` (C, H, W).
    """
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
    """Return the batch size for images of a shape (C, H, W): ``size``, or fewer for large images, at least 1."""
    return max(1, min(size, VALUES // math.prod(shape)))


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """Return images on a device; above ``IN_MEMORY`` bytes they stay, and ``batches`` moves each batch."""
    return images if images.nbytes > IN_MEMORY else images.to(device)


def allocate(*shape: int) -> Tensor:
    """Return an uninitialized float32 tensor for images, on the CPU; above ``IN_MEMORY`` bytes, in a file in TMPDIR.

    The file has no name. Its disk space is freed with the tensor, or when the process ends in any way.

    Raises:
        MadError: if the disk has too little free space.
    """
    size = math.prod(shape)
    if 4 * size <= IN_MEMORY:
        return torch.empty(shape)
    try:
        with tempfile.NamedTemporaryFile(prefix="mad-") as file:
            if hasattr(os, "posix_fallocate"):  # if the disk filled up later, the process would be killed
                os.posix_fallocate(file.fileno(), 0, 4 * size)
            return torch.from_file(file.name, shared=True, size=size).view(shape)
    except OSError as error:
        raise MadError(
            f"{4 * size / 1e9:.1f} GB of images find no room in {tempfile.tempdir or 'TMPDIR'}: {error.strerror}; "
            "set TMPDIR to a folder of a larger disk, or lower attack.budget"
        ) from error


def batches(images: Images, rows: Tensor | None, size: int | list[int], device: torch.device) -> Iterator[Tensor]:
    """Yield batches (size, C, H, W) on a device, in the dtype of the images; ``to_unit_range`` makes them floats.

    Args:
        images: uint8 or float, (N, C, H, W). A tensor of no more than ``IN_MEMORY`` bytes is moved to the device as a
            whole; for several passes, move it there first with ``to_device``.
        rows: int64 (B,), which images and in which order; None for all of them in order.
        size: images per batch, of which the last may be smaller; or of each batch.
        device: the device of the batches.

    Raises:
        MadError: if an image of a stream cannot be read.
    """
    if isinstance(images, Tensor):
        there = to_device(images, device)
        parts = there.split(size) if rows is None else (there[some] for some in rows.to(there.device).split(size))
        yield from (part.to(device) for part in parts)
        return
    chosen = torch.arange(len(images)) if rows is None else rows.cpu()
    if not len(chosen):  # one empty batch, as of a tensor
        yield torch.zeros(0, *images.shape[1:], dtype=torch.uint8, device=device)
        return
    loader = data.DataLoader(
        Decoded(images),
        batch_size=None,
        sampler=[some.tolist() for some in chosen.split(size)],
        num_workers=WORKERS,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the default draws from the global generator
    )
    for batch in loader:
        if isinstance(batch, MadError):
            raise batch
        yield batch.to(device, non_blocking=True)


class Decoded(data.Dataset[Tensor | MadError]):
    """A stream that a worker reads batch by batch.

    It returns errors instead of raising them, because an error raised in a worker gets a traceback of many lines.
    """

    def __init__(self, images: Stream) -> None:
        self.images = images

    def __getitem__(self, rows: list[int]) -> Tensor | MadError:
        """Return images (B, C, H, W), or the error of the first image that cannot be read."""
        try:
            found = [self._image(row) for row in rows]
            if len({each.dtype for each in found}) > 1:  # stacked, uint8 would become floats of up to 255
                found = [to_unit_range(each) for each in found]
            return torch.stack(found)
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
