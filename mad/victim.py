"""The victim: a recipe that names a trained classifier before it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from mad.datasets import Dataset, Split, checked
from mad.datasets.held_out import divided
from mad.errors import MadError, check_name, check_number
from mad.seeds import seeded
from mad.storage.fingerprint import ADDED
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
        validation: share of the training split, in [0, 0.9], that it does not learn from; see ``validation_split``.
    """

    name: str
    dataset: Dataset
    architecture: Architecture
    trainer: Trainer
    seed: int = 0
    epochs: int | None = None
    validation: float = field(default=0.0, metadata=ADDED)

    def __post_init__(self) -> None:
        check_name("victim.name", self.name)
        check_number("seed", self.seed, 0, 2**62, whole=True)
        checked.declared(self.dataset)
        check_number("victim.validation", self.validation, 0, 0.9)
        object.__setattr__(self, "trainer", self.trainer.but(epochs=self.epochs))
        object.__setattr__(self, "epochs", None)

    def untrained(self, architecture: Architecture | None = None, *, seed: int, purpose: str) -> nn.Module:
        """Return a randomly initialised network for this victim's images and classes, in eval mode."""
        make = architecture or self.architecture
        with seeded(seed, purpose):
            return make(shape=self.dataset.shape, classes=self.dataset.classes).eval()

    def train(self, device: torch.device) -> nn.Module:
        """Return a network trained on the labelled training split, in eval mode on a device."""
        model = self.untrained(seed=self.seed, purpose="victim")
        self.fit(model, device)
        return model

    def fit(self, model: nn.Module, device: torch.device) -> None:
        """Train an untrained network in place on the labelled training split, without what is held out of it."""
        split = self.training_split()
        self.trainer.fit(model, split.images, split.labels, seed=self.seed, device=device, task=f"victim {self.name}")

    def training_split(self) -> Split:
        """Return the images and labels that the victim learns from: all but those of ``validation_split``."""
        if not self.validation:
            return checked.split(self.dataset, "train")
        return divided(self.dataset, self.validation)[0]

    def validation_split(self) -> Split:
        """Return images and labels that no victim of this data set and share learns from, whatever its seed.

        They are for calibrating and tuning a defense; the test split is read once, at the end.

        Raises:
            MadError: if none are held out.
        """
        if not self.validation:
            raise MadError(f"victim {self.name} holds no image out to calibrate on: set victim.validation=0.1 or so")
        return divided(self.dataset, self.validation)[1]
