"""The paper's data sets of photographs, which do not fit in memory and are decoded from files when needed."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from mad.datasets.base import Images, Split
from mad.datasets.content import place
from mad.datasets.folder import ENDINGS, Files, visible
from mad.errors import MadError

BORDER = 1 / 16  # what a centre crop of 224 pixels leaves on each side of 256


class Listed(NamedTuple):
    """Paths of image files, and their classes, int64 (N,)."""

    files: list[str]
    labels: Tensor


@dataclass(frozen=True)
class Photographs(ABC):
    """Base class of data sets of image files below ``root``, in the folders of the published archive.

    A subclass implements ``listed``.

    Args:
        root: a torchvision root.
        name: its name in this project.
        classes: number of classes.
        shape: (C, H, W) to which images are resized for a victim.
        sizes: number of training images and of test images; another number raises an error.
    """

    root: str = field(compare=False)
    name: str
    classes: int
    sizes: tuple[int, int]
    shape: tuple[int, int, int] = (3, 224, 224)
    version: ClassVar[int] = 2  # version 1 ignored orientation and transparency
    folder: ClassVar[str]  # below root
    border: ClassVar[float] = BORDER  # the share of the image that is cut off on each side before it is resized

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "sizes", tuple(self.sizes))

    @property
    def place(self) -> Path:
        """The folder that the archive unpacks to."""
        return place(self.root) / self.folder

    def train(self) -> Split:
        """Return the training split."""
        return Split(self._decoded(self._training.files, self.shape), self._training.labels)

    def test(self) -> Split:
        """Return the test split."""
        return Split(self._decoded(self._testing.files, self.shape), self._testing.labels)

    def images(self, shape: tuple[int, int, int]) -> Images:
        """Return the training images, resized to ``shape``, for use as a pool."""
        if shape[0] not in (1, 3):
            raise MadError(f"{self.name} gives 1 or 3 channels, the victim takes {shape[0]}: choose another pool")
        return self._decoded(self._training.files, shape)

    def labels(self) -> Tensor:
        """Return the labels of the training images."""
        return self._training.labels

    def contents(self) -> None:  # noqa: B027
        """Return None: the number of files is checked instead, since a checksum would need to read them all."""

    @abstractmethod
    def listed(self, train: bool) -> list[tuple[str, int]]:
        """Return the files of a split, relative to ``place``, each with its class from 0, in a fixed order.

        Raises:
            OSError: if the unpacked archive is missing.
        """

    def _decoded(self, files: list[str], shape: tuple[int, int, int]) -> Images:
        return Files(files, shape, self.border)

    @cached_property
    def _training(self) -> Listed:
        return self._whole(train=True)

    @cached_property
    def _testing(self) -> Listed:
        return self._whole(train=False)

    def _whole(self, train: bool) -> Listed:
        """Return the files and labels of a split.

        Raises:
            MadError: if images are missing; a record of part of the images would claim to be of all of them.
        """
        part, size = ("training", self.sizes[0]) if train else ("test", self.sizes[1])
        remedy = f"run mad-data {self.name} --root {self.root}"
        try:
            pairs = self.listed(train)
        except (OSError, ValueError) as error:
            what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
            raise MadError(f"{self.name} is not whole under {self.root} ({what}); {remedy}") from error
        labels = torch.tensor([label for _, label in pairs], dtype=torch.int64)
        found = len(labels.unique())
        if (len(pairs), found) != (size, self.classes):
            raise MadError(
                f"{self.place} holds {len(pairs)} {part} images of {found} classes, "
                f"{self.name} has {size} of {self.classes}; {remedy}"
            )
        return Listed([f"{self.place}/{file}" for file, _ in pairs], labels)


def folders(place: Path) -> list[str]:
    """Return the names of the folders directly below a folder, sorted."""
    return sorted(entry.name for entry in os.scandir(place) if visible(entry.name) and entry.is_dir())


def classes_below(place: Path, without: str = "", inner: str = "") -> list[list[str]]:
    """Return the image files, relative to ``place``, of each folder directly below it: one list per class.

    Args:
        place: the folder of the classes' folders.
        without: a folder to leave out.
        inner: a folder in each class's folder that holds the images.
    """
    parts = [str(Path(name, inner)) for name in folders(place) if name != without]
    return [
        sorted(
            f"{part}/{file}"
            for file in os.listdir(place / part)
            if visible(file) and os.path.splitext(file)[1].lower() in ENDINGS
        )
        for part in parts
    ]
