"""A defense under review: prepared for a victim, what it is asked about, and what it answers, raw and in the end."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mad import promises
from mad.datasets import Pool, checked, to_unit_range
from mad.defenses import Defense
from mad.deployment import Deployment, deploy
from mad.lint.memory import held_bytes
from mad.seeds import derive, generator
from mad.storage.fingerprint import describe, digest
from mad.storage.store import Store
from mad.victim import Victim

BATCH = 256  # as the API's
GENERATORS = ("torch's", "numpy's", "Python's")


@dataclass
class Asked:
    """What a defense was asked and answered.

    Args:
        answers: the final answers, (B, K).
        raw: what each call of ``perturb`` returned, before the base class repaired it and moved it into the budget.
        wrote: whether ``perturb`` wrote into its arguments; it was given copies.
        drew: the global random generators that it drew from, of ``GENERATORS``.
    """

    answers: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    raw: list[Any] = field(default_factory=list)
    wrote: bool = False
    drew: tuple[str, ...] = ()

    @property
    def rows(self) -> Tensor:
        """All raw answers, float (B, K); the final ones where ``perturb`` was not called, as with epsilon 0."""
        return torch.cat(self.raw).to(self.answers.dtype) if self.raw else self.answers


def watched(session: Defense, seen: Asked) -> Defense:
    """Return a session that notes in ``seen`` what ``perturb`` returns; its state is that of ``session``."""
    shown: Any = copy.copy(session)

    def perturb(images: Tensor, clean: Tensor) -> Any:
        given = images.clone(), clean.clone()
        found = session.perturb(*given)
        seen.wrote |= not (torch.equal(given[0], images) and torch.equal(given[1], clean))
        seen.raw.append(found.detach().clone() if isinstance(found, Tensor) else found)
        return found

    shown.perturb = perturb
    shown._said = True  # the review says it in a line of its own
    return shown


def states() -> tuple[Any, ...]:
    """Return the states of the global random generators, in the order of ``GENERATORS``."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002  # the global one is what is watched
    return torch.get_rng_state().tolist(), (kind, np.asarray(keys).tolist(), *rest), random.getstate()


@contextmanager
def global_seeds(seed: int) -> Iterator[None]:
    """Seed all global random generators for the block, and restore them afterwards."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    drawn = derive(seed, "global generators of a review")
    torch.default_generator.manual_seed(drawn)
    np.random.seed(drawn % 2**32)  # noqa: NPY002
    random.seed(drawn)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])


def ask(session: Defense, images: Tensor, clean: Tensor, *, size: int = BATCH, seed: int = 0) -> Asked:
    """Ask a session about images, in batches of ``size`` and with global generators of a seed.

    Raises:
        MadError: if the base class refuses what ``perturb`` returns.
    """
    seen = Asked()
    with global_seeds(seed):
        before = states()
        seen.answers = promises.answered(watched(session, seen), images, clean, size)
        after = states()
    seen.drew = tuple(who for who, *state in zip(GENERATORS, before, after, strict=True) if state[0] != state[1])
    return seen


@dataclass
class Subject:
    """A defense under review.

    Args:
        victim: the recipe of the victim that it guards.
        defense: the defense with its settings, not prepared.
        pool: the pool whose images a thief asks about; None for the test images.
        seed: the seed that it is prepared with.
        store: stores trained networks; None trains them again.
        second: the store for a second preparation: None trains all networks once more, as a check that this repeats.
        device: where to compute.
        images: how many test images are asked about.
        queries: how many queries a thief makes.

    Raises:
        MadError: if the defense cannot guard the victim.
    """

    victim: Victim
    defense: Defense
    pool: Pool | None = None
    seed: int = 0
    store: Store | None = None
    second: Store | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    images: int = 200
    queries: int = 2000

    def __post_init__(self) -> None:
        before = self.recipe()
        with global_seeds(0):
            self.deployment = self.deployed(self.store)
        self.recipe_changed = self.recipe() != before
        self.shown = self._some(checked.split(self.victim.dataset, "test").images, self.images)
        self.clean = self.served(self.shown)

    def recipe(self) -> tuple[str, list[str]]:
        """Return what preparing must not change: the fingerprint, and which attributes there are."""
        return digest(describe(self.defense)), sorted(vars(self.defense))

    def deployed(self, store: Store | None) -> Deployment:
        """Return the victim behind the defense, prepared anew."""
        return deploy(self.victim, self.defense, seed=self.seed, store=store, device=self.device)

    def session(self) -> Defense:
        """Return the defense for a client; a ``stateful`` one is as it was before any query."""
        return self.deployment.fresh().defense.session()

    @torch.no_grad()
    def served(self, images: Tensor) -> Tensor:
        """Return the posteriors (B, K) that the defense is given: those of the served model."""
        return torch.cat([torch.softmax(self.deployment.served(some), dim=1) for some in images.split(BATCH)])

    @cached_property
    def first(self) -> Asked:
        """What a new client is answered about the test images."""
        return ask(self.session(), self.shown, self.clean)

    def again(self, **how: Any) -> Asked:
        """Ask a new client's session about the test images once more."""
        return ask(self.session(), self.shown, self.clean, **how)

    @cached_property
    def thefts(self) -> Tensor:
        """The images (Q, C, H, W) that a thief asks about."""
        if self.pool is None:
            return self._some(checked.split(self.victim.dataset, "test").images, self.queries)
        images = checked.pool(self.pool, self.victim.dataset.shape, self.victim.name)
        return self._some(images, self.queries)

    @cached_property
    def theft(self) -> Theft:
        """A thief's session."""
        session, clean = self.session(), self.served(self.thefts)
        batch = min(BATCH, max(1, len(clean) // 10))
        bytes_after, answers = {}, list[Tensor]()
        asked = 0
        for some, posteriors in zip(self.thefts.split(batch), clean.split(batch), strict=True):
            answers.append(promises.answered(session, some, posteriors, batch))
            asked += len(some)
            bytes_after[asked] = held_bytes(session)
        return Theft(clean, torch.cat(answers), bytes_after)

    def _some(self, images: Any, count: int) -> Tensor:
        """Return ``count`` images, or all there are, in a fixed random order: float (N, C, H, W) on the device."""
        rows = torch.randperm(len(images), generator=generator(0, "images of a review"))[:count]
        return to_unit_range(torch.stack([images[row] for row in rows.tolist()])).to(self.device)


@dataclass
class Theft:
    """A thief's session: clean posteriors (Q, K), answers (Q, K), and the defense's memory after so many queries."""

    clean: Tensor
    answers: Tensor
    bytes_after: dict[int, int]
