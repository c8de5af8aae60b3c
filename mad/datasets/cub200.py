"""Caltech-UCSD Birds 200, of 2011."""

from __future__ import annotations

from dataclasses import dataclass

from mad.datasets.photographs import Photographs


@dataclass(frozen=True)
class Cub200(Photographs):
    """CUB-200-2011: 200 species of birds, in the official split."""

    name: str = "cub200"
    classes: int = 200
    sizes: tuple[int, int] = (5_994, 5_794)
    folder = "CUB_200_2011"

    def listed(self, train: bool) -> list[tuple[str, int]]:
        """Return the files and labels of a split, from the three lists of the archive."""
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
