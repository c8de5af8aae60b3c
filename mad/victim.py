"""The victim: a recipe that names a trained classifier before it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mad.datasets import Dataset, checked
from mad.errors import check_name, check_number
from mad.seeds import seeded
from mad.training import Trainer

Architecture = Callable[..., nn.Module]  # called with (shape, classes)


@dataclass(frozen=True)
class Victim:
    """What determines a victim's weights.

    Args:
        name: names its folder and its rows in tables.
        dataset: what it is trained and judged on.
        architecture: makes an untrained network from ``shape`` and ``classes``.
        trainer: how it is trained.
        seed: of its initial weights and of the order of its training images.
        epochs: replaces the trainer's, for data sets that need more or fewer.
    """

    name: str
    dataset: Dataset
    architecture: Architecture
    trainer: Trainer
    seed: int = 0
    epochs: int | None = None

    def __post_init__(self) -> None:
        check_name("victim.name", self.name)
        check_number("seed", self.seed, 0, 2**62, whole=True)
        checked.declared(self.dataset)
        object.__setattr__(self, "trainer", self.trainer.but(epochs=self.epochs))
        object.__setattr__(self, "epochs", None)

    def untrained(self, architecture: Architecture | None = None, *, seed: int, purpose: str) -> nn.Module:
        """Return a randomly initialised network for this victim's images and classes, in eval mode."""
        make = architecture or self.architecture
        with seeded(seed, purpose):
            return make(shape=self.dataset.shape, classes=self.dataset.classes).eval()

    def train(self, device: torch.device) -> nn.Module:
        """Train on the labelled training split."""
        split = checked.split(self.dataset, "train")
        model = self.untrained(seed=self.seed, purpose="victim")
        self.trainer.fit(model, split.images, split.labels, seed=self.seed, device=device, task=f"victim {self.name}")
        return model
