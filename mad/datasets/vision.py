"""torchvision's data sets that fit in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mad.datasets.base import Images, Split
from mad.datasets.checked import hashed
from mad.datasets.content import checksum_of, place
from mad.datasets.published import EMNIST_ZIP, LOADERS, IdxFiles
from mad.errors import MadError
from mad.progress import err
from mad.storage.files import held


@dataclass(frozen=True)
class Vision:
    """A data set of ``torchvision.datasets`` that fits in memory; its training images also serve as a pool.

    Files must have their published checksums, if there are any; ``mad-data`` replaces files that do not.

    Args:
        name: its name in this project.
        loader: its class in ``torchvision.datasets``.
        root: the torchvision root; files that are missing there are downloaded.
        shape: (C, H, W) of its images.
        classes: number of classes.
        options: further arguments of the loader (EMNIST's ``split``).
    """

    name: str
    loader: str
    root: str = field(compare=False)
    shape: tuple[int, int, int] = (1, 28, 28)
    classes: int = 10
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "options", dict(self.options))

    def train(self) -> Split:
        """Return the training split."""
        return self._split(train=True)

    def test(self) -> Split:
        """Return the test split."""
        return self._split(train=False)

    def images(self, shape: tuple[int, int, int]) -> Images:
        """Return the training images, for use as a pool."""
        return self.train().images

    def labels(self) -> Tensor:
        """Return the labels of the training images."""
        return self.train().labels

    def contents(self) -> list[str] | None:
        """Return None if the files have their published checksums, else checksums of the files or of the data."""
        if self._idx:
            return self._idx.unproven()
        if hasattr(self._loader, "train_list"):  # CIFAR's files are checked by torchvision
            return None
        return [hashed(*split) for split in (self.train(), self.test())]

    @property
    def place(self) -> Path:
        """The root, with ``~`` expanded."""
        return place(self.root)

    @property
    def remedy(self) -> str:
        """The advice in errors about files that differ from the published ones."""
        return f"run mad-data {self.name} --root {self.place}"

    def mend(self) -> None:
        """Rename files that differ from the published ones to ``*.wrong``, and unpack archives in their folder."""
        for file, why in self._wrong():
            aside = file.with_name(f"{file.name}.wrong")
            err.print(f"{file} is not {self.loader}'s ({why}): renamed to {aside.name}", soft_wrap=True, markup=False)
            file.replace(aside)
        if self._idx:
            self._idx.unpack()

    @property
    def _idx(self) -> IdxFiles | None:
        """The files of MNIST's family, which torchvision does not check."""
        return IdxFiles(self.loader, self.place, self.options.get("split", "")) if self.loader in LOADERS else None

    @property
    def _loader(self) -> Any:
        from torchvision import datasets  # a slow import that the embedded default never pays

        return getattr(datasets, self.loader)

    def _split(self, train: bool) -> Split:
        files = self._idx
        if files:
            if not files.there(train):
                self._download(files, train)
            images, labels = files.read(train, self.remedy)
        else:
            raw = self._open(train)
            images = torch.as_tensor(np.asarray(raw.data))
            images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
            labels = torch.as_tensor(np.asarray(raw.targets)).long()
        if self.loader == "EMNIST":
            images = images.transpose(2, 3)  # EMNIST stores images transposed
            labels = labels - int(self.options.get("split") == "letters")  # the letters' labels begin at 1
        if tuple(images.shape[1:]) != self.shape:
            raise MadError(f"{self.name} holds images of {tuple(images.shape[1:])}, its config says {self.shape}")
        return Split(images.contiguous(), labels)

    def _download(self, files: IdxFiles, train: bool) -> None:
        """Unpack or download the files of a split; MadError if that fails."""
        with self._downloading():
            files.unpack()
            if not files.there(train):
                try:
                    self._load(train=train, download=True)
                except Exception:  # torchvision also reads all files, of which some may be damaged
                    if not files.there(train):
                        raise
        if not files.there(train):  # torchvision takes the processed files of its old versions for the whole set
            left = self.place / self.loader / "processed"
            raise MadError(f"{self.loader} is not whole under {self.place}/; remove {left} and {self.remedy}")

    def _open(self, train: bool) -> Any:
        with contextlib.suppress(RuntimeError):
            return self._load(train=train, download=False)
        for file, why in self._wrong():
            raise MadError(f"{file} is not {self.loader}'s: {why}; {self.remedy}")
        with self._downloading():
            return self._load(train=train, download=True)

    def _load(self, **how: bool) -> Any:
        return self._loader(str(self.place), **how, **self.options)

    def _wrong(self) -> Iterator[tuple[Path, str]]:
        """Yield the existing files that differ from the published ones, each with the reason."""
        if self._idx:
            yield from self._idx.wrong()
        elif hasattr(self._loader, "train_list"):
            for name, right in self._loader.train_list + self._loader.test_list:
                file = self.place / self._loader.base_folder / name
                if file.is_file() and (found := checksum_of(file, "md5")) != right:
                    yield file, f"its MD5 should be {right}, is {found}"

    def _packed(self) -> tuple[Path, str]:
        """Return the path at which a user can put a missing archive, and the archive's MD5."""
        if self._idx is None:
            return self.place / self._loader.filename, self._loader.tgz_md5
        if self.loader == "EMNIST":
            return self._idx.files[0].with_name(EMNIST_ZIP[0]), self._loader.md5
        missing = next(file for file in self._idx.files if not file.is_file())
        packed = missing.with_name(f"{missing.name}.gz")
        return packed, dict(self._loader.resources)[packed.name]

    @contextlib.contextmanager
    def _downloading(self) -> Iterator[None]:
        """Hold a lock so that one process downloads at a time; turn any error into a MadError with advice."""
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            with held(self.place / f".{self.loader}.lock"):
                yield
        except Exception as error:
            remedy = "set data_root= or MAD_DATA to a root that holds it"
            with contextlib.suppress(AttributeError, KeyError, StopIteration):  # of a loader of another kind
                file, md5 = self._packed()
                remedy = f"try again, put {file.name} (MD5 {md5}) at {file} yourself, or {remedy}"
            raise MadError(
                f"{self.loader} is not whole under {self.place}/ and could not be downloaded "
                f"({type(error).__name__}); {remedy}"
            ) from error
