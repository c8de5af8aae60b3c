"""Comparison of an adversary's settings on images of its pool that are held out before any attack.

An adversary has no test split. Choosing settings on the victim's would overestimate the attack.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from mad.cell import Cell
from mad.datasets.held_out import chosen
from mad.deployment import deploy
from mad.errors import MadError
from mad.pipeline import inputs
from mad.seeds import generator
from mad.storage.store import Store
from mad.training import logits_of

HELD = 10_000


@dataclass(frozen=True)
class Agreement:
    """The agreement (fidelity) of a stolen model with its victim on held-out images of the pool.

    Args:
        share: share of the images on which both have the same top class, in [0, 1].
        images: number of held-out images, up to 10,000.
        learned: whether the stolen model learned from the answers; one that gives a constant answer may agree often.
    """

    share: float
    images: int
    learned: bool = True


def spare(cell: Cell) -> int:
    """Return how many images of a cell's pool are held out: half of those that the attack does not need, or ``HELD``.

    The other half is left to attacks that choose what they ask about.

    Raises:
        MadError: if the attack queries the whole pool, or needs no pool.
    """
    images, budget, _ = inputs(cell)
    if images is None:
        raise MadError(f"attack {cell.attack.name} has no pool to hold images out of")
    found = (len(images) - cell.attack.images_for(budget)) // 2
    if not found:
        raise MadError("the attack asks about the whole pool, which leaves none to judge by: lower attack.budget")
    return min(found, HELD)


def held_out_agreement(cell: Cell, store: Store, device: torch.device, held: int | None = None) -> Agreement:
    """Steal a cell's victim without its defense, and return the agreement on held-out images of the pool.

    They are drawn by the cell's seed before anything is asked, and neither the attack nor the training sees them: an
    attack that chooses what it asks about would else choose what it is judged by. The trained victim is stored; no
    record is written.

    Args:
        cell: the cell.
        store: where the victim is kept.
        device: where to compute.
        held: how many images are held out, at most ``spare(cell)``; None for these. Settings that are compared need
            the same number.

    Raises:
        MadError: see ``spare``.
    """
    cell, held = cell.reference, spare(cell) if held is None else held
    images, budget, _ = inputs(cell)
    assert images is not None  # spare checks this
    victim = deploy(cell.victim, seed=cell.seed, store=store, device=device)
    adversary = cell.adversary(device, clean=victim.clean)
    order = torch.randperm(len(images), generator=generator(cell.seed, "held-out images of the pool"))
    judged, left = order[:held], order[held:].sort().values
    labels = None if adversary.labels is None else adversary.labels[left]
    stolen = cell.attack.spend(victim.session(budget), chosen(images, left), replace(adversary, labels=labels))
    network, learned = stolen.network, True
    if network is None:
        assert stolen.transfer is not None  # Attack.spend checks this
        ready = adversary.learned_from(stolen.transfer)
        network = ready.train(stolen.transfer)
        learned = ready.learned(network, stolen.transfer)
    theirs, ours = (logits_of(net, images, device, judged).argmax(dim=1) for net in (network, victim.model))
    return Agreement((theirs == ours).float().mean().item(), len(judged), learned)
