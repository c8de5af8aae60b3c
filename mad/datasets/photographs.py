"""The paper's photographs: too many to keep in memory, so decoded from their files where they are needed."""

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
from mad.datasets.folder import ENDINGS, Files, loaded
from mad.errors import MadError
from mad.seeds import generator

BORDER = 1 / 16  # what a centre crop of 224 pixels leaves on each side of 256
TEST_IMAGES = 25  # of each class of Caltech-256


class Listed(NamedTuple):
    """Image files, and the class of each, int64 (N,)."""

    files: list[str]
    labels: Tensor


@dataclass(frozen=True)
class Photographs(ABC):
    """Labelled image files below ``root``, as their authors' archive unpacks there; an author writes ``listed``.

    Args:
        root: a torchvision root.
        name: its name in this project.
        classes: number of classes.
        shape: (C, H, W) of its images as a victim takes them.
        sizes: number of training images and of test images; with ``classes``, what tells a whole set from a part.
    """

    root: str = field(compare=False)
    name: str
    classes: int
    sizes: tuple[int, int]
    shape: tuple[int, int, int] = (3, 224, 224)
    folder: ClassVar[str]  # below root
    border: ClassVar[float] = BORDER  # the share of the image that is cut off on each side before it is resized

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "sizes", tuple(self.sizes))

    @property
    def place(self) -> Path:
        """The folder that the archive unpacks to."""
        return Path(self.root).expanduser() / self.folder

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

    @abstractmethod
    def listed(self, train: bool) -> list[tuple[str, int]]:
        """Return the files of a split below ``place``, each with its class from 0, in an order that never changes.

        Raises:
            OSError: if the archive is not there.
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
        """Return what is in a split.

        Raises:
            MadError: if it is not whole: half an archive would give a record that says it was all of it.
        """
        part, size = ("training", self.sizes[0]) if train else ("test", self.sizes[1])
        remedy = f"run mad-data {self.name} --root {self.root}"
        try:
            pairs = self.listed(train)
        except (OSError, ValueError) as error:
            what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else f"damaged ({error})"
            raise MadError(f"{self.name} is not whole under {self.place}, {what}; {remedy}") from error
        labels = torch.tensor([label for _, label in pairs], dtype=torch.int64)
        found = len(labels.unique())
        if (len(pairs), found) != (size, self.classes):
            raise MadError(
                f"{self.place} holds {len(pairs)} {part} images of {found} classes, "
                f"{self.name} has {size} of {self.classes}; {remedy}"
            )
        return Listed([f"{self.place}/{file}" for file, _ in pairs], labels)


@dataclass(frozen=True)
class Cub200(Photographs):
    """CUB-200-2011: 200 birds, in the official split."""

    name: str = "cub200"
    classes: int = 200
    sizes: tuple[int, int] = (5_994, 5_794)
    folder = "CUB_200_2011"

    def listed(self, train: bool) -> list[tuple[str, int]]:
        """Join the archive's three lists by their image numbers."""
        files, labels, training = (
            dict(line.split() for line in (self.place / f"{index}.txt").read_text().splitlines())
            for index in ("images", "image_class_labels", "train_test_split")
        )
        chosen = [image for image in files if training.get(image) == str(int(train))]
        missing = [image for image in chosen if image not in labels]
        if missing:
            raise ValueError(f"image_class_labels.txt has no image {missing[0]}")
        pairs = [(f"images/{files[image]}", int(labels[image]) - 1) for image in chosen]
        return [pair for pair in pairs if (self.place / pair[0]).is_file()]


@dataclass(frozen=True)
class Caltech256(Photographs):
    """Caltech-256 without its clutter: 25 images of each class are the test split, the rest the training split.

    The split is drawn from the published code's seed, 123, by another generator: the sizes are its, the images not.
    """

    name: str = "caltech256"
    classes: int = 256
    sizes: tuple[int, int] = (23_380, 6_400)
    folder = "caltech256/256_ObjectCategories"

    def listed(self, train: bool) -> list[tuple[str, int]]:
        """Draw each class's test images."""
        draw, pairs = generator(123, "caltech256 split"), []
        for label, files in enumerate(classes_below(self.place, without="257.clutter")):
            turn = torch.randperm(len(files), generator=draw).tolist()
            chosen = turn[TEST_IMAGES:] if train else turn[:TEST_IMAGES]
            pairs += [(files[row], label) for row in sorted(chosen)]
        return pairs


@dataclass(frozen=True)
class ImageNet(Photographs):
    """ImageNet's ILSVRC 2012: all of ``train``, and ``val`` as the test split, one folder a class in each."""

    name: str = "imagenet"
    classes: int = 1000
    sizes: tuple[int, int] = (1_281_167, 50_000)
    folder = "imagenet"

    def listed(self, train: bool) -> list[tuple[str, int]]:
        """List the folders."""
        part = "train" if train else "val"
        found = enumerate(classes_below(self.place / part))
        return [(f"{part}/{file}", label) for label, files in found for file in files]


@dataclass(frozen=True)
class TinyImageNet(Photographs):
    """Tiny ImageNet: 200 classes of 64 x 64 pixels; ``val`` is the test split, as the official one has no labels."""

    name: str = "tiny_imagenet"
    classes: int = 200
    sizes: tuple[int, int] = (100_000, 10_000)
    shape: tuple[int, int, int] = (3, 64, 64)
    folder = "tiny-imagenet-200"
    border = 0.0

    def listed(self, train: bool) -> list[tuple[str, int]]:
        """List the folders for training, and what ``val_annotations.txt`` says for testing."""
        if train:
            found = enumerate(classes_below(self.place / "train", inner="images"))
            return [(f"train/{file}", label) for label, files in found for file in files]
        labels = {wnid: label for label, wnid in enumerate(folders(self.place / "train"))}
        lines = [line.split()[:2] for line in (self.place / "val/val_annotations.txt").read_text().splitlines()]
        pairs = [(f"val/images/{file}", labels[wnid]) for file, wnid in lines if wnid in labels]
        return [pair for pair in pairs if (self.place / pair[0]).is_file()]

    def _decoded(self, files: list[str], shape: tuple[int, int, int]) -> Images:
        return loaded(Files(files, shape))


def folders(place: Path) -> list[str]:
    """Return the names of the folders right below a place, sorted."""
    return sorted(entry.name for entry in os.scandir(place) if entry.is_dir())


def classes_below(place: Path, without: str = "", inner: str = "") -> list[list[str]]:
    """Return the image files, relative to a place, of each folder right below it, or of ``inner`` in each."""
    parts = [str(Path(name, inner)) for name in folders(place) if name != without]
    return [
        sorted(f"{part}/{file}" for file in os.listdir(place / part) if os.path.splitext(file)[1].lower() in ENDINGS)
        for part in parts
    ]
