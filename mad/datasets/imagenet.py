"""ImageNet and Tiny ImageNet."""

from __future__ import annotations

from dataclasses import dataclass

from mad.datasets.base import Images
from mad.datasets.folder import Files, loaded
from mad.datasets.photographs import Photographs, classes_below, folders


@dataclass(frozen=True)
class ImageNet(Photographs):
    """ImageNet's ILSVRC 2012: all of ``train``, and ``val`` as the test split, one folder a class in each."""

    name: str = "imagenet"
    classes: int = 1000
    sizes: tuple[int, int] = (1_281_167, 50_000)
    folder = "imagenet"

    def listed(self, train: bool) -> list[tuple[str, int]]:
        """Return the files of a split with their classes, from its folders."""
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
        """Return the files of a split with their classes, from the folders of ``train`` or ``val_annotations.txt``."""
        if train:
            found = enumerate(classes_below(self.place / "train", inner="images"))
            return [(f"train/{file}", label) for label, files in found for file in files]
        labels = {wnid: label for label, wnid in enumerate(folders(self.place / "train"))}
        lines = [line.split()[:2] for line in (self.place / "val/val_annotations.txt").read_text().splitlines()]
        pairs = [(f"val/images/{file}", labels[wnid]) for file, wnid in lines if wnid in labels]
        return [pair for pair in pairs if (self.place / pair[0]).is_file()]

    def _decoded(self, files: list[str], shape: tuple[int, int, int]) -> Images:
        return loaded(Files(files, shape))
