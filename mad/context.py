"""What a defense is given to prepare itself: the victim that it guards, where to compute, and where to keep things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mad.cache import Cache
from mad.cached_network import CachedNetwork
from mad.storage.store import Store, kept
from mad.victim import Victim


@dataclass(frozen=True)
class Context:
    """What a defense is given when it is prepared or served.

    Args:
        victim: the recipe of the victim it guards.
        model: that victim, trained, in eval mode on ``device``; in ``prepare``, the model that is served.
        seed: the cell's; derive one per purpose from it (``mad.seeds``).
        device: where to compute.
        store: keeps what is trained; None trains anew each time.
        cache: what cells of one process share; None shares nothing.
        live: returns the adversary's own network as it is while it queries: for white-box studies only, else None.
    """

    victim: Victim
    model: nn.Module
    seed: int
    device: torch.device
    store: Store | None = None
    cache: Cache | None = None
    live: Callable[[], nn.Module] | None = None

    def kept(
        self, name: str, about: Any, build: Callable[[], nn.Module], train: Callable[[nn.Module], None]
    ) -> nn.Module:
        """Return a network that a defense trains: once, and then loaded; see ``mad.storage.store.kept``."""
        return kept(self.store, name, about, build, train, self.device)

    def trained(self, recipe: Victim) -> nn.Module:
        """Return the network of a recipe on labelled images, in eval mode: trained once, and kept as victims are."""
        return recipe.train(self.device) if self.store is None else self.store.victim(recipe, self.device)[0]

    def cached(self, network: nn.Module, about: Any) -> nn.Module:
        """Return a network in eval mode that no longer changes, run once over each batch where cells share."""
        return network if self.cache is None else CachedNetwork(network, about, self.cache)
