"""Your own images, from a folder or a table, as a victim's data set and as an adversary's pool."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from mad.datasets import tables
from mad.datasets.base import Images, Split
from mad.datasets.checked import say
from mad.datasets.content import place
from mad.datasets.folder import Files, loaded, say_frames
from mad.datasets.held_out import Part
from mad.datasets.listing import Listing, more, of_folder, whole
from mad.errors import MadError, SettingError, UnfitError, check_name, check_number

USUAL = 0.2  # the share of the images that are for testing
KINDS = f"a folder of images with one folder a class, {tables.KINDS}"


@dataclass(frozen=True)
class OwnImages:
    """Your own images with their classes, as the data set of a victim and as a pool.

    ``path`` is one of these:

    - A folder with one folder a class, or with folders ``train`` and ``test`` that hold one folder a class each.
    - A CSV or Parquet file with a column of images and one of classes; a column ``split`` may say train or test.
      Images are paths, relative to the file; in Parquet also the bytes of files. Classes are text or whole numbers.
    - A folder that ``save_to_disk`` of Hugging Face ``datasets`` made.

    Without a part called test, the one called val (valid, validation, dev) is taken. Without that, ``test_share`` of
    each class's images are for testing, at least one of two. Which ones these are depends on their bytes and
    ``split_seed``, not on names, order or form. As a pool, the images are those for training; with ``test_share=0``
    all of them, unless a part is for testing. A pool needs no classes.

    Images are read by ``pictures.pixels``, resized and center-cropped. The order of the classes, that of the model's
    outputs, is by default: a ``ClassLabel``'s own; of whole numbers in a table by number; else by name. Names of
    classes, classes and bytes of all images are part of the fingerprint, the path is not. Bytes are read once per
    process, a gigabyte in some seconds.

    Args:
        path: the folder or file.
        name: the name of the data set or pool.
        size: height and width in pixels, one number or two; None if all images have one size, which is then taken.
            A pool takes the victim's.
        channels: 1 or 3; None for 3, or 1 if all images are gray. A pool takes the victim's.
        class_names: the names of all classes in the order of the model's outputs, or a file with one a line; None for
            the order above. Whole numbers that are no names count along them, from 0.
        test_share: share of the images, in [0, 1], that are for testing where no part is; None for 0.2.
        split_seed: another one chooses other images for testing.
        image_column, label_column: the columns of images and of classes of a table; None to find them.
        key: the key by which a user sets ``path``, for errors.
    """

    path: str | None = field(default=None, compare=False)
    name: str = "own"
    size: int | list[int] | None = None
    channels: int | None = None
    class_names: list[str] | str | None = field(default=None, compare=False)
    test_share: float | None = None
    split_seed: int = 0
    image_column: str | None = field(default=None, compare=False)
    label_column: str | None = field(default=None, compare=False)
    key: str = field(default="data", compare=False)
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_name("name", self.name)
        if self.channels not in (None, 1, 3):
            raise SettingError("channels", f"must be 1 or 3, or null, got {self.channels!r}")
        if self.test_share is not None:
            check_number("test_share", self.test_share, 0, 1)
        check_number("split_seed", self.split_seed, 0, 2**62, whole=True)
        if self.size is not None:
            sides = [self.size] * 2 if isinstance(self.size, int) else self.size
            if not isinstance(sides, (list, tuple)) or len(sides) != 2:
                raise SettingError("size", f"must be one number of pixels or two, [H, W], got {self.size!r}")
            object.__setattr__(self, "size", [check_number("size", side, 1, 10_000, whole=True) for side in sides])
        assert self.place  # raises if it is not there

    @property
    def place(self) -> Path:
        """The folder or file, with ``~`` expanded; MadError if it is not there."""
        if self.path is None or not str(self.path).strip():
            raise MadError(f"{self.key} must be {KINDS}: set {self.key}=FOLDER")
        found = place(str(self.path))
        if os.path.isdir(found) or tables.is_table(found):
            return found
        raise MadError(f"{self.key} must be {KINDS}, got {str(self.path)[:300]!r}; set {self.key}=FOLDER")

    @property
    def who(self) -> str:
        """What lines on stderr begin with."""
        return f"{'pool' if self.key.startswith('pool') else 'dataset'} {self.name}"

    @property
    def classes(self) -> int:
        """Number of classes K, at least 2."""
        return len(self.names)

    @property
    def names(self) -> list[str]:
        """The names of the classes, in the order of the labels.

        Raises:
            MadError: if the images have no classes, if there is one class only, if a class has no image for training,
                or if an image has a class that ``class_names`` lacks.
        """
        return self._named[0]

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image.

        Raises:
            MadError: if ``size`` is None and the images have several sizes, or if an image's header cannot be read.
        """
        headers = self._listing.headers() if self.size is None or self.channels is None else []
        channels = self.channels or (1 if all(header.gray for header in headers) else 3)
        sizes = sorted({header.size for header in headers})
        if self.size is None and len(sizes) > 1:
            (low, high), (wide, broad) = sizes[0], sizes[-1]
            raise MadError(
                f"{self.place} holds images of {len(sizes)} sizes (H x W), from {low}x{high} to {wide}x{broad}: "
                "set victim.dataset.size=64, or another number of pixels"
            )
        height, width = sizes[0] if self.size is None else self.size  # type: ignore[misc]
        return channels, height, width

    def train(self) -> Split:
        """Return the training split."""
        return self._split(testing=False)

    def test(self) -> Split:
        """Return the test split."""
        return self._split(testing=True)

    def count(self, testing: bool) -> int:
        """Return the number of images for testing, or else for training; none is decoded."""
        return len(self._rows(testing))

    def images(self, shape: tuple[int, int, int]) -> Images:
        """Return the images of a pool, uint8 (N, C, H, W), resized to the victim's ``shape`` (C, H, W).

        Raises:
            MadError: see ``train``; or if the shape does not have 1 or 3 channels.
        """
        if shape[0] not in (1, 3):
            raise MadError(f"{self.who} gives 1 or 3 channels, the victim takes {shape[0]}")
        rows = self._rows(testing=False)
        labels = "without" if self._listing.labels is None else f"of {len(set(self._listing.labels))}"
        say(f"{self.who}: {len(rows)} images {labels} classes, resized to {' x '.join(map(str, shape))}")
        return self._decoded(rows, shape)

    def labels(self) -> Tensor:
        """Return the labels of a pool's images, int64 (N,); UnfitError if they have no classes."""
        return torch.tensor(self._named[1])[self._rows(testing=False)]

    def contents(self) -> str:
        """Return the SHA-256 of the names of the classes, and of each image's class, part and bytes."""
        return self._content

    @cached_property
    def _content(self) -> str:
        return self._hashed()

    def _hashed(self) -> str:
        held = self._listing
        parts = [self._given or held.names, held.labels, held.testing, held.checksums()]
        return sha256(json.dumps(parts).encode()).hexdigest()

    @cached_property
    def _listing(self) -> Listing:
        found = self.place
        if tables.is_table(found):
            return tables.of_table(found, self.image_column, self.label_column, self.who)
        return of_folder(found, self.who)

    @cached_property
    def _given(self) -> list[str] | None:
        """The names that ``class_names`` gives."""
        given = self.class_names
        if isinstance(given, str):
            try:
                lines = place(given).read_text(encoding="utf-8-sig").splitlines()
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or "no text in UTF-8"
                raise MadError(
                    f"victim.dataset.class_names={given} cannot be read ({why}); give a file with one name a line"
                ) from error
            given = [line.strip() for line in lines if line.strip()]
        if given is None:
            return None
        if not isinstance(given, (list, tuple)):
            raise MadError(f"victim.dataset.class_names must be names, or a file with one a line, got {given!r}")
        names = [str(name) for name in given]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise MadError(f"victim.dataset.class_names has {twice[0]!r} twice; give each class one name")
        return names

    @cached_property
    def _named(self) -> tuple[list[str], list[int]]:
        """The names of the classes, and the label of each image."""
        held = self._listing
        if held.labels is None:
            raise UnfitError(held.bare)
        names, labels = self._given or held.names, held.labels
        if self._given and all(map(whole, labels)) and not set(labels) <= set(names):
            wrong = next((each for each in labels if not 0 <= int(each) < len(names)), None)
            if wrong is not None:
                what = f"has names for classes 0 to {len(names) - 1}, {self.place} has a class {wrong}: name all"
                raise MadError(f"victim.dataset.class_names {what}")
            labels = [names[int(each)] for each in labels]
        numbers = {name: number for number, name in enumerate(names)}
        if unknown := sorted(set(labels) - set(names)):
            raise MadError(f"{self.place} has class {unknown[0]!r}, which victim.dataset.class_names lacks: add it")
        testing = held.testing or [self.test_share == 1] * len(labels)
        trained = {label for label, tested in zip(labels, testing, strict=True) if not tested}
        if trained and (empty := [name for name in names if name not in trained]):
            what = f"no image for training of class {empty[0]!r}{more(empty)}"
            raise MadError(f"{self.place} has {what}; add some, or remove the class")
        if len(names) < 2:
            raise UnfitError(f"{self.place} holds one class only, {names[0]!r}; give the folder its folder lies in")
        return names, [numbers[label] for label in labels]

    @cached_property
    def _testing(self) -> list[bool]:
        """Whether each image is for testing."""
        held = self._listing
        if held.testing is not None:
            return held.testing
        found = [False] * len(held.images)
        share = USUAL if self.test_share is None else self.test_share
        if held.labels is None or not share:
            return found
        if share == 1:
            return [True] * len(held.images)
        # Ordered by a hash of their bytes, images are chosen alike from a folder and from a table of any order.
        keys = [sha256(f"{self.split_seed} {each}".encode()).hexdigest() for each in held.checksums()]
        for name in set(held.labels):
            rows = [row for row, label in enumerate(held.labels) if label == name]
            count = min(max(round(share * len(rows)), 1), len(rows) - 1)
            for row in sorted(rows, key=keys.__getitem__)[:count]:
                found[row] = True
        return found

    def _rows(self, testing: bool) -> list[int]:
        return [row for row, tested in enumerate(self._testing) if tested == testing]

    def _part(self, testing: bool) -> list[int]:
        rows = self._rows(testing)
        if not rows:
            part = "testing" if testing else "training"
            if testing and self.test_share != 0 and self._listing.labels and not self._listing.testing:
                raise MadError(f"{self.place} has one image a class, which leaves none for testing: add some")
            raise UnfitError(f"{self.place} leaves no image for {part}; set victim.dataset.test_share=0.2")
        return rows

    def _split(self, testing: bool) -> Split:
        rows = self._part(testing)
        self._report()
        return Split(self._decoded(rows, self.shape), torch.tensor(self._named[1])[rows])

    def _decoded(self, rows: list[int], shape: tuple[int, int, int]) -> Images:
        """Return the images of rows, in memory or as a stream; MadError if images have changed since the start."""
        held = self._listing
        say_frames(self.who, held.images, held.headers())
        if self._hashed() != self._content:  # the fingerprint is that of the former images
            raise MadError(f"images of {self.key}={self.path} changed after the start: start again")
        whole = Files(held.images, shape)
        return loaded(whole if len(rows) == len(whole) else Part(whole, rows))

    def _report(self) -> None:
        """Print what was found on stderr, once."""
        names, labels = self._named
        counts = [Counter(labels[row] for row in self._rows(testing)) for testing in (False, True)]
        train, test = ([count[number] for number in range(len(names))] for count in counts)
        shown, part = (train, "training") if sum(train) else (test, "test")
        few, many = (f"{count} (class {names[shown.index(count)]})" for count in (min(shown), max(shown)))
        say(
            f"{self.who}: {len(names)} classes, {sum(train)} training and {sum(test)} test images of "
            f"{' x '.join(map(str, self.shape))}; {few}{'' if few == many else f' to {many}'} {part} images a class"
        )
        if absent := [name for name, count in zip(names, test, strict=True) if not count]:
            say(f"{self.who}: no test image of class {absent[0]!r}{more(absent)}")
        if copies := self._listing.copies(*(self._rows(testing) for testing in (False, True))):
            told = f"{len(copies)} of {sum(test)} test images, such as {self._listing.images[copies[0]]}"
            say(f"warning: {self.who}: {told}, are training images, too, so they are no test: take the copies out")
