"""Lists of images with their classes: what a folder with one folder a class holds, and what tables hold alike."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from mad.datasets import pictures
from mad.datasets.checked import say
from mad.datasets.content import checksum_of, stamp
from mad.datasets.folder import ENDINGS, images_below, visible
from mad.datasets.photographs import folders
from mad.datasets.pictures import Encoded, Header, Source
from mad.errors import MadError

PARTS = {  # what a part is called, and its kind; of several for one kind the first is taken
    **{"train": "train", "training": "train", "test": "test", "testing": "test"},
    **{"val": "val", "valid": "val", "validation": "val", "dev": "val"},
}
DECIMALS = re.compile(r"-?[0-9]+\.0+")


@dataclass(frozen=True, eq=False)
class Listing:
    """Images, each with its class and its part.

    Args:
        images: N image files, or their bytes, which are then the same as long as the listing is there.
        labels: the name of each image's class; None if the images have no classes.
        names: all names of classes, in the order that they have by default.
        testing: whether each image is one for testing; None if nothing says so.
        bare: why the images have no classes, and what to do.
    """

    images: Sequence[Source]
    labels: list[str] | None
    names: list[str]
    testing: list[bool] | None
    bare: str = ""

    def checksums(self) -> list[str]:
        """Return the SHA-256 of each image file's bytes; a file is read again only if it has changed.

        Raises:
            MadError: if a file cannot be read.
        """
        try:
            return [found[0] if found else checksum_of(Path(str(self.images[row]))) for row, found in self._held]
        except OSError as error:
            raise MadError(f"{error.filename} cannot be read ({error.strerror}); put it back, or remove it") from error

    def headers(self) -> list[Header]:
        """Return the header of each image file; a file is read again only if it has changed.

        Raises:
            MadError: if a header shows that the file cannot be read as an image.
        """
        return [found[1] if found else header_of(str(self.images[row])) for row, found in self._held]

    def copies(self, first: Sequence[int], then: Sequence[int]) -> list[int]:
        """Return those of the rows ``then`` whose images are, to the byte, also images of the rows ``first``."""
        checksums = self.checksums()
        seen = {checksums[row] for row in first}
        return [row for row in then if checksums[row] in seen]

    @cached_property
    def _held(self) -> list[tuple[int, tuple[str, Header] | None]]:
        """Each row, with checksum and header of an image that is bytes, and None for one that is a file."""
        return [(row, described(image)) for row, image in enumerate(self.images)]


def described(image: Source) -> tuple[str, Header] | None:
    """Return checksum and header of an image's bytes; None for a file."""
    if not isinstance(image, Encoded):
        return None
    return sha256(image.data).hexdigest(), pictures.header(image)


def header_of(file: str) -> Header:
    """Return the header of an image file, which is kept until the file changes."""
    try:
        return _header(file, *stamp(Path(file)))
    except OSError as error:
        raise MadError(f"{file} cannot be read ({error.strerror}); put it back, or remove it") from error


@lru_cache(maxsize=1_000_000)
def _header(file: str, *_stamp: int) -> Header:
    return pictures.header(file)


def ordered(names: Iterable[str]) -> list[str]:
    """Return the names of classes in order: by number if all are whole numbers, else as text."""
    found = set(names)
    return sorted(found, key=lambda name: (int(name), name)) if all(map(whole, found)) else sorted(found)


def whole(name: str) -> bool:
    """Return whether the name of a class is a whole number."""
    return name.isascii() and name.removeprefix("-").isdigit()


def undecimal(value: Any) -> int | None:
    """Return the whole number of a float, or of a text such as ``3.0``; None of anything else, also of an int."""
    if isinstance(value, str):
        return int(value.partition(".")[0]) if DECIMALS.fullmatch(value.strip()) else None
    return int(value) if isinstance(value, float) and value.is_integer() else None


