"""Knockoff Nets with the random policy (Orekondy, Schiele and Fritz, CVPR 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mad.api import BlackBox
from mad.attacks.base import Attack, TransferSet, ask
from mad.datasets import Images
from mad.seeds import generator


@dataclass(frozen=True)
class KnockoffRandom(Attack):
    """Query images drawn from the pool at random, without replacement, each once.

    A smaller budget's queries are the first ones of a larger budget's with the same seed.
    """

    name = "knockoff"

    def transfer_set(self, api: BlackBox, pool: Images, seed: int) -> TransferSet:
        """Spend the API's whole budget."""
        rows = torch.randperm(len(pool), generator=generator(seed, "pool order"))[: api.budget]
        return TransferSet(pool, rows, ask(api, pool, rows))
