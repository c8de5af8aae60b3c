"""What an adversary knows: the API's input and output shapes, and what its recovery and its attack declare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mad.architectures.untrained import untrained
from mad.datasets import batches
from mad.defenses import Defense
from mad.errors import UnfitError
from mad.knockoff import Knockoff
from mad.seeds import generator
from mad.storage.store import Store, kept
from mad.victim import Victim

KNOWLEDGE = ("the defense", "the victim's data", "the victim's clean answers")


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """The knowledge of an adversary. By default it knows only the image shape and the number of classes.

    Args:
        knockoff: the training recipe and the architecture of the stolen model.
        shape: (C, H, W) of the images that the API takes.
        classes: number of classes K.
        seed: the seed of the cell.
        device: where to compute.
        defense: the defense with its settings, not prepared, for whoever knows ``the defense``; else None.
        victim: the victim's recipe, with its data, for whoever knows ``the victim's data``; else None.
        clean: answers images (B, C, H, W) in [0, 1] as the undefended victim does, with posteriors (B, K), and counts
            no query, for whoever knows ``the victim's clean answers``; else None.
        store: stores the networks that the adversary trains; None trains them again each time.
    """

    knockoff: Knockoff
    shape: tuple[int, int, int]
    classes: int
    seed: int
    device: torch.device
    defense: Defense | None = None
    victim: Victim | None = None
    clean: Callable[[Tensor], Tensor] | None = None
    store: Store | None = None

    def untrained(self, purpose: str = "knockoff") -> nn.Module:
        """Return the untrained knockoff; seed and purpose determine the random weights.

        Initial weights of the recipe, if given, are loaded.
        """
        assert self.knockoff.architecture is not None  # a cell fills it in
        model = untrained(self.knockoff.architecture, self.shape, self.classes, self.seed, purpose)
        self.knockoff.start(model)
        return model

    def kept(
        self, name: str, about: Any, build: Callable[[], nn.Module], train: Callable[[nn.Module], None]
    ) -> nn.Module:
        """Return a network that the adversary trains: trained once, then loaded. See ``mad.storage.store.kept``."""
        return kept(self.store, name, about, build, train, self.device)

    def labeled(self, word: str, count: int) -> tuple[Tensor, Tensor]:
        """Return images of the victim's kind, uint8 (count, C, H, W), and labels (count,), for whoever knows its data.

        They are of the victim's validation split, or of its training split where it has none; never of the test split.
        The classes are drawn equally often, as far as that goes; fewer images are a part of more.

        Args:
            word: the setting that says how many, for the error.
            count: how many.

        Raises:
            UnfitError: if there are fewer.
        """
        assert self.victim is not None  # given to whoever knows the victim's data
        split = self.victim.validation_split() if self.victim.validation else self.victim.training_split()
        if len(split.labels) < count:
            raise UnfitError(f"{word}={count} is above the {len(split.labels)} images of {self.victim.who}: lower it")
        order = torch.randperm(len(split.labels), generator=generator(self.seed, "labeled images"))
        drawn = order[turns(split.labels[order]).argsort(stable=True)[:count]]
        return next(batches(split.images, drawn, count, torch.device("cpu"))), split.labels[drawn]


def turns(labels: Tensor) -> Tensor:
    """Return, for each of some labels (N,), how many before it are the same, int64 (N,)."""
    by_class = labels.argsort(stable=True)
    first = torch.searchsorted(labels[by_class].contiguous(), labels[by_class].contiguous())
    return torch.empty_like(labels).scatter_(0, by_class, torch.arange(len(labels)) - first)
