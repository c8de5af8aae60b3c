"""The one place where data enter: every split and every pool is checked, a user's own as well as ours."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from functools import lru_cache
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mad.cache import Cache
from mad.datasets.base import Dataset, Images, Pool, Split, unlike
from mad.datasets.content import place
from mad.errors import MadError, check_name, check_number
from mad.progress import err

T = TypeVar("T")
SAMPLE = 32  # images of a stream that stand for all of them
ENTRIES = 1000  # of a folder, that are looked at for changes while a process runs
KEPT = Cache()


def declared(dataset: Dataset) -> None:
    """Check what a data set says of itself; nothing is loaded.

    Raises:
        MadError: if its name, classes or shape cannot be.
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
        MadError: if it cannot be loaded, or is not what ``Split`` says; says which, what came and what to do.
    """
    declared(dataset)
    return kept(dataset, part, lambda: checked_split(dataset, part))


def checked_split(dataset: Dataset, part: str) -> Split:
    """Load a split, and check it."""
    what = f"dataset {dataset.name}, {part}()"
    made = loaded(what, getattr(dataset, part))
    if not isinstance(made, tuple) or len(made) != 2:
        raise MadError(f"{what}: expected Split(images, labels), got {kind(made)}")
    found = Split(*made)
    check_images(what, found.images, tuple(dataset.shape))
    check_labels(what, found.labels, len(found.images), dataset.classes)
    return found


def pool(given: Pool, shape: tuple[int, int, int], taker: str) -> Images:
    """Return a pool's images for a victim that takes ``shape``, (C, H, W).

    Args:
        given: the pool.
        shape: what it is asked for.
        taker: the victim's name, for errors.

    Raises:
        MadError: if they cannot be loaded, are of another shape, or are not what ``Pool`` says.
    """
    return kept(given, f"images {tuple(shape)}", lambda: checked_pool(given, shape, taker))


def checked_pool(given: Pool, shape: tuple[int, int, int], taker: str) -> Images:
    """Load a pool's images, and check them."""
    what, expected = f"pool {given.name}", tuple(shape)
    images: Images = loaded(f"{what}, images()", lambda: given.images(shape))
    given_shape = tuple(getattr(images, "shape", ()))
    if len(given_shape) == 4 and given_shape[1:] != expected and not hint_of_layout(given_shape, expected):
        raise MadError(f"{what} gives {given_shape[1:]}, victim {taker} takes {expected}: choose another pool")
    check_images(what, images, expected)
    return images


def pool_labels(given: Any, count: int | None = None) -> Tensor:
    """Return the classes of a pool's images, int64 (N,), any whole numbers.

    Args:
        given: a ``Labelled`` pool.
        count: N, where it is known.

    Raises:
        MadError: if they are something else.
    """
    what = f"pool {given.name}"
    labels: Tensor = loaded(f"{what}, labels()", given.labels)
    check_labels(what, labels, len(labels) if count is None and isinstance(labels, Tensor) else count or 0, None)
    return labels


