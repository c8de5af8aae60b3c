"""Surrogates: the network inside the defense that stands in for the adversary's."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.func import replace_all_batch_norm_modules_, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from mad.datasets import Dataset
from mad.defenses.base import Context
from mad.errors import MadError
from mad.seeds import derive
from mad.training import Trainer, place
from mad.victim import Architecture, StandIn, Victim


@dataclass(frozen=True)
class Surrogate(ABC):
    """Base class of surrogates. A new surrogate implements ``build``; ``ready`` calls it and checks the network."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    needs_validation: ClassVar[bool] = False  # whether it learns from images that the victim holds out
    white_box: ClassVar[bool] = False  # whether it needs an attack that trains while it queries
    train_mode: ClassVar[bool] = True  # whether the published code leaves such a surrogate in train mode

    def check(self, victim: Victim) -> None:  # noqa: B027
        """Raise MadError if this surrogate does not fit the victim; called before anything is trained."""

    def training(self, victim: Victim) -> Trainer | None:
        """Return how this surrogate of a victim is trained if their fields do not say all of it."""
        return None

    @abstractmethod
    def build(self, context: Context) -> nn.Module:
        """Return a network in eval mode, images (B, C, H, W) to logits (B, K) for the victim's K classes."""

    @final
    def ready(self, context: Context, as_published: bool = False) -> nn.Module:
        """Return the surrogate in eval mode, with ``requires_grad`` off for its weights.

        Args:
            context: the victim and device that it is built for.
            as_published: let batch norms normalize each image by itself, if the published code does so for this
                surrogate (``train_mode``).

        Raises:
            MadError: if a module of it is in train mode, if its logits are not (B, K), or if its batch norms cannot
                take one image at a time.
        """
        network = self.build(context).requires_grad_(False)
        if any(part.training for part in network.modules()):
            raise MadError(f"surrogate {self.name} is in train mode: build must return it after .eval()")
        images = torch.zeros(2, *context.victim.dataset.shape, device=context.device)
        if as_published and self.train_mode and any(isinstance(part, _BatchNorm) for part in network.modules()):
            network = OneByOne(network)
            network.attempt(images, f"surrogate {self.name} of victim {context.victim.name}")
        with torch.no_grad():
            logits = network(images)
        expected = (2, context.victim.dataset.classes)
        if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != expected:
            got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise MadError(
                f"surrogate {self.name} answers two images with {got}, expected logits {expected}: "
                f"give it the classes of victim {context.victim.name}"
            )
        return network


@dataclass(frozen=True)
class RandomSurrogate(Surrogate):
    """An untrained network with random weights, the paper's choice ("far from convergence").

    An architecture with ImageNet weights keeps them in all layers but the last, as in the published code for CUB-200
    and Caltech-256. The network runs in eval mode; ``defense.as_published=true`` imitates the published code's train
    mode.

    Args:
        architecture: None for the victim's.
    """

    name = "random"
    architecture: Architecture | None = None

    def build(self, context: Context) -> nn.Module:
        """Return the network, with weights drawn from the cell's seed."""
        network = context.victim.untrained(self.architecture, seed=context.seed, purpose="surrogate")
        return place(network, context.device)


@dataclass(frozen=True)
class TrainedSurrogate(Surrogate):
    """A network trained on labeled images: the defender's guess at what the adversary will learn.

    Args:
        trainer: the training recipe.
        epochs: replaces the trainer's epochs.
        dataset: the data set to train on, with the shape and number of classes of the victim's; None for the victim's.
        architecture: None for the victim's.
    """

    name = "trained"
    trainer: Trainer
    epochs: int | None = None
    dataset: Dataset | None = None
    architecture: Architecture | None = None

    def __post_init__(self) -> None:
        self.trainer.but(epochs=self.epochs)  # checks the number now

    def check(self, victim: Victim) -> None:
        """Raise MadError if the data set's shape or number of classes is not the victim's."""
        given, own = self.dataset or victim.dataset, victim.dataset
        if (given.classes, tuple(given.shape)) != (own.classes, tuple(own.shape)):
            raise MadError(
                f"defense.surrogate.dataset {given.name} has {given.classes} classes of {tuple(given.shape)}, "
                f"the surrogate of victim {victim.name} needs {own.classes} of {tuple(own.shape)}: choose another"
            )

    def build(self, context: Context) -> nn.Module:
        """Return the network, trained or loaded."""
        self.check(context.victim)
        return context.trained(self.recipe(context.victim, context.seed))

    def recipe(self, victim: Victim, seed: int) -> Victim:
        """Return the recipe of the network for a victim and the seed of a cell."""
        return StandIn(
            name="surrogate",
            dataset=self.dataset or victim.dataset,
            architecture=self.architecture or victim.architecture,
            trainer=self.trainer,
            epochs=self.epochs,
            seed=derive(seed, "surrogate") >> 1,  # never the victim's seed
            validation=victim.validation,
        )


@dataclass(frozen=True)
class VictimSurrogate(Surrogate):
    """The served model itself: the defender assumes that the adversary's network resembles it."""

    name = "victim"
    train_mode = False

    def check(self, victim: Victim) -> None:
        """Raise MadError if the victim only answers."""
        victim.check_open("defense/surrogate=victim")

    def build(self, context: Context) -> nn.Module:
        """Return the model that is served."""
        return context.model


@dataclass(frozen=True)
class AdversarySurrogate(Surrogate):
    """The adversary's own network at the time of each query: the white-box defense of the paper's figs. 6 and 7.

    ``ready`` turns its gradients off, and the attack that trains it turns them on again. ``CachedNetwork`` notices
    weights that were changed in place, and then does not use its cache.
    """

    name = "adversary"
    white_box = True
    train_mode = False  # the published code leaves it in train mode only until its first evaluation

    def build(self, context: Context) -> nn.Module:
        """Return the network that the adversary is going to train."""
        if context.live is None:
            raise MadError("surrogate adversary needs a context with the adversary's live network, got none")
        return context.live()


class OneByOne(nn.Module):
    """A network whose batch norms normalize each image by its own mean and variance, as in train mode at batch size 1.

    Unlike train mode, it updates no running statistics and applies no dropout, so that no answer depends on its batch
    or on earlier queries.

    Args:
        network: images (B, C, H, W) to logits (B, K), in eval mode; a copy is taken.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = replace_all_batch_norm_modules_(copy.deepcopy(network))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return vmap(lambda image: self.network(image.unsqueeze(0)).squeeze(0))(images)

    @torch.no_grad()
    def attempt(self, images: Tensor, whose: str) -> None:
        """Raise MadError if the network cannot take one image: a batch norm after a linear layer gets one value only.

        Args:
            images: images (B, C, H, W) to try.
            whose: names the network in the error.
        """
        try:
            self(images)
        except (RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise MadError(
                f"defense.as_published=true: the batch norms of {whose} cannot take one image at a time, as in the "
                f"published code ({reason}): choose another defense/surrogate/architecture, or false"
            ) from error
