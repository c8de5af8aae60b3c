"""Image classifiers of torchvision and timm, by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mad.architectures import imagenet
from mad.architectures.pixels import IMAGENET_MEAN, IMAGENET_STD, Standardize
from mad.errors import MadError, near


class Library(nn.Module, ABC):
    """A library's network as one of this package: images in [0, 1] to logits (B, K).

    Its forward pass is tried once, to see whether it takes images of this shape.

    Args:
        shape: (C, H, W) of the images.
        classes: number of classes K.
        name: the library's name of the model.
        weights: ``imagenet`` for the library's pretrained weights in all layers but the last; None for random weights.

    Raises:
        MadError: if the library is not installed, or if the model does not exist or does not take such images.
    """

    listed: ClassVar[str]  # the library's function that lists its models

    def __init__(self, shape: tuple[int, int, int], classes: int, name: str, weights: str | None = None) -> None:
        super().__init__()
        self.about = f"architecture={type(self).__name__.lower()} architecture.name={name}"
        self.network, mean, std = self.build(shape[0], classes, name, imagenet.wanted(weights))
        self.normalize = Standardize(shape[0], mean, std)
        self._try(tuple(shape), classes)

    @abstractmethod
    def build(
        self, channels: int, classes: int, name: str, pretrained: bool
    ) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
        """Return the network, and the mean and standard deviation of each channel that its weights expect."""

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to logits (B, K)."""
        found: Any = self.network(self.normalize(images))
        return found if isinstance(found, Tensor) else found[0]  # some networks add auxiliary logits in train mode

    @property
    def head(self) -> nn.Module:
        """The last layer with weights."""
        return last_layer(self.network)[1]

    def known(self, name: Any, choices: Sequence[str]) -> None:
        """Raise MadError if the library has no model of this name."""
        if name not in choices:
            similar = near(str(name), choices, 3) or f", as there are {', '.join(choices[:3])}"
            raise MadError(f"{self.about}: no such model{similar}; {self.listed} in Python names all")

    @torch.no_grad()
    def _try(self, shape: tuple[int, ...], classes: int) -> None:
        self.eval()
        try:
            logits = self(torch.zeros(2, *shape))
        except Exception as error:  # any error of a library's network
            reason = " ".join(str(error).split())[:150] or type(error).__name__
            raise MadError(f"{self.about} takes no images of {shape} ({reason}): choose another model") from error
        if not isinstance(logits, Tensor) or tuple(logits.shape) != (2, classes):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise MadError(f"{self.about} answers two images with {got}, expected logits {(2, classes)}")
        self.train()


class Torchvision(Library):
    """A classifier of torchvision."""

    listed = "torchvision.models.list_models()"

    def build(
        self, channels: int, classes: int, name: str, pretrained: bool
    ) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
        """Build it for K classes, or with ImageNet weights and a new last layer."""
        from torchvision import models

        self.known(name, models.list_models(module=models))
        if not pretrained:
            return models.get_model(name, weights=None, num_classes=classes), IMAGENET_MEAN, IMAGENET_STD
        network = imagenet.published(name)
        path, last = last_layer(network)
        if not isinstance(last, nn.Linear):
            raise MadError(f"{self.about} ends in no linear layer that could be made anew: set weights=null")
        owner, _, attribute = path.rpartition(".")
        setattr(network.get_submodule(owner), attribute, nn.Linear(last.in_features, classes))
        return network, IMAGENET_MEAN, IMAGENET_STD


class Timm(Library):
    """A classifier of timm."""

    listed = "timm.list_models()"

    def build(
        self, channels: int, classes: int, name: str, pretrained: bool
    ) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
        """Build it for K classes and C channels; timm adapts the pretrained weights to C."""
        try:
            import timm
        except ImportError as error:
            raise MadError("architecture=timm needs timm: pip install 'mad[timm]'") from error
        plain = str(name).partition(".")[0]  # the tag after the dot names the weights
        self.known(plain, timm.list_models())
        try:
            network = timm.create_model(name, pretrained=pretrained, num_classes=classes, in_chans=channels)
        except Exception as error:  # an unknown tag, or a failed download
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise MadError(f"{self.about} cannot be built: {reason}") from error
        expected: Any = network.pretrained_cfg
        return network, expected.get("mean") or IMAGENET_MEAN, expected.get("std") or IMAGENET_STD


def last_layer(network: nn.Module) -> tuple[str, nn.Module]:
    """Return the path and the module of the last layer with weights, by order of registration."""
    layers = [(path, part) for path, part in network.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    if not layers:
        raise MadError(f"{type(network).__name__} has no linear layer and no convolution")
    return layers[-1]
