"""Caltech-256."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mad.datasets.photographs import Photographs, classes_below
from mad.seeds import generator

TEST_IMAGES = 25  # of each class


@dataclass(frozen=True)
class Caltech256(Photographs):
    """Caltech-256 without its clutter class: 25 images of each class are the test split, the rest the training split.

    The split is drawn with the seed of the published code, 123, but with another generator. So the splits have the
    published sizes, but not the published images.
    """

    name: str = "caltech256"
    classes: int = 256
    sizes: tuple[int, int] = (23_380, 6_400)
    folder = "caltech256/256_ObjectCategories"

    def listed(self, train: bool) -> list[tuple[str, int]]:
        """Return the files and labels of a split; the test images of each class are drawn at random."""
        draw, pairs = generator(123, "caltech256 split"), []
        for label, files in enumerate(classes_below(self.place, without="257.clutter")):
            turn = torch.randperm(len(files), generator=draw).tolist()
            chosen = turn[TEST_IMAGES:] if train else turn[:TEST_IMAGES]
            pairs += [(files[row], label) for row in sorted(chosen)]
        return pairs
