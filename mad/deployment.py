"""A victim behind its defense: the one place that puts the defended object together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mad import plugins, schema
from mad.api import BlackBox
from mad.cache import Cache
from mad.context import Context
from mad.defenses import Defense, Undefended
from mad.errors import MadError
from mad.storage.store import Store
from mad.victim import Victim


@dataclass(frozen=True)
class Deployment:
    """A trained victim and its prepared defense; clients come by ``session``.

    Args:
        victim: the recipe.
        model: the victim, trained, images in [0, 1] to logits (B, K), in eval mode on ``device``.
        served: the model that the API runs: ``model``, or another from a defense that acts at training time.
        defense: prepared for ``served``.
        device: where the models lie.
        seconds: that the victim's training took, whenever that was.
        columns: what the defense adds to a record.
    """

    victim: Victim
    model: nn.Module
    served: nn.Module
    defense: Defense
    device: torch.device
    seconds: float = 0.0
    columns: Mapping[str, Any] = field(default_factory=dict)
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def session(
        self, budget: int | None = None, watch: Callable[[Tensor, Tensor, Tensor], None] | None = None
    ) -> BlackBox:
        """Return the API as a new client meets it: of what others asked, it knows only what all clients share.

        Args:
            budget: how many images may be asked about; None for the defender's own measurements.
            watch: see ``BlackBox``: for studies only.
        """
        shape = self.victim.dataset.shape
        return BlackBox(self.served, self.defense.session(), shape, budget, self.device, watch, self._turn)


def deploy(
    victim: Victim,
    defense: Defense | None = None,
    *,
    seed: int = 0,
    store: Store | None = None,
    device: torch.device | str = "cpu",
    cache: Cache | None = None,
    live: Callable[[], nn.Module] | None = None,
) -> Deployment:
    """Train or load a victim and put its defense before it.

    Args:
        victim: its recipe.
        defense: with its settings, not prepared; None for none.
        seed: of what the defense draws: its surrogate, its key.
        store: keeps what is trained; None trains anew.
        device: where to compute.
        cache: remembers logits for further deployments of this process; None remembers nothing.
        live: see ``Context``: for white-box studies only.

    Raises:
        MadError: if the defense does not fit the victim, or a training diverges.
    """
    defense, device = Undefended() if defense is None else defense, torch.device(device)
    defense.check(victim)
    model, seconds = (victim.train(device), 0.0) if store is None else store.victim(victim, device)
    context = Context(victim, model, seed, device, store, cache, live)
    served = defense.serve(context)
    who = f"defense {defense.name}"
    if not isinstance(served, nn.Module):
        raise MadError(f"{who}: serve must return a torch.nn.Module, got {plugins.kind(served)}")
    columns = defense.columns(context)
    schema.check(columns, who, defense.schema)
    ready = defense.prepared(Context(victim, served, seed, device, store, cache, live))
    clean = context.cached(model, victim.architecture)
    return Deployment(victim, clean, clean if served is model else served, ready, device, seconds, columns)
