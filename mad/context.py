"""What a defense is prepared with: the victim that it guards, the seed, the device and the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from mad.cache import Cache
from mad.cached_network import CachedNetwork
from mad.datasets import Images, Pool, Split, checked
from mad.storage.store import Store, kept
from mad.training import place
from mad.victim import Victim


@dataclass(frozen=True)
class Context:
    """Argument of a defense's ``prepare``, ``serve`` and ``columns``.

    Args:
        victim: the recipe of the victim.
        model: the trained victim, in eval mode on ``device``; in ``prepare``, the model that is served.
        seed: the seed of the cell; derive one seed per purpose from it (``mad.seeds``).
        device: where to compute.
        store: stores trained networks; None trains them again each time.
        cache: results that the cells of one process share; None shares nothing.
        live: for white-box studies only: returns the network that the adversary trains while it queries; else None.
        apart: whether ``model`` is another network than the trained victim, which a defense serves in its place.
    """

    victim: Victim
    model: nn.Module
    seed: int
    device: torch.device
    store: Store | None = None
    cache: Cache | None = None
    live: Callable[[], nn.Module] | None = None
    apart: bool = False

    def kept(
        self, name: str, about: Any, build: Callable[[], nn.Module], train: Callable[[nn.Module], None]
    ) -> nn.Module:
        """Return a network that the defense trains: trained once, then loaded. See ``mad.storage.store.kept``."""
        return kept(self.store, name, about, build, train, self.device)

    def retrained(self, name: str, about: Any, fit: Callable[[nn.Module, Split, dict[str, Any]], None]) -> nn.Module:
        """Return a network of the victim's architecture, trained in another way from its first weights; kept.

        Args:
            name: of the network, with the victim's in front.
            about: what determines the weights, beside the victim.
            fit: trains the network in place; it is given the victim's training split, and the ``seed``, ``device`` and
                ``task`` of ``Trainer.fit``.
        """
        victim, name = self.victim, f"{self.victim.name}-{name}"

        def train(network: nn.Module) -> None:
            how = {"seed": victim.seed, "device": self.device, "task": f"victim {name}"}
            fit(network, victim.training_split(), how)

        return self.kept(name, [about, victim], partial(victim.untrained, seed=victim.seed, purpose="victim"), train)

    def images(self, pool: Pool) -> Images:
        """Return the images of a pool that the defense owns, such as outliers: uint8 (N, C, H, W), the victim's shape.

        Raises:
            MadError: if the pool cannot be read, or if its images are not valid.
        """
        return checked.pool(pool, self.victim.dataset.shape, self.victim.name)

    def contents(self, pool: Pool) -> Any:
        """Return what, beside its fields, identifies the data of a pool that the defense owns; for ``kept``."""
        return checked.pool_contents(pool, self.victim.dataset.shape, self.victim.name, labelled=False)

    def trained(self, recipe: Victim) -> nn.Module:
        """Return the trained network of a victim recipe, in eval mode; with a store, trained once and then loaded."""
        return recipe.ready(self.device) if self.store is None else self.store.victim(recipe, self.device)[0]

    def cached(self, network: nn.Module, about: Any) -> nn.Module:
        """Return a network in eval mode whose logits are cached; without a cache, the network itself."""
        return network if self.cache is None else CachedNetwork(network, about, self.cache)


class AbsentContext(Context):
    """A context without data: its networks are untrained, and their weights are loaded afterwards."""

    def kept(
        self, name: str, about: Any, build: Callable[[], nn.Module], train: Callable[[nn.Module], None]
    ) -> nn.Module:
        """Return the untrained network."""
        return place(build(), self.device).eval()

    def contents(self, pool: Pool) -> Any:
        """Return None: there are no images."""
        return None

    def trained(self, recipe: Victim) -> nn.Module:
        """Return the untrained network."""
        return place(recipe.untrained(seed=recipe.seed, purpose="victim"), self.device)
