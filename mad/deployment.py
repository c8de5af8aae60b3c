"""A deployment: a trained victim behind its prepared defense."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mad import export_deployment, plugins, schema
from mad.accounts import Accounts
from mad.api import BATCH, BlackBox
from mad.cache import Cache
from mad.context import Context
from mad.datasets import batch_limit
from mad.datasets.content import place
from mad.defenses import Defense, Undefended
from mad.device import choose
from mad.errors import MadError, check_kind, check_number
from mad.storage.store import Store
from mad.victim import Victim


@dataclass(frozen=True)
class Deployment:
    """A trained victim and its prepared defense. ``session`` returns the API for one client.

    Args:
        victim: the recipe of the victim.
        model: the trained victim, images in [0, 1] to logits (B, K), in eval mode on ``device``.
        served: the model that the API runs: ``model``, or another one if the defense acts at training time.
        defense: the defense, prepared for ``served``.
        device: the device of both models.
        seconds: how long the victim's training took, also if it was trained by an earlier run.
        columns: the columns that the defense adds to a record.
        seed: the seed that the defense was prepared with.
    """

    victim: Victim
    model: nn.Module
    served: nn.Module
    defense: Defense
    device: torch.device
    seconds: float = 0.0
    columns: Mapping[str, Any] = field(default_factory=dict)
    again: Callable[[], Defense] | None = field(default=None, repr=False, compare=False)
    seed: int = 0
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def fresh(self) -> Deployment:
        """Return this deployment as it was before any query: a ``stateful`` defense is prepared once more."""
        if not self.defense.stateful or self.again is None:
            return self
        return replace(self, defense=self.again(), _turn=threading.Lock())

    def session(
        self,
        budget: int | None = None,
        watch: Callable[[Tensor, Tensor, Tensor], None] | None = None,
        accounts: int = 1,
    ) -> BlackBox:
        """Return the API for a new client, with a query counter of its own.

        A ``stateful`` defense starts afresh, except for the state that all clients share.

        Args:
            budget: query budget, one query per image; None for no limit, as in the defender's own measurements.
            watch: for studies only; see ``BlackBox``.
            accounts: number of clients whose queries these are; the budget is divided among them.

        Raises:
            MadError: if one of the numbers is none.
        """
        check_number("accounts", accounts, 1, whole=True)
        shape, defense = self.victim.dataset.shape, self.defense.session()
        if accounts > 1 and defense.stateful:
            defense = Accounts(self.defense, budget, accounts)
        return BlackBox(
            self.served, defense, shape, budget, self.device, watch, self._turn, self.victim.dataset.classes
        )

    @torch.no_grad()
    def clean(self, images: Tensor) -> Tensor:
        """Return the undefended victim's posteriors (B, K) of images (B, C, H, W) in [0, 1], on their device.

        For studies only: no adversary is given them, unless its recovery declares it.
        """
        parts = images.split(batch_limit(BATCH, self.victim.dataset.shape))
        there = (some.to(self.device, torch.float32) for some in parts)
        return torch.cat([torch.softmax(self.model(some), dim=1).to(images.device) for some in there])

    def export(self, folder: str | Path) -> None:
        """Write the served model and the prepared defense to a folder; ``mad.open_deployment`` reads it.

        Neither the data set nor a victim that is not served goes along. What is written is tried first: it must answer
        as this deployment does.

        Raises:
            MadError: if the folder holds something else, or if a part cannot be made again from an import path, its
                fields and its networks.
        """
        parts = export_deployment.Parts(self.victim, self.served, self.fresh().defense, self.seed, self.columns)
        export_deployment.write_deployment(place(folder, "an export's folder"), parts, self.device)


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
    """Train or load a victim, prepare its defense, and return both as a deployment.

    Args:
        victim: the recipe of the victim.
        defense: the defense with its settings, not prepared; None for no defense.
        seed: seed of the defense's random draws, such as its surrogate's weights or its noise key.
        store: stores trained networks; None trains them again.
        device: where to compute.
        cache: caches logits for later deployments in this process; None caches nothing.
        live: for white-box studies only; see ``Context``.

    Raises:
        MadError: if the defense does not fit the victim, or if a training diverges.
    """
    check_kind("what is deployed", victim, Victim, "a mad.Victim, or in mad.deploy a cell of mad.load")
    check_number("seed", seed, 0, 2**62, whole=True)
    defense, device = Undefended() if defense is None else defense, torch.device(device)
    check_kind("the defense", defense, Defense, "mad.load('defense=mad').defense")
    plugins.declared(f"defense {defense.name}", defense, Defense)
    defense.check(victim)
    model, seconds = (victim.ready(device), 0.0) if store is None else store.victim(victim, device)
    context = Context(victim, model, seed, device, store, cache, live)
    served = defense.serve(context)
    who = f"defense {defense.name}"
    if not isinstance(served, nn.Module):
        raise MadError(f"{who}: serve must return a torch.nn.Module, got {plugins.kind(served)}")
    context = replace(context, model=served, apart=served is not model)
    ready = defense.prepared(context)
    columns = ready.columns(context)
    schema.check(columns, who, defense.schema)
    clean = context.cached(model, [victim.architecture, victim.given])
    again = partial(defense.prepared, context)
    shown = clean if served is model else served
    return Deployment(victim, clean, shown, ready, device, seconds, columns, again, seed)


def open_deployment(folder: str | Path, device: torch.device | str = "cpu") -> Deployment:
    """Return a deployment that ``Deployment.export`` wrote. It needs no data, and its answers are those of before.

    The undefended victim does not travel: ``model`` is the model that is served. The recipe names code, which is
    imported: open folders that you trust.

    Args:
        folder: the folder.
        device: where to compute, as for ``mad.run``.

    Raises:
        MadError: if the folder holds no whole deployment, if its code cannot be imported, or without the device.
    """
    device = device if isinstance(device, torch.device) else choose(device)
    parts = export_deployment.read_deployment(folder, device)
    return Deployment(
        parts.victim,
        parts.served,
        parts.served,
        parts.defense,
        device,
        columns=parts.columns,
        again=parts.again,
        seed=parts.seed,
    )
