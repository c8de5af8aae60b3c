"""The normalization in front of a network that is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mad.architectures.pixels import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD, Standardize
from mad.errors import MadError

PUBLISHED = {
    "none": ((0.0,), (1.0,)),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "cifar": (CIFAR_MEAN, CIFAR_STD),
    "half": ((0.5,), (0.5,)),  # to [-1, 1]
    "bytes": ((0.0,), (1 / 255,)),  # to 0..255
    "mnist": ((0.1307,), (0.3081,)),
}


class Normalized(nn.Module):
    """A network that gets normalized images: (B, C, H, W) in [0, 1] to logits (B, K)."""

    def __init__(self, normalize: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.normalize, self.network = normalize, network

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's logits for the normalized images."""
        found: Tensor = self.network(self.normalize(images))
        return found


def normalized(network: nn.Module, given: Any, channels: int) -> nn.Module:
    """Return a network that normalizes as ``layer`` says, in its own layer ``normalize`` if it has one."""
    wanted = layer(given, channels)
    if wanted is None:
        return network
    if isinstance(getattr(network, "normalize", None), Standardize):
        network.normalize = wanted
        return network
    return Normalized(wanted, network)


def layer(given: Any, channels: int) -> Standardize | None:
    """Return the layer that normalizes images of C channels, as ``victim.normalize`` says; None if it is None.

    Args:
        given: a name of ``PUBLISHED``; or ``{mean: [...], std: [...]}``, of images in [0, 1], one number a channel or
            one for all; or None.
        channels: C.

    Raises:
        MadError: if it is none of these.
    """
    if given is None:
        return None
    named = isinstance(given, str)
    mean, std = PUBLISHED.get(given, ((), ())) if named else pair(given)
    counts = (1, 3) if named else (1, channels)  # the published three are averaged for gray images
    if not (numbers(mean, counts) and numbers(std, counts) and all(value > 0 for value in std)):
        raise MadError(
            f"victim.normalize must be {', '.join(PUBLISHED)}, or {{mean: [...], std: [...]}} with {channels} numbers "
            f"each, for images in [0, 1]; got {given!r}"
        )
    return Standardize(channels, mean, std)


def pair(given: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return the mean and the standard deviation of a mapping; empty if it is none."""
    if not isinstance(given, dict) or set(given) != {"mean", "std"}:
        return (), ()
    mean, std = (value if isinstance(value, (list, tuple)) else [value] for value in (given["mean"], given["std"]))
    return mean, std


def numbers(values: Sequence[Any], counts: tuple[int, int]) -> bool:
    """Return whether values are finite numbers, as many as one of the counts."""
    return len(values) in counts and all(isinstance(value, (int, float)) and abs(value) < 1e6 for value in values)
