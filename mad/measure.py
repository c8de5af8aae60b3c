"""How fast this machine trains and answers: short measurements on random images; nothing is kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from mad import progress
from mad.api import BlackBox
from mad.architectures import imagenet
from mad.cell import Cell
from mad.context import AbsentContext
from mad.datasets import batch_limit
from mad.seeds import generator
from mad.training import Trainer, place
from mad.victim import Architecture, Victim

ENOUGH = 0.25  # seconds of work after which a rate is taken
FIRST = 8  # images of the first try, which also warms up
ASKED = 256


def images(count: int, shape: tuple[int, ...]) -> Tensor:
    """Return random images, uint8 (count, C, H, W)."""
    draw = generator(0, "images to measure with")
    return torch.randint(0, 256, (count, *shape), generator=draw, dtype=torch.uint8)


def rate(work: Callable[[int], None], most: int) -> float:
    """Return the seconds an image that some work takes.

    Args:
        work: does it on a number of images.
        most: the largest number that is tried.
    """
    count = min(FIRST, most)
    work(count)  # the first run builds and allocates
    while True:
        start = time.perf_counter()
        work(count)
        seconds = time.perf_counter() - start
        if seconds >= ENOUGH / 2 or count >= most:
            return seconds / count
        count = min(most, max(2 * count, int(count * ENOUGH / max(seconds, 1e-4))))


def network_of(victim: Victim, make: Architecture | None = None) -> nn.Module:
    """Return an untrained network for a victim's images."""
    with imagenet.left_out():
        return victim.untrained(make, seed=0, purpose="to measure with")


def size_of(victim: Victim, make: Architecture | None = None) -> int:
    """Return the bytes of a network's weights."""
    return sum(value.nbytes for value in network_of(victim, make).state_dict().values())


def training(victim: Victim, make: Architecture | None, trainer: Trainer, device: torch.device) -> float:
    """Return the seconds that a training takes for one image in one epoch, on soft labels."""
    network, shape = network_of(victim, make), tuple(victim.dataset.shape)
    recipe = replace(trainer, epochs=1, min_steps=0, learning_rate=1e-9, schedule="constant")
    most = max(FIRST, 8 * trainer.batch_size)
    pool, targets = images(most, shape), torch.full((most, victim.dataset.classes), 1 / victim.dataset.classes)

    def work(count: int) -> None:
        for _ in recipe.epochs_of(
            network, pool[:count], targets[:count], seed=0, device=device, task="to measure with"
        ):
            pass

    before, progress.plain = progress.plain, True
    try:
        return rate(work, most)
    finally:
        progress.plain = before


class Silent(nn.Module):
    """A service that is not asked: it answers all images (B, C, H, W) at once, with logits (B, K) of zero."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return images.new_zeros(len(images), self.classes)


def standing_in(victim: Victim, device: torch.device) -> nn.Module:
    """Return a network that takes as long as the victim's: a given function or program itself, else an untrained one.

    A service is not asked; what stands in for it takes no time.
    """
    if victim.form == "service":
        return Silent(victim.dataset.classes).eval()
    return place(network_of(victim), device) if victim.form is None else victim.ready(device)


def most_of(victim: Victim) -> int:
    """Return the number of images to measure a victim's answers on: few for a function, which may cost something."""
    return FIRST if victim.form == "function" else batch_limit(ASKED, tuple(victim.dataset.shape))


def answering(victim: Victim, device: torch.device) -> float:
    """Return the seconds that a victim takes to answer, without a defense."""
    network = standing_in(victim, device)
    pool = (images(most_of(victim), tuple(victim.dataset.shape)) / 255).to(device)
    with torch.no_grad():
        return rate(lambda count: (network(pool[:count]), None)[1], len(pool))


def asking(cell: Cell, device: torch.device) -> float:
    """Return the seconds that a defended query takes; the networks are untrained, but for ``standing_in``."""
    shape = tuple(cell.victim.dataset.shape)
    model = standing_in(cell.victim, device)
    context = AbsentContext(cell.victim, model, cell.seed, device, live=lambda: model)
    with imagenet.left_out():
        served = cell.defense.serve(context)
        ready = cell.defense.prepared(replace(context, model=served))
    size = (shape[0], shape[1], shape[2])
    api, pool = BlackBox(served, ready.session(), size, None, device), images(most_of(cell.victim), size) / 255
    return rate(lambda count: (api.answer(pool[:count]), None)[1], len(pool))
