"""Networks with random weights, also from factories that load weights of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from mad.datasets.checked import say
from mad.errors import MadError
from mad.seeds import seeded
from mad.storage.fingerprint import name_of
from mad.storage.source import provided


def untrained(
    make: Callable[..., nn.Module],
    shape: Sequence[int],
    classes: int,
    seed: int,
    purpose: str,
    who: str | None = None,
) -> nn.Module:
    """Return a network with random weights from an architecture, in eval mode.

    A factory of the user's own may load weights, such as the victim's. A knockoff or surrogate of that architecture
    must not start from them. So such a factory is called twice, with two seeds: if a parameter is the same both times
    and not constant, all layers are initialized again.

    Args:
        make: the architecture, called with ``shape`` (C, H, W) and ``classes`` K. ``weights=imagenet`` of this
            package's architectures counts as part of the architecture.
        shape: (C, H, W) of the images.
        classes: number of classes K.
        seed: with ``purpose``, determines the weights.
        purpose: what the network is for, such as ``"knockoff"``.
        who: what the line on stderr calls it; None for the purpose.

    Raises:
        MadError: if a parameter that the factory sets belongs to no layer that can initialize itself.
    """
    with seeded(seed, purpose):
        model = make(shape=shape, classes=classes)
    if provided(getattr(make, "func", make).__module__):
        return model.eval()
    with seeded(seed, f"another {purpose}"):
        again = dict(make(shape=shape, classes=classes).named_parameters())
    loaded = [name for name, value in model.named_parameters() if set_by_factory(value, again.get(name))]
    if not loaded:
        return model.eval()
    before = {name: dict(model.named_parameters())[name].detach().clone() for name in loaded}
    with seeded(seed, purpose):
        initialize(model)
    left = [name for name, value in model.named_parameters() if name in before and value.equal(before[name])]
    if left:
        raise MadError(
            f"architecture {name_of(make)} sets {left[0]} to the same values whatever the seed, and its layer has no "
            "reset_parameters: a knockoff and a surrogate must start untrained; let the factory draw it, and load "
            "the victim's weights by victim.weights=FILE"
        )
    say(
        f"architecture {name_of(make)} loads weights: each {who or purpose} starts from random ones all the same "
        "(knockoff.initial_weights=FILE gives a thief some)"
    )
    return model.eval()


def set_by_factory(one: Tensor, other: Any) -> bool:
    """Return whether a parameter has the same values in two networks of different seeds, and is not a constant."""
    same = isinstance(other, Tensor) and one.shape == other.shape and one.equal(other)
    return same and bool((one != one.flatten()[0]).any())


def initialize(model: nn.Module) -> None:
    """Draw the weights of every layer again, and reset the running statistics of batch norms, as torch does."""
    for part in model.modules():
        reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        if callable(reset):
            reset()
