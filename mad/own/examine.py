"""Whether a given network is right on its owner's labeled images; if not, what may be wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mad.architectures.pixels import Standardize
from mad.datasets import Split
from mad.datasets.checked import say
from mad.own.normalized import PUBLISHED, Normalized
from mad.seeds import generator
from mad.storage.reading import untold
from mad.training import logits_of

SAMPLE = 500  # images on which other normalizations are tried
GAIN = 0.05  # a smaller gain in accuracy is not worth a warning
TWICE = 8  # images that are asked about twice
APART = 1e-3  # of a probability; float noise is less
BESIDE = 0.02  # the same in batches of other sizes, for which half precision takes other kernels


def examine(
    network: nn.Module, test: Split, device: torch.device, *, who: str, names: Sequence[str], normalization: str | None
) -> None:
    """Print a network's accuracy on labeled images; warn if another normalization or order of classes is right more.

    Args:
        network: images in [0, 1] to logits (B, K), in eval mode on ``device``.
        test: the owner's labeled images.
        device: the network's.
        who: names the network.
        names: the names of the K classes.
        normalization: what it is given now, for the text; None if normalizations cannot be tried.
    """
    predicted = logits_of(network, test.images, device).argmax(dim=1)
    right = share(predicted, test.labels)
    say(f"{who}: {right:.1%} of {len(predicted):,} labeled images right")
    said = order(predicted, test.labels, who, names)
    if normalization is not None:
        said |= normalizations(network, test, device, who, normalization)
        said = said or channels(network, test, device, who)
    if not said and right < 2 / len(names) and right < 0.5:
        say(f"warning: {who} is hardly right more often than chance, {1 / len(names):.1%}: is it the right model?")


def warn_of_objects(function: Any, who: str) -> None:
    """Say which objects a function reads from its module that its record's name cannot tell, such as a classifier."""
    for name, kind in sorted(untold(function).items()):
        say(f"{who}: what {name}, a {kind}, holds is not in its records' names: after a change say force=all")


def repeated(network: nn.Module, test: Split, device: torch.device, who: str) -> None:
    """Warn if a network answers a few images otherwise when it is asked again, in another order or two at a time."""
    rows = torch.arange(len(test.labels))[:TWICE]

    def answers(*parts: Tensor) -> Tensor:
        return torch.cat([logits_of(network, test.images, device, some).softmax(dim=1) for some in parts])

    first, again = answers(rows), answers(rows.flip(0))
    apart = (first - again.flip(0)).abs().amax(dim=1)
    moved = (first - answers(*rows.split(2))).abs().amax(dim=1)
    if others := int((apart > APART).sum()):
        say(
            f"warning: {who}: asked again it answers {others} of {len(rows)} images otherwise, by up to "
            f"{apart.amax():.2g}: so will this record, made anew; fix its seed, or call eval()"
        )
    elif others := int((moved > BESIDE).sum()):
        say(
            f"warning: {who}: asked two at a time it answers {others} of {len(rows)} images otherwise, by up to "
            f"{moved.amax():.2g}: its answers depend on what else is asked, and so will this record; call eval()"
        )


def order(predicted: Tensor, labels: Tensor, who: str, names: Sequence[str]) -> bool:
    """Return whether, and warn if, the answers would be right more often with the classes in another order.

    The order is found on one half of the images and judged on the other, since the best of K! orders fits by chance.
    """
    from scipy.optimize import linear_sum_assignment

    classes, half = len(names), torch.rand(len(labels), generator=generator(0, "order of classes")) < 0.5
    counts = torch.zeros(classes, classes)
    counts.index_put_((predicted[half], labels[half]), torch.ones(int(half.sum())), accumulate=True)
    places = torch.as_tensor(linear_sum_assignment(counts.numpy(), maximize=True)[1])
    before, after = share(predicted[~half], labels[~half]), share(places[predicted[~half]], labels[~half])
    if not better(after, before, int((~half).sum())):
        return False
    seen = predicted.bincount(minlength=classes)
    moved = [k for k in seen.argsort(descending=True).tolist() if places[k] != k and seen[k]][:3]
    some = ", ".join(f"its class {k} is {names[int(places[k])]}, not {names[k]}" for k in moved)
    say(
        f"warning: {who}: {after:.1%} would be right, not {before:.1%}, with its classes in another order ({some}): "
        "give the names in the model's order, victim.dataset.class_names=FILE"
    )
    return True


def normalizations(network: nn.Module, test: Split, device: torch.device, who: str, normalization: str) -> bool:
    """Return whether, and warn if, a network is right more often with another normalization of the images."""
    rows = torch.randperm(len(test.labels), generator=generator(0, "examine"))[:SAMPLE]
    labels, found = test.labels[rows], {}
    before = share(logits_of(network, test.images, device, rows).argmax(dim=1), labels)
    for name, (mean, std) in PUBLISHED.items():
        with instead(network, Standardize(test.images.shape[1], mean, std).to(device)) as other:
            found[name] = share(logits_of(other, test.images, device, rows).argmax(dim=1), labels)
    best = max(found, key=lambda name: found[name])
    if not better(found[best], before, len(rows)):
        return False
    alike = [name for name in found if not better(found[best], found[name], len(rows))]
    say(
        f"warning: {who}: {found[best]:.1%} of {len(rows)} images right with victim.normalize={' or '.join(alike)}, "
        f"{before:.1%} as it is ({normalization}): which one was it trained with?"
    )
    return True


def channels(network: nn.Module, test: Split, device: torch.device, who: str) -> bool:
    """Return whether, and warn if, a network is right more often on images whose channels are in the reverse order."""
    if test.images.shape[1] != 3:
        return False
    rows = torch.randperm(len(test.labels), generator=generator(0, "examine"))[:SAMPLE]
    images, labels = torch.stack([test.images[int(row)] for row in rows]), test.labels[rows]
    before, after = (share(logits_of(network, some, device).argmax(dim=1), labels) for some in (images, images.flip(1)))
    if not better(after, before, len(rows)):
        return False
    say(
        f"warning: {who}: {after:.1%} of {len(rows)} images right with blue first (BGR), {before:.1%} as it is: "
        "if it was trained so, swap the channels in its forward, or in a victim.function"
    )
    return True


@contextmanager
def instead(network: nn.Module, layer: Standardize) -> Iterator[nn.Module]:
    """Give a network another normalization for the block: in its own layer ``normalize``, or in front of it."""
    own = getattr(network, "normalize", None)
    if not isinstance(own, Standardize):
        yield Normalized(layer, network).eval()
        return
    network.normalize = layer
    try:
        yield network
    finally:
        network.normalize = own


def share(predicted: Tensor, labels: Tensor) -> float:
    """Return the share of predictions, int64 (N,), that are right."""
    return (predicted == labels).double().mean().item() if len(labels) else 0.0


def better(after: float, before: float, count: int) -> bool:
    """Return whether a share of ``count`` images is larger than another by ``GAIN`` and three standard errors."""
    error = math.sqrt(max(1e-9, after * (1 - after) + before * (1 - before)) / max(1, count))
    return after - before > max(GAIN, 3 * error)
