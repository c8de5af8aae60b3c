"""MNIST and its relatives in the IDX files that torchvision unpacks, with checks of their published checksums."""

from __future__ import annotations

import gzip
import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from mad.datasets.content import checksum_of
from mad.datasets.idx import parsed, parsed_labels
from mad.errors import MadError

PARTS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
MD5S = {  # of the unpacked files, in the order of PARTS
    "MNIST": (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
    "FashionMNIST": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
    "KMNIST": (
        "92be26ec9822e900ac425d0a0aa84ced",
        "949e75301f8813e0dc5800dcc320fc52",
        "bf305b8cd328700fbc17f5acbc2856d2",
        "9f55f451c0988b028eccdf7d5cc265ab",
    ),
}
LOADERS = (*MD5S, "EMNIST")
EMNIST_ZIP = ("gzip.zip", 561_753_746)  # EMNIST's only published file, and its bytes; torchvision keeps it


@dataclass(frozen=True)
class IdxFiles:
    """The four IDX files of a data set: images and labels of the training and the test split.

    Args:
        loader: its class in ``torchvision.datasets``, one of ``LOADERS``.
        root: the torchvision root.
        split: the name of EMNIST's variant, such as ``letters``; empty for other data sets.
    """

    loader: str
    root: Path
    split: str = ""

    @property
    def files(self) -> list[Path]:
        """The four files: images and labels for training, then for testing."""
        parts: tuple[str, ...] = PARTS
        if self.loader == "EMNIST":
            parts = tuple(f"emnist-{self.split}-{part.replace('t10k', 'test')}" for part in PARTS)
        return [self.root / self.loader / "raw" / part for part in parts]

    def pair(self, train: bool) -> list[Path]:
        """Return the file of images and the file of labels of a split."""
        return self.files[:2] if train else self.files[2:]

    def there(self, train: bool) -> bool:
        """Return whether both files of a split exist."""
        return all(file.is_file() for file in self.pair(train))

    def published(self, file: Path) -> str | None:
        """Return the MD5 that a file should have; None if it is unknown, as for EMNIST without its archive."""
        if self.loader in MD5S:
            return MD5S[self.loader][self.files.index(file)]
        archive = file.with_name(EMNIST_ZIP[0])
        if not archive.is_file() or archive.stat().st_size != EMNIST_ZIP[1]:
            return None
        return inside(str(archive), f"gzip/{file.name}.gz", archive.stat().st_mtime_ns)

    def read(self, train: bool, remedy: str) -> tuple[Tensor, Tensor]:
        """Return a split's images, uint8 (N, 1, H, W), and its labels, int64 (N,).

        Raises:
            MadError: if a file is missing, does not have its published checksum, or is not a valid IDX file; the text
                ends with ``remedy``.
        """
        images, labels = self.pair(train)
        contents = []
        for file in (images, labels):
            try:
                contents.append(file.read_bytes())
            except OSError as error:
                raise MadError(f"{file}: {error.strerror}; {remedy}") from error
            found, right = hashlib.md5(contents[-1], usedforsecurity=False).hexdigest(), self.published(file)
            if right is not None and found != right:
                raise MadError(f"{file} is not {self.loader}'s: its MD5 should be {right}, is {found}; {remedy}")
        try:
            both = parsed(contents[0], str(images)), parsed_labels(contents[1], str(labels))
        except MadError as error:
            raise MadError(f"{error}; {remedy}") from error
        return both

    def unproven(self) -> list[str] | None:
        """Return the checksums of existing files whose published checksum is unknown; None if there are none."""
        there = [file for file in self.files if self.loader not in MD5S and file.is_file()]
        return [checksum_of(file) for file in there if self.published(file) is None] or None

    def wrong(self) -> Iterator[tuple[Path, str]]:
        """Yield the existing files that differ from the published ones, each with the reason."""
        for number, file in enumerate(self.files):
            if file.is_file():
                right, found = self.published(file), checksum_of(file, "md5")
                if right is not None and found != right:
                    yield file, f"its MD5 should be {right}, is {found}"
                elif right is None:
                    try:
                        (parsed_labels if number % 2 else parsed)(file.read_bytes(), str(file))
                    except MadError:
                        yield file, "it is no whole IDX file"

    def unpack(self) -> None:
        """Unpack missing files from ``.gz`` archives in the same folder, if the content has the published checksum."""
        for file in self.files:
            packed = file.with_name(f"{file.name}.gz")
            if file.exists() or self.loader not in MD5S or not packed.is_file():
                continue
            try:
                content = gzip.decompress(packed.read_bytes())
            except (OSError, EOFError, zlib.error):
                continue
            if hashlib.md5(content, usedforsecurity=False).hexdigest() == self.published(file):
                part = file.with_name(f"{file.name}.part")
                part.write_bytes(content)
                part.replace(file)


@lru_cache
def inside(archive: str, member: str, stamp: int) -> str | None:
    """Return the MD5 of an unpacked gzip member of a zip file; None if it cannot be read.

    ``stamp`` is the zip file's modification time, so that a changed file is read again.
    """
    try:
        with zipfile.ZipFile(archive) as outer:
            return hashlib.md5(gzip.decompress(outer.read(member)), usedforsecurity=False).hexdigest()
    except (KeyError, OSError, EOFError, zlib.error, zipfile.BadZipFile):
        return None
