"""torchvision's ImageNet weights, for all layers of a network but the last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import nn

from mad.errors import MadError, check_choice

WEIGHTS = ("imagenet",)
LEFT_OUT: ContextVar[bool] = ContextVar("left_out", default=False)


@contextlib.contextmanager
def left_out() -> Iterator[None]:
    """Build networks without pretrained weights in the block, since others will be loaded; saves the download."""
    token = LEFT_OUT.set(True)
    try:
        yield
    finally:
        LEFT_OUT.reset(token)


def wanted(weights: str | None) -> bool:
    """Return whether ImageNet weights are to be loaded; always False inside ``left_out``.

    Raises:
        MadError: if ``weights`` is neither None nor ``imagenet``.
    """
    if weights is not None:
        check_choice("weights", weights, WEIGHTS)
    return weights is not None and not LEFT_OUT.get()


def published(name: str) -> nn.Module:
    """Return torchvision's network of a name with its first published ImageNet weights, for 1000 classes.

    It is always the first set of weights, because a fingerprint must determine them. They are downloaded once, to
    torch's hub folder, and checked against the checksum in their file name.

    Raises:
        MadError: if there are no weights, or if they cannot be downloaded, do not fit or are not finite.
    """
    from torchvision import models

    choices = list(models.get_model_weights(name))
    if not choices:
        raise MadError(f"torchvision has no ImageNet weights for {name}: set weights=null")
    network, file = models.get_model(name), Path(torch.hub.get_dir(), "checkpoints", Path(choices[0].url).name)
    try:
        state = choices[0].get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # any error of the network or of a damaged file
        reason = " ".join(str(error).split())[:200]
        if file.exists():
            raise MadError(f"{file} cannot be read ({reason}): remove it, and it is fetched again") from error
        raise MadError(
            f"the ImageNet weights of {name} cannot be fetched ({reason}): "
            f"put {choices[0].url} into {file.parent}, or set weights=null"
        ) from error
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise MadError(
            f"{file} does not hold the ImageNet weights of {name}: remove it, and it is fetched again"
        ) from error
    if not all(value.isfinite().all() for value in state.values()):
        raise MadError(f"{file} holds NaN or infinite weights: remove it, and it is fetched again")
    return network


def adopt(own: nn.Module, shape: Sequence[int], name: str, skip: int = 0) -> None:
    """Copy published weights into the layers of ``own``, which must have the order of torchvision's network.

    Args:
        own: a network without its last layer.
        shape: (C, H, W) of its images.
        name: torchvision's name of the network.
        skip: number of layers at the beginning that keep their weights.

    Raises:
        MadError: if the images do not have 3 channels.
    """
    if shape[0] != 3:
        raise MadError(f"weights=imagenet takes images of 3 channels, got {shape[0]}: set weights=null")
    for layer, theirs in list(zip(_layers(own), _layers(published(name)), strict=False))[skip:]:
        layer.load_state_dict(theirs.state_dict())


def _layers(network: nn.Module) -> list[nn.Module]:
    """Return the layers that hold weights, in order."""
    return [module for module in network.modules() if next(module.parameters(recurse=False), None) is not None]
