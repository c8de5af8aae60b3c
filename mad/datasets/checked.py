"""Checks of every split and every pool, built-in or the user's own, when it is loaded; and hashes of their data."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from typing import Any, TypeVar

import torch
from torch import Tensor

from mad.datasets.base import Dataset, Images, Pool, Split, unlike
from mad.datasets.cached import cached
from mad.datasets.resized import fits, resized
from mad.errors import MadError, check_name, check_number
from mad.progress import err

T = TypeVar("T")
SAMPLE = 32  # images of a stream that are hashed in place of all


def declared(dataset: Dataset) -> None:
    """Check the name, classes and shape of a data set; nothing is loaded.

    Raises:
        MadError: if one of them is missing or not valid.
    """
    for name in ("name", "classes", "shape"):
        if not hasattr(dataset, name):
            raise MadError(f"dataset {type(dataset).__name__} has no {name}; give it name, classes and shape")
    check_name("dataset.name", dataset.name)
    check_number(f"the classes of dataset {dataset.name}", dataset.classes, 2, whole=True)
    shape = dataset.shape
    sides = list(shape) if isinstance(shape, (tuple, list, torch.Size)) else []
    if len(sides) != 3 or not all(type(side) is int and side > 0 for side in sides):
        raise MadError(f"dataset {dataset.name}: its shape must be (C, H, W), whole numbers from 1, got {shape!r}")


def split(dataset: Dataset, part: str) -> Split:
    """Return a data set's ``train`` or ``test`` split.

    Raises:
        MadError: if it cannot be loaded, or does not fit ``Split`` and the data set's shape and classes.
    """
    declared(dataset)
    return cached(dataset, part, lambda: checked_split(dataset, part))


def checked_split(dataset: Dataset, part: str) -> Split:
    """Return a split, loaded and checked; see ``split``, which also caches it.

    A line on stderr names classes without an image, unless the data set says ``every_class = False``.
    """
    what = f"dataset {dataset.name}, {part}()"
    made = loaded(what, getattr(dataset, part))
    if not isinstance(made, tuple) or len(made) != 2:
        raise MadError(f"{what}: expected Split(images, labels), got {kind(made)}")
    found = Split(*made)
    check_images(what, found.images, tuple(dataset.shape))
    check_labels(what, found.labels, len(found.images), dataset.classes)
    missing = sorted(set(range(dataset.classes)) - set(found.labels.unique().tolist()))
    if missing and getattr(dataset, "every_class", True):
        some = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        say(f"{what}: no image of {len(missing)} of its {dataset.classes} classes ({some})")
    return found


def pool(given: Pool, shape: tuple[int, int, int], taker: str) -> Images:
    """Return a pool's images, uint8 or float32 in [0, 1], (N, C, H, W); those of another shape are resized.

    Args:
        given: the pool.
        shape: (C, H, W) of the images that the victim takes.
        taker: the victim's name, for errors.

    Raises:
        MadError: if they cannot be loaded, do not fit ``Pool``, or cannot be brought to the shape.
    """
    return cached(given, f"images {tuple(shape)}", lambda: checked_pool(given, shape, taker))


def checked_pool(given: Pool, shape: tuple[int, int, int], taker: str) -> Images:
    """Return a pool's images, loaded and checked; see ``pool``, which also caches them."""
    what, expected = f"pool {given.name}", tuple(shape)
    images: Images = loaded(f"{what}, images()", lambda: given.images(shape))
    found = tuple(getattr(images, "shape", ()))
    if len(found) != 4 or found[1:] == expected or hint_of_layout(found, expected):
        check_images(what, images, expected)
        return images
    check_images(what, images, found[1:])
    if not fits(found, expected):
        raise MadError(f"{what} gives {found[1:]}, victim {taker} takes {expected}: choose another pool")
    say(f"{what}: its images of {found[1:]} are brought to {expected}, which victim {taker} takes")
    return resized(images, expected)


def pool_labels(given: Any, count: int | None = None) -> Tensor:
    """Return the labels of a pool's images, int64 (N,); they may be any whole numbers.

    Args:
        given: a ``Labelled`` pool.
        count: the number of images N, if it is known.

    Raises:
        MadError: if the labels cannot be loaded, or are not int64 (N,).
    """
    what = f"pool {given.name}"
    labels: Tensor = loaded(f"{what}, labels()", given.labels)
    check_labels(what, labels, len(labels) if count is None and isinstance(labels, Tensor) else count or 0, None)
    return labels


