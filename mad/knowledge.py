"""What an adversary knows and has: the public face of the API, and what a recovery says that it knows beside that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mad.defenses import Defense
from mad.knockoff import Knockoff
from mad.seeds import seeded
from mad.storage.store import Store, kept
from mad.victim import Victim

KNOWLEDGE = ("nothing", "the defense", "the victim's data")


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What is known to an adversary; of the victim the shape of an image and the classes, if nothing more is said.

    Args:
        knockoff: how it trains, and the architecture that it trains.
        shape: (C, H, W) of the images that the API takes.
        classes: K.
        seed: the cell's.
        device: where it computes.
        defense: the defense with its settings, not prepared, where the recovery knows ``the defense``; else None.
        victim: the victim's recipe, with its data, where the recovery knows ``the victim's data``; else None.
        store: keeps what it trains; None trains anew each time.
    """

    knockoff: Knockoff
    shape: tuple[int, int, int]
    classes: int
    seed: int
    device: torch.device
    defense: Defense | None = None
    victim: Victim | None = None
    store: Store | None = None

    def untrained(self, purpose: str = "knockoff") -> nn.Module:
        """Return its network as it is before any training; the purpose, with the seed, draws the weights."""
        with seeded(self.seed, purpose):
            model = self.knockoff.architecture(shape=self.shape, classes=self.classes)  # type: ignore[misc]
        self.knockoff.start(model)
        return model

    def kept(
        self, name: str, about: Any, build: Callable[[], nn.Module], train: Callable[[nn.Module], None]
    ) -> nn.Module:
        """Return a network that an adversary trains: once, and then loaded; see ``mad.storage.store.kept``."""
        return kept(self.store, name, about, build, train, self.device)
