"""Comparison of an adversary's settings on held-out images of its pool, which the attack did not query.

An adversary has no test split. Choosing settings on the victim's would overestimate the attack.
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
    """The agreement (fidelity) of a stolen model with its victim on held-out images of the pool.

    Args:
        share: share of the images on which both have the same top class, in [0, 1].
        images: number of held-out images, up to 10,000.
    """

    share: float
    images: int


def held_out_agreement(cell: Cell, store: Store, device: torch.device) -> Agreement:
    """Steal a cell's victim without its defense, and return the agreement on held-out images of the pool.

    The trained victim is stored; no record is written.

    Raises:
        MadError: if the attack queries the whole pool, or needs no pool.
    """
    cell = cell.reference
    images, budget, _ = inputs(cell)
    if images is None:
        raise MadError(f"attack {cell.attack.name} has no pool to hold images out of")
    victim = deploy(cell.victim, seed=cell.seed, store=store, device=device)
    adversary = cell.adversary(device, clean=victim.clean)
    stolen = cell.attack.spend(victim.session(budget), images, adversary)
    order = torch.randperm(len(images), generator=generator(cell.seed, "pool order"))  # the order in which attacks draw
    asked = order[: cell.attack.images_for(budget)]
    if stolen.transfer is not None and stolen.transfer.images is images:
        # An attack that keeps fewer rows has dropped some, of those that it asked about in that order.
        kept = stolen.transfer.rows.unique()
        asked = torch.cat([kept, asked]) if len(kept) < len(asked) else kept
    held = order[~torch.isin(order, asked)][-HELD:]
    if not len(held):
        raise MadError("the attack asks about the whole pool, which leaves none to judge by: lower attack.budget")
    network = stolen.network
    if network is None:
        assert stolen.transfer is not None  # Attack.spend checks this
        network = adversary.train(stolen.transfer)
    theirs, ours = (logits_of(net, images, device, held).argmax(dim=1) for net in (network, victim.model))
    return Agreement((theirs == ours).float().mean().item(), len(held))