def loaded(what: str, load: Any) -> Any:
    """Call a function that loads data; any error becomes a ``MadError`` of one line, which ``what`` begins."""
    try:
        return load()
    except MadError:
        raise
    except Exception as error:
        raise MadError(f"{what} failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def check_images(what: str, images: Any, shape: tuple[int, ...]) -> None:
    """Check images: all images of a tensor, the first of a stream (``batches`` checks the others).

    Args:
        what: names the images, for errors.
        images: the images, uint8 or float32 in [0, 1], (N, C, H, W).
        shape: the expected (C, H, W).

    Raises:
        MadError: if they are of another type, range or shape, if there are none, or if all are nearly black.
    """
    if not isinstance(images, Tensor) and not streams(images):
        hint = "; take torch.from_numpy of it" if hasattr(images, "dtype") else ""
        raise MadError(f"{what}: expected images as a tensor, or a stream with shape and len, got {kind(images)}{hint}")
    found = tuple(images.shape)
    if len(found) != 4 or found[1:] != shape:
        expected = f"({', '.join(map(str, ('N', *shape)))})"
        raise MadError(f"{what}: expected images of {expected}, got {found}{hint_of_layout(found, shape)}")
    if not len(images):
        raise MadError(f"{what}: expected at least one image, got none")
    if len(images) != found[0]:
        raise MadError(f"{what}: its shape says {found[0]} images, its len {len(images)}")
    some = images if isinstance(images, Tensor) else first(what, images)
    wrong = unlike(some, shape)
    if wrong:
        raise MadError(f"{what}: {wrong}")
    if isinstance(images, Tensor):
        dark = 1 / 255 if images.is_floating_point() else 1
        if 0 < images.max().item() <= dark:
            scale = "images of 0 to 255 were divided twice" if images.is_floating_point() else "multiply it by 255"
            raise MadError(f"{what}: no pixel of the {images.dtype} images is above {dark:.4g}, nearly black: {scale}?")


def streams(images: Any) -> bool:
    """Return whether an object has the attributes of a stream; an array is not a stream."""
    return all(hasattr(images, name) for name in ("shape", "__len__", "__getitem__")) and not hasattr(images, "dtype")


def first(what: str, images: Any) -> Tensor:
    """Return the first image of a stream as a batch (1, C, H, W)."""
    image = loaded(f"{what}, image 0", lambda: images[0])
    if not isinstance(image, Tensor):
        raise MadError(f"{what}: expected each image of the stream as a tensor, got {kind(image)}")
    return image[None]


def hint_of_layout(found: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """Return how to fix images of a shape (N, ...) that is not (N, *shape), for an error; empty if that is unknown."""
    rest, (channels, height, width) = found[1:], shape
    if rest == (height, width, channels):
        return "; channels come first: take images.permute(0, 3, 1, 2)"
    if rest == (height, width) and channels == 1:
        return "; add the channel: take images.unsqueeze(1)"
    if len(found) == 2 and rest == (channels * height * width,):
        return f"; take images.view(-1, {channels}, {height}, {width})"
    return ""


def check_labels(what: str, labels: Any, count: int, classes: int | None) -> None:
    """Check labels.

    Args:
        what: names the labels, for errors.
        labels: the labels, int64 (N,).
        count: number of images N.
        classes: number of classes K; None if labels may be any whole numbers.

    Raises:
        MadError: if they are not int64 (N,), or not from 0 to K - 1.
    """
    expected = f"{what}: expected labels int64 ({count},)"
    if not isinstance(labels, Tensor):
        raise MadError(f"{expected}, got {kind(labels)}; take torch.as_tensor(labels).long()")
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise MadError(f"{expected}, got {kind(labels)}; one-hot? take labels.argmax(dim=1)")
    if labels.ndim != 1:
        raise MadError(f"{expected}, got {kind(labels)}; take labels.view(-1)")
    if len(labels) != count:
        raise MadError(f"{what} has {count} images and {len(labels)} labels: give it one an image")
    if labels.dtype != torch.int64:
        raise MadError(f"{expected}, got {labels.dtype}; take labels.long()")
    if classes is None:
        return
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= classes:
        hint = "; take labels - 1" if (low, high) == (1, classes) else f"; or is it of more than {classes} classes?"
        raise MadError(f"{what}: expected labels from 0 to {classes - 1}, got {low} to {high}{hint}")


def kind(thing: Any) -> str:
    """Return the type, dtype and shape of a value, for errors."""
    shape = getattr(thing, "shape", None)
    dtype = f" {thing.dtype}" if hasattr(thing, "dtype") else ""
    return f"{type(thing).__name__}{dtype}{'' if shape is None else f' {tuple(shape)}'}"


@lru_cache
def say(line: str) -> None:
    """Print a line on stderr, once per process."""
    err.print(line, soft_wrap=True, markup=False)


def contents(part: Any) -> Any:
    """Return the value that identifies a part's data in a fingerprint; None if the part's fields determine its data.

    A part may have a method ``contents``. It returns None if the fields determine the data, else any plain value, such
    as the checksum of a file. A data set without that method is loaded, and every image and label is hashed. Of a
    stream only a sample of the images is hashed, so streams should have the method.

    Raises:
        MadError: if the data are missing or not valid.
    """
    if callable(getattr(part, "contents", None)):
        return part.contents()
    if not all(callable(getattr(part, name, None)) for name in ("train", "test")) or isinstance(part, torch.nn.Module):
        return None
    return cached(part, "hashes", lambda: [hashed(*split(part, name)) for name in ("train", "test")])


def pool_contents(given: Any, shape: tuple[int, int, int], taker: str, labelled: bool) -> Any:
    """Return the value that identifies a pool's data in a fingerprint; see ``contents``.

    Args:
        given: the pool.
        shape: the victim's (C, H, W).
        taker: the victim's name, for errors.
        labelled: whether the attack uses the pool's labels; they are then part of the value.
    """
    if hasattr(given, "contents"):
        return given.label_contents() if labelled and hasattr(given, "label_contents") else None

    def make() -> str:
        images = pool(given, shape, taker)
        return hashed(images, pool_labels(given, len(images)) if labelled and hasattr(given, "labels") else None)

    return cached(given, f"hash {tuple(shape)} {labelled}", make)


def hashed(images: Images, labels: Tensor | None) -> str:
    """Return the SHA-256 of images and labels; of a stream, that of its shape, ``SAMPLE`` images and the labels."""
    checksum = sha256(f"{tuple(images.shape)}".encode())
    if isinstance(images, Tensor):
        parts = [images]
    else:
        rows = torch.linspace(0, len(images) - 1, min(SAMPLE, len(images))).long().tolist()
        parts = [images[row] for row in rows]
    for part in [*parts, *([] if labels is None else [labels])]:
        checksum.update(f"{part.dtype}".encode())
        checksum.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return checksum.hexdigest()