def loaded(what: str, load: Any) -> Any:
    """Call what loads data; an error of its own becomes one line that says where."""
    try:
        return load()
    except MadError:
        raise
    except Exception as error:
        raise MadError(f"{what} failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def check_images(what: str, images: Any, shape: tuple[int, ...]) -> None:
    """Check images of a shape (C, H, W): of a tensor every one, of a stream the first; ``batches`` checks the others.

    Raises:
        MadError: if they are not uint8 or float32 in [0, 1] of (N, C, H, W), or there are none.
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
    """Whether an object is a stream, as far as can be seen from outside; an array is none."""
    return all(hasattr(images, name) for name in ("shape", "__len__", "__getitem__")) and not hasattr(images, "dtype")


def first(what: str, images: Any) -> Tensor:
    """Return the first image of a stream as a batch (1, C, H, W)."""
    image = loaded(f"{what}, image 0", lambda: images[0])
    if not isinstance(image, Tensor):
        raise MadError(f"{what}: expected each image of the stream as a tensor, got {kind(image)}")
    return image[None]


def hint_of_layout(found: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """Return what to do about images of a shape (N, ...) that is not (N, *shape)."""
    rest, (channels, height, width) = found[1:], shape
    if rest == (height, width, channels):
        return "; channels come first: take images.permute(0, 3, 1, 2)"
    if rest == (height, width) and channels == 1:
        return "; add the channel: take images.unsqueeze(1)"
    if len(found) == 2 and rest == (channels * height * width,):
        return f"; take images.view(-1, {channels}, {height}, {width})"
    return ""


def check_labels(what: str, labels: Any, count: int, classes: int | None) -> None:
    """Check labels of ``count`` images; ``classes`` is K, None for any whole numbers.

    Raises:
        MadError: if they are not int64 (N,) from 0 to K - 1.
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
    missing = sorted(set(range(classes)) - set(labels.unique().tolist()))
    if missing:
        some = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        say(f"{what}: no image of {len(missing)} of its {classes} classes ({some})")


def kind(thing: Any) -> str:
    """Return what a thing is, for errors."""
    shape = getattr(thing, "shape", None)
    dtype = f" {thing.dtype}" if hasattr(thing, "dtype") else ""
    return f"{type(thing).__name__}{dtype}{'' if shape is None else f' {tuple(shape)}'}"


@lru_cache
def say(line: str) -> None:
    """Print a line, once in a process."""
    err.print(line, soft_wrap=True, markup=False)


def contents(part: Any) -> Any:
    """Return what stands, in a fingerprint, for the data that a part holds; None where nothing needs to.

    A part that knows says it by a method ``contents``: None where its fields determine its data, else any plain value,
    such as the checksum of a file. A data set without that method is loaded, and every image and label counts; of a
    stream, a sample of the images: there the method is better.

    Raises:
        MadError: if the data are not there or not right.
    """
    if callable(getattr(part, "contents", None)):
        return part.contents()
    if not all(callable(getattr(part, name, None)) for name in ("train", "test")) or isinstance(part, torch.nn.Module):
        return None
    return kept(part, "hashes", lambda: [hashed(*split(part, name)) for name in ("train", "test")])


def pool_contents(given: Any, shape: tuple[int, int, int], taker: str, labelled: bool) -> Any:
    """Return the same for a pool as a cell uses it: its images, and its labels where the attack goes by them."""
    if hasattr(given, "contents"):
        return given.label_contents() if labelled and hasattr(given, "label_contents") else None

    def make() -> str:
        images = pool(given, shape, taker)
        return hashed(images, pool_labels(given, len(images)) if labelled and hasattr(given, "labels") else None)

    return kept(given, f"hash {tuple(shape)} {labelled}", make)


def hashed(images: Images, labels: Tensor | None) -> str:
    """Return a checksum of images and labels; of a stream, of its shape, ``SAMPLE`` images and its labels."""
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


def kept(part: Any, what: str, make: Callable[[], T]) -> T:
    """Return what was made before of a part's data, or make it; what knows its ``contents`` keeps its data itself.

    Equal parts share it, as long as the files that their fields name are as they were.
    """
    if hasattr(part, "contents"):
        return make()
    fields = {"": part}
    if dataclasses.is_dataclass(part):
        fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    if not plain(list(fields.values())):
        return KEPT.get((id(part), what), lambda: (part, make()))[1]  # with the part, so that no other gets its id
    return KEPT.get((type(part), repr(fields), str(list(stamps(list(fields.values())))), what), make)


def plain(value: Any) -> bool:
    """Whether a value's text is all of it."""
    if isinstance(value, (list, tuple, dict)):
        return all(map(plain, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, (bool, int, float, str, Path))


def stamps(value: Any) -> Iterator[tuple[int, ...]]:
    """Yield size, time and inode of the files, and of what is right below the folders, that a value names."""
    if isinstance(value, (list, tuple, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from stamps(one)
    elif isinstance(value, (str, Path)):
        with contextlib.suppress(OSError, ValueError, MadError):
            there = place(value)
            for file in [there, *(sorted(islice(there.iterdir(), ENTRIES)) if there.is_dir() else [])]:
                found = file.stat()
                yield (found.st_size, found.st_mtime_ns, found.st_ino)
