"""The test split of CIFAR-100 as a pool; it does not need the files of the training split."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from hashlib import md5
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mad.datasets.base import Images
from mad.datasets.content import place
from mad.errors import MadError


@dataclass(frozen=True)
class Cifar100Test:
    """The 10,000 test images of CIFAR-100, uint8 (10000, 3, 32, 32), of 100 classes.

    torchvision's own loader requires the files of both splits.

    Args:
        root: the torchvision root that holds ``cifar-100-python/test``.
        name: what the pool is called.
        md5: checksum of that file. Loading a pickle can run any code, so a file with another checksum is refused.
    """

    root: str = field(compare=False)
    name: str = "cifar100_test"
    md5: str = "f0ef6b0ae62326f3e7ffdfab6717acfc"

    def images(self, shape: tuple[int, int, int]) -> Images:
        """Return the images, uint8 (10000, 3, 32, 32); ``shape`` is ignored."""
        return torch.as_tensor(np.asarray(self._content()["data"], dtype=np.uint8)).view(-1, 3, 32, 32)

    def labels(self) -> Tensor:
        """Return the fine label of each image, int64 (10000,), from 0 to 99."""
        return torch.tensor(self._content()["fine_labels"], dtype=torch.int64)

    def contents(self) -> None:
        """Return None, because ``md5`` determines the data."""

    def _content(self) -> dict[str, Any]:
        file = place(self.root) / "cifar-100-python" / "test"
        remedy = f"run mad-data cifar100 --root {self.root}"
        try:
            content = file.read_bytes()
        except OSError as error:
            raise MadError(f"{file}: {error.strerror}; {remedy}") from error
        if md5(content, usedforsecurity=False).hexdigest() != self.md5:
            raise MadError(f"{file} is not CIFAR-100's test split: its MD5 should be {self.md5}; {remedy}")
        return pickle.loads(content, encoding="latin1")
