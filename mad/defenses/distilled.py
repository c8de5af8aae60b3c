"""A surrogate that is a stolen model itself: it learns the victim's answers to images like the adversary's queries."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from mad.datasets import Pool
from mad.datasets.digits import Greek
from mad.defenses.base import Context
from mad.defenses.surrogates import Surrogate
from mad.errors import check_number
from mad.seeds import derive, generator
from mad.training import Trainer, logits_of, place
from mad.victim import Architecture, Victim

TASK = "distilled surrogate"


@dataclass(frozen=True)
class DistilledSurrogate(Surrogate):
    """A network that the defender trains on the victim's clean answers, as an adversary without a defense would.

    Mazeika, Li and Forsyth (ICML 2022) train it on the distribution of the adversary's queries for ten epochs, so that
    it is far from convergence. A defender does not know that distribution: with ``pool`` equal to the adversary's
    pool, a result is what a defender who guesses it exactly would reach, and should be reported as such.

    It is trained once for each victim, pool and seed, and stored. Each image is one query to the victim.

    Args:
        pool: the images that it is trained on, the defender's guess at the adversary's queries.
        queries: at most how many images of the pool, drawn by the cell's seed; None for all.
        epochs: passes over them; None for the epochs and ``min_steps`` of a stolen model.
        trainer: the training recipe, with its changes for stolen models (``Trainer.for_knockoffs``) and without weight
            decay, like the knockoff's default; None for the victim's.
        architecture: None for the victim's.
    """

    name = "distilled"
    pool: Pool = field(default=Greek())
    queries: int | None = 50_000
    epochs: int | None = 10
    trainer: Trainer | None = None
    architecture: Architecture | None = None

    def __post_init__(self) -> None:
        if self.queries is not None:
            check_number("defense.surrogate.queries", self.queries, 1, whole=True)
        if self.epochs is not None:
            check_number("defense.surrogate.epochs", self.epochs, 1, whole=True)

    def training(self, victim: Victim) -> Trainer:
        """Return how the surrogate of a victim is trained."""
        steps = None if self.epochs is None else 0  # ten epochs are ten, also of a small pool
        given = (self.trainer or victim.trainer).for_knockoffs()
        return given.but(epochs=self.epochs, min_steps=steps, weight_decay=0.0)

    def build(self, context: Context) -> nn.Module:
        """Return the network, trained or loaded."""
        victim, seed = context.victim, derive(context.seed, TASK)
        recipe = self.training(victim)
        about = [self, context.contents(self.pool), recipe, victim, context.seed]
        about += [context.model] if context.apart else []  # it learns what is served

        def train(network: nn.Module) -> None:
            images = context.images(self.pool)
            rows = torch.randperm(len(images), generator=generator(seed, "queries"))[: self.queries]
            answers = torch.softmax(logits_of(context.model, images, context.device, rows), dim=1)
            recipe.fit(network, images, answers, rows=rows, seed=seed, device=context.device, task=TASK)

        network = context.kept(
            "surrogate", about, lambda: victim.untrained(self.architecture, seed=seed, purpose="surrogate"), train
        )
        return place(network, context.device).eval()
