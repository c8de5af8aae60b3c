"""The victim: the recipe of a classifier, which determines its weights before it is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mad.architectures.untrained import untrained
from mad.datasets import Dataset, Split, checked
from mad.datasets.held_out import divided
from mad.errors import MadError, check_kind, check_name, check_number
from mad.seeds import seeded
from mad.storage.fingerprint import ADDED, name_of
from mad.storage.source import provided
from mad.training import Trainer

Architecture = Callable[..., nn.Module]  # called with (shape, classes)


@dataclass(frozen=True)
class Victim:
    """The recipe of a victim: everything that determines its weights.

    Args:
        name: the victim's name, in folders and tables.
        dataset: the data set that it is trained and evaluated on.
        architecture: makes an untrained network from ``shape`` (C, H, W) and ``classes`` K.
        trainer: the training recipe.
        seed: seed of the initial weights and of the order of the training images.
        epochs: replaces the trainer's epochs, for data sets that need more or fewer.
        validation: share of the training split, in [0, 0.9], that is held out of training; see ``validation_split``.
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
        check_kind("trainer", self.trainer, Trainer)
        if isinstance(self.architecture, nn.Module) or not callable(self.architecture):
            raise MadError(
                "architecture must be what makes an untrained network from shape and classes, such as its class, got "
                f"{' '.join(repr(self.architecture).split())[:80]}; a trained network is a function of mad.own.Own"
            )
        object.__setattr__(self, "trainer", self.trainer.but(epochs=self.epochs))
        object.__setattr__(self, "epochs", None)

    @property
    def given(self) -> Any:
        """What identifies a network that is given and not trained, see ``mad.own``; None for one that is trained."""
        return None

    @property
    def form(self) -> str | None:
        """What a given network is, such as ``function``, if it is none of the architecture; else None."""
        return None

    @property
    def network_name(self) -> str:
        """The name of the victim's network, for records and tables."""
        return name_of(self.architecture)

    @property
    def who(self) -> str:
        """The victim's network as errors and lines name it."""
        return f"victim {self.name}"

    @property
    def class_names(self) -> str | None:
        """The names of the classes in the order of the labels, as a JSON list; None if the data set has none."""
        names = getattr(self.dataset, "names", None)
        return None if names is None else json.dumps(list(names), ensure_ascii=False)

    def ready(self, device: torch.device, outputs: Path | None = None) -> nn.Module:
        """Return the victim's network, in eval mode on ``device``: trained, or as it is given.

        Args:
            device: where to compute.
            outputs: the outputs folder, where a given network may keep what it paid for; None keeps nothing.
        """
        return self.train(device)

    def check_trainable(self, who: str) -> None:
        """Raise MadError if the victim cannot be trained anew; ``who`` wants to."""

    def check_open(self, who: str) -> None:
        """Raise MadError if the victim's weights and gradients cannot be had; ``who`` needs them."""

    def rebuilt_by(self, architecture: Architecture) -> Architecture:
        """Return what builds the network that is served, of an architecture and without its weights, for an export.

        Raises:
            MadError: if nothing does, since it is no network of an architecture.
        """
        return architecture

    def examine(self, network: nn.Module, test: Split, device: torch.device) -> None:
        """Check the network on the test split before anything is stolen; a trained victim needs no check."""

    def untrained(self, architecture: Architecture | None = None, *, seed: int, purpose: str) -> nn.Module:
        """Return a randomly initialized network for this victim's images and classes, in eval mode.

        A network for any purpose but ``"victim"`` has random weights even if its factory loads some; see
        ``mad.architectures.untrained``.

        Args:
            architecture: replaces the victim's architecture.
            seed: with ``purpose``, determines the random weights.
            purpose: what the network is for, such as ``"victim"`` or ``"surrogate"``.
        """
        make = architecture or self.architecture
        if purpose != "victim":
            return untrained(make, self.dataset.shape, self.dataset.classes, seed, purpose)
        with seeded(seed, purpose):
            return make(shape=self.dataset.shape, classes=self.dataset.classes).eval()

    def train(self, device: torch.device) -> nn.Module:
        """Return a network trained on the labeled training split, in eval mode on ``device``."""
        model = self.untrained(seed=self.seed, purpose="victim")
        self.fit(model, device)
        return model

    def fit(self, model: nn.Module, device: torch.device) -> None:
        """Train a network in place on the labeled training split, without the images that are held out."""
        split = self.training_split()
        self.trainer.fit(model, split.images, split.labels, seed=self.seed, device=device, task=f"victim {self.name}")

    def training_split(self) -> Split:
        """Return the images and labels that the victim is trained on: all but those of ``validation_split``."""
        if not self.validation:
            return checked.split(self.dataset, "train")
        return divided(self.dataset, self.validation)[0]

    def validation_split(self) -> Split:
        """Return the held-out images and labels, which victims of this data set and share are not trained on.

        Which images these are does not depend on the seed. Use them to calibrate and tune a defense; the test split is
        only for the final evaluation.

        Raises:
            MadError: if no images are held out.
        """
        if not self.validation:
            raise MadError(f"victim {self.name} holds no image out to calibrate on: set victim.validation=0.1 or so")
        return divided(self.dataset, self.validation)[1]


@dataclass(frozen=True)
class StandIn(Victim):
    """What is trained as a victim is and is none: a surrogate, or an adversary's shadow victim.

    It starts from random weights even if its factory loads some. These may be those of the victim, which the factory
    is taken from: nobody who only knows the architecture has them.
    """

    kind = "mad.victim.Victim"  # kept networks are found again

    @property
    def amended(self) -> str | None:
        """See ``mad.storage.fingerprint``: of a factory of the user's own it once kept the weights."""
        module = getattr(self.architecture, "func", self.architecture).__module__
        return None if provided(module) else "starts untrained"

    def untrained(self, architecture: Architecture | None = None, *, seed: int, purpose: str) -> nn.Module:
        """Return a randomly initialized network, for every purpose."""
        make, dataset = architecture or self.architecture, self.dataset
        return untrained(make, dataset.shape, dataset.classes, seed, purpose, self.name)
