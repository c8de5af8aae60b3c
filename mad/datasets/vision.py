"""torchvision's data sets, whole in memory."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from mad.datasets.base import Images, Split
from mad.errors import MadError


@dataclass(frozen=True)
class Vision:
    """A data set of ``torchvision.datasets`` that is small enough to keep in memory.

    Args:
        name: its name in this project.
        loader: its class in ``torchvision.datasets``.
        root: the torchvision root; what is missing there is downloaded.
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

    def _split(self, train: bool) -> Split:
        raw = self._open(train)
        images = torch.as_tensor(np.asarray(raw.data))
        images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
        labels = torch.as_tensor(np.asarray(raw.targets)).long()
        if self.loader == "EMNIST":
            images = images.transpose(2, 3)  # EMNIST is stored with rows and columns exchanged
        if tuple(images.shape[1:]) != self.shape:
            raise MadError(f"{self.name} holds images of {tuple(images.shape[1:])}, its config says {self.shape}")
        return Split(images.contiguous(), labels)

    def _open(self, train: bool) -> Any:
        from torchvision import datasets  # a slow import that the embedded default never pays

        loader = getattr(datasets, self.loader)
        root = Path(self.root).expanduser()
        with contextlib.suppress(RuntimeError):
            return loader(str(root), train=train, download=False, **self.options)
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f".{self.loader}.lock"):
                return loader(str(root), train=train, download=True, **self.options)
        except Exception as error:
            raise MadError(
                f"{self.loader} is not under {root}/ and could not be downloaded ({type(error).__name__}); "
                f"run mad-data {self.name} --root {root}, or set data_root= or MAD_DATA to a root that holds it"
            ) from error
