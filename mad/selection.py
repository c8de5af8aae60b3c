"""Comparing settings of an adversary as an adversary must: on images of its own that it never asked about.

The test split is the victim's, and is read once, at the end; choosing by it would flatter the thief.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mad.cell import Cell
from mad.deployment import deploy
from mad.errors import MadError
from mad.pipeline import inputs
from mad.seeds import generator
from mad.storage.store import Store
from mad.training import logits_of

HELD = 10_000


@dataclass(frozen=True)
class Agreement:
    """How often a stolen model agrees with its victim on images of the pool that were not asked about.

    Args:
        share: in [0, 1].
        images: how many these were, up to 10,000.
    """

    share: float
    images: int


def held_out_agreement(cell: Cell, store: Store, device: torch.device) -> Agreement:
    """Steal a cell's victim without its defense, and judge the stolen model on held-out images of the pool.

    The victim is kept; no record is written.

    Raises:
        MadError: if the attack asks about the whole pool, or needs none.
    """
    cell = cell.reference
    images, budget, _ = inputs(cell)
    if images is None:
        raise MadError(f"attack {cell.attack.name} has no pool to hold images out of")
    victim = deploy(cell.victim, seed=cell.seed, store=store, device=device)
    adversary = cell.adversary(device)
    stolen = cell.attack.spend(victim.session(budget), images, adversary)
    order = torch.randperm(len(images), generator=generator(cell.seed, "pool order"))  # as attacks draw from the pool
    own = stolen.transfer is not None and stolen.transfer.images is images
    asked = stolen.transfer.rows if own and stolen.transfer else order[: cell.attack.images_for(budget)]
    held = order[~torch.isin(order, asked)][-HELD:]
    if not len(held):
        raise MadError("the attack asks about the whole pool, which leaves none to judge by: lower attack.budget")
    network = stolen.network
    if network is None:
        assert stolen.transfer is not None  # Attack.spend sees to it
        network = adversary.train(stolen.transfer)
    theirs, ours = (logits_of(net, images, device, held).argmax(dim=1) for net in (network, victim.model))
    return Agreement((theirs == ours).float().mean().item(), len(held))
