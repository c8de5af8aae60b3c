"""The network that stands for the adversary's inside the defense."""

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
from mad.victim import Architecture, Victim


@dataclass(frozen=True)
class Surrogate(ABC):
    """Makes the surrogate once the victim is trained. An author writes ``build``; ``ready`` keeps the promises."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    white_box: ClassVar[bool] = False  # whether it takes an attack that trains while it queries
    train_mode: ClassVar[bool] = True  # whether the published code leaves such a surrogate in train mode

    def check(self, victim: Victim) -> None:  # noqa: B027
        """Raise MadError for a victim this surrogate does not fit, before anything is trained; by default never."""

    @abstractmethod
    def build(self, context: Context) -> nn.Module:
        """Return a network in eval mode, images (B, C, H, W) to logits (B, K) for the victim's K classes."""

    @final
    def ready(self, context: Context, as_published: bool = False) -> nn.Module:
        """Return the surrogate, frozen: in eval mode and without gradients.

        Args:
            context: what it is built for.
            as_published: let its batch norms see one image at a time, where the published code's do.

        Raises:
            MadError: if a part of it is in train mode, if its logits are not (B, K), or if ``as_published`` cannot be.
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
    """Random weights, never trained: the paper's choice ("far from convergence").

    An architecture with ImageNet weights keeps them in all layers but the last, as the published code's surrogates of
    CUB-200 and Caltech-256 do. It runs in eval mode; ``defense.as_published=true`` for what the published code's
    train mode comes to.

    Args:
        architecture: None for the victim's.
    """

    name = "random"
    architecture: Architecture | None = None

    def build(self, context: Context) -> nn.Module:
        """Draw the weights from the cell's seed."""
        network = context.victim.untrained(self.architecture, seed=context.seed, purpose="surrogate")
        return place(network, context.device)


@dataclass(frozen=True)
class TrainedSurrogate(Surrogate):
    """Trained on labelled images: a defender who guesses what the adversary will learn.

    Args:
        trainer: how it is trained.
        epochs: replaces the trainer's.
        dataset: what it is trained on, with images and as many classes as the victim's; None for the victim's own.
        architecture: None for the victim's.
    """

    name = "trained"
    trainer: Trainer
    epochs: int | None = None
    dataset: Dataset | None = None
    architecture: Architecture | None = None

    def __post_init__(self) -> None:
        self.trainer.but(epochs=self.epochs)  # refuses a wrong number now

    def check(self, victim: Victim) -> None:
        """Refuse a data set of another number of classes or shape than the victim's."""
        given, own = self.dataset or victim.dataset, victim.dataset
        if (given.classes, tuple(given.shape)) != (own.classes, tuple(own.shape)):
            raise MadError(
                f"defense.surrogate.dataset {given.name} has {given.classes} classes of {tuple(given.shape)}, "
                f"the surrogate of victim {victim.name} needs {own.classes} of {tuple(own.shape)}: choose another"
            )

    def build(self, context: Context) -> nn.Module:
        """Train it, or load it where it was trained before."""
        self.check(context.victim)
        recipe = Victim(
            name="surrogate",
            dataset=self.dataset or context.victim.dataset,
            architecture=self.architecture or context.victim.architecture,
            trainer=self.trainer,
            epochs=self.epochs,
            seed=derive(context.seed, "surrogate") >> 1,  # never the victim's weights
            validation=context.victim.validation,
        )
        return context.trained(recipe)


@dataclass(frozen=True)
class VictimSurrogate(Surrogate):
    """The served model itself: a defender who takes the adversary's network for a copy of its own."""

    name = "victim"
    train_mode = False

    def build(self, context: Context) -> nn.Module:
        """Return the model that is served."""
        return context.model


@dataclass(frozen=True)
class AdversarySurrogate(Surrogate):
    """The adversary's own network as it is at every query: the white box of the paper's figs. 6 and 7.

    ``ready`` freezes it, and an attack that trains it turns its gradients on again; ``CachedNetwork`` notices weights
    that a step has changed in place, and runs the network.
    """

    name = "adversary"
    white_box = True
    train_mode = False  # in the published code it is until it is first judged, and then no more

    def build(self, context: Context) -> nn.Module:
        """Return the network that the adversary is going to train."""
        if context.live is None:
            raise MadError("surrogate adversary needs a context with the adversary's live network, got none")
        return context.live()


class OneByOne(nn.Module):
    """A network whose batch norms take the mean and variance of each image by itself: train mode at batch size one.

    That mode also updates running statistics, which it never reads, and turns dropout on; neither is done here, so
    that no answer depends on its batch or on what was asked before.

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
        """Raise MadError if the network cannot do it: after a linear layer one image has one value a channel."""
        try:
            self(images)
        except (RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise MadError(
                f"defense.as_published=true: the batch norms of {whose} cannot take one image at a time, as in the "
                f"published code ({reason}): choose another defense/surrogate/architecture, or false"
            ) from error