def sides(names: Iterable[str], what: str) -> tuple[str, str | None]:
    """Return which part of a data set is for training, and which for testing: None if there is none.

    Without a part called test, the one called val (valid, validation, dev) is taken. Without one called train, the
    other stands for the whole data set, as a training part without a test part does. Lines on stderr say so, and name
    the parts that are left out. Case is ignored.

    Args:
        names: the names of the parts.
        what: what has these parts, for the line.

    Raises:
        MadError: if no part has a known name.
    """
    found: dict[str, str] = {}
    names = sorted(names, key=lambda name: ([*PARTS, name.lower()].index(name.lower()), name))
    for name in names:
        found.setdefault(PARTS.get(name.lower(), ""), name)
    train, test = found.get("train"), found.get("test", found.get("val"))
    if train is None:
        if test is None:
            raise MadError(f"{what} has no part called train or test, only {', '.join(names) or 'none'}: name one so")
        say(f"{what}: {test} is taken for all of it, as there is no part called train")
        train, test = test, None
    if test is not None and "test" not in found:
        say(f"{what}: {test} is taken for testing, as there is no part called test")
    others = [name for name in names if name not in (train, test)]
    if others:
        say(f"{what}: left out {', '.join(others)} beside {train}{f' and {test}' if test else ''}")
    return train, test


def of_folder(top: Path, who: str) -> Listing:
    """Return what lies in a folder with one folder a class, or with such parts as train and test.

    The classes' folders may hold further folders. A folder without class folders gives images without classes.

    Args:
        top: the folder.
        who: the data set or pool, for lines on stderr.

    Raises:
        MadError: if a folder cannot be read, or holds no image.
    """
    try:
        there = folders(top)
        kinds = {PARTS.get(name.lower()) for name in there}
        # A class may be called train, such as one of vehicles: then its images lie right in it.
        both, only = "train" in kinds and bool(kinds & {"test", "val"}), "train" in kinds or None not in kinds
        if not both and not (only and any(inner(top / name) for name in there)):
            return joined([(top, False)], who)
        train, test = sides(there, f"{who}, {top}")
        return joined([(top / train, False), *([(top / test, True)] if test else [])], who)
    except OSError as error:
        raise MadError(f"{error.filename} cannot be read ({error.strerror}); make it readable") from error


def inner(place: Path) -> bool:
    """Return whether a folder is called as a part, and holds folders but no image outside them."""
    images = (file for file in place.iterdir() if file.suffix.lower() in ENDINGS and visible(file.name))
    return place.name.lower() in PARTS and bool(folders(place)) and not any(map(Path.is_file, images))


def joined(parts: list[tuple[Path, bool]], who: str) -> Listing:
    """Return the images of the parts of a data set, each a folder of class folders, and whether it is for testing.

    If no part has folders of classes, the images have no classes.
    """
    images: list[Source] = []
    labels: list[str] = []
    testing: list[bool] = []
    names: set[str] = set()
    bare = not any(folders(place) for place, _ in parts)
    for place, tested in parts:
        below, classes = images_below(place, who), folders(place)
        if not below:
            raise MadError(f"{who}: no image below {place}; looked for {' '.join(sorted(ENDINGS))}")
        outside: list[Source] = [file for file in below if file.parent == place]
        if outside and len(outside) < len(below):
            say(f"{who}: left out {len(outside)} images that lie in no class folder, such as {outside[0]}")
        if len(outside) == len(below) and not bare:
            raise MadError(f"{who}: no image in a class folder below {place}; give each class a folder of its images")
        found = outside if bare else [file for file in below if file.parent != place]
        images += found
        testing += [tested] * len(found)
        labels += [] if bare else [Path(str(file)).relative_to(place).parts[0] for file in found]
        names |= set(classes)
    held = testing if len(parts) > 1 else None
    if bare:
        why = f"{parts[0][0]} holds images, but no folders of classes; give each class a folder of its images"
        return Listing(images, None, [], held, why)
    # As text, also numbers: so do torchvision and others that train on such folders.
    return Listing(images, labels, sorted(names), held)


def more(names: list[str]) -> str:
    """Return how many names there are beside the first, for a line."""
    return f" and of {len(names) - 1} more" if len(names) > 1 else ""
