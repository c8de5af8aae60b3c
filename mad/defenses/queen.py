"""QUEEN: answers about what was asked much already turn the thief's gradients around (Chen et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mad.defenses.base import Context, Defense
from mad.defenses.feature_map import ContrastiveTrainer, Cut, Mapping, features_of, mapping
from mad.errors import check_number
from mad.gate.taps import varied
from mad.schema import Column
from mad.seeds import derive
from mad.training import Trainer
from mad.victim import Victim


class Ledger:
    """What all clients together have asked: for each class, the sensitivity so far and the points that count.

    Args:
        classes: number of classes K.
    """

    def __init__(self, classes: int) -> None:
        self.sums = [0.0] * classes
        self.points: list[list[tuple[float, float]]] = [[] for _ in range(classes)]


@dataclass
class Queen(Defense):
    """Answer wrongly about the core of a class once much of it has been asked about; turn other answers a little.

    A small network maps the victim's features to points in the plane, where classes are clusters. A query is sensitive
    if its point is nearer to the center of its class than the training images are on average (distance d < D), and not
    within ``radius`` of a point that counts already. Then it counts, and the sensitivity of its class grows by
    s^2 (radius / D)^2 with s = erfc((d - D) / D) / 2, until it exceeds ``threshold``. From then on, sensitive queries
    are falsified: they are answered with the posterior nearest in angle to 2 m - y, where y is the clean posterior and
    m the mean posterior of ``shadows`` weakly trained networks, guesses at the thief's: its gradient is turned around.
    All other answers are those of features moved toward the farthest class, as far as the top class stays.

    **The sensitivities are shared by all clients**, and never fall: a thief's queries make the API answer honest users
    wrongly, and so do enough honest queries. Honest users are scored on an API that no thief has asked; as their
    queries add up, later ones count more of the harm.

    The published code draws 5 of 10 shadows anew for each query and searches the nearest posterior numerically. Here
    all shadows are averaged, so that repeated queries tell nothing, and the nearest posterior is exact:
    max(2 m - y, 0), rescaled. Its radius is 0.005 in the units of its map; here it is in units of D.

    Args:
        epsilon: an additional L1 budget in [0, 2]; None for no limit.
        threshold: the sensitivity of a class above which queries are falsified; less is stronger. Published: 0.2.
        radius: the distance around a point that counts within which no other counts, as a share of D.
        step: length of a step of the features. Published: 0.05.
        steps: the most steps; 0 leaves answers that are not falsified clean. Published: 20.
        shadows: number of shadow networks, of the victim's architecture.
        shadow_epochs: their epochs on the victim's training images. Published: 1.
        map_steps: steps of the mapping network's training.
    """

    name = "queen"
    stateful = True
    strength_parameter = "threshold"
    schema = (
        Column("queen_falsified", "number", "share", "of the thief's queries whose answer was falsified"),
        Column("queen_classes_over", "whole number", "classes", "above the threshold after the thief's last query"),
        Column("queen_honest_falsified", "number", "share", "of honest users' queries whose answer was falsified"),
    )
    epsilon: float | None = None
    threshold: float = 0.2
    radius: float = 0.1
    step: float = 0.05
    steps: int = 20
    shadows: int = 5
    shadow_epochs: int = 1
    map_steps: int = 400

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("defense.threshold", self.threshold, 0)
        check_number("defense.radius", self.radius, 1e-6)
        check_number("defense.step", self.step, 0)
        for name, least in (("steps", 0), ("shadows", 1), ("shadow_epochs", 1), ("map_steps", 1)):
            check_number(f"defense.{name}", getattr(self, name), least, whole=True)

    def check(self, victim: Victim) -> None:
        """Raise MadError if the victim cannot be trained: the shadows learn from its training images."""
        victim.check_trainable("defense=queen")

    def trainings(self, victim: Victim) -> float:
        """Return the share of a training that its shadows take."""
        return self.shadows * self.shadow_epochs / victim.trainer.epochs

    def prepare(self, context: Context) -> None:
        """Train or load the mapping and the shadows; the ledger that all clients share is empty."""
        victim, device = context.victim, context.device
        shape, classes = tuple(victim.dataset.shape), victim.dataset.classes
        some = torch.linspace(0, 1, 2 * shape[0] * shape[1] * shape[2], device=device).view(2, *shape)
        some = torch.cat([some, varied(shape).to(some)])
        self._cut = Cut(context.model, some)
        with torch.no_grad():
            width = self._cut(some).shape[1]
        seed = derive(context.seed, "queen") >> 1
        self._map = context.kept(
            "queen-map",
            ["queen-map", 1, context.model, victim, self.map_steps, seed],
            lambda: mapping(width, classes, seed),
            lambda network: self._learn(network, context, seed),
        )
        recipe = victim.trainer.but(epochs=self.shadow_epochs, min_steps=0)
        self._shadows = nn.ModuleList([shadow(context, recipe, derive(seed, str(n)) >> 1) for n in range(self.shadows)])
        self._ledger = Ledger(classes)

    def _learn(self, network: nn.Module, context: Context, seed: int) -> None:
        """Train the mapping in place."""
        assert isinstance(network, Mapping)
        split = context.victim.training_split()
        features = features_of(self._cut, split.images, context.device)
        recipe = ContrastiveTrainer(1, 256, "adam", 0.01, 0.0, 0.0, "cooldown", min_steps=self.map_steps)
        network.learn(features, split.labels.to(context.device), recipe, seed)

    def begin(self) -> None:
        """Set up the counts of a client."""
        self._asked = self._wrong = 0

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return falsified posteriors for sensitive queries about classes above the threshold, else turned ones."""
        features = self._cut(images)
        falsified = self._count(self._map(features), clean.argmax(dim=1))
        answers = self._turned(features, clean)
        if falsified:
            guess = torch.stack([torch.softmax(each(images[falsified]), dim=1) for each in self._shadows]).mean(dim=0)
            answers[falsified] = nearest_posterior(2 * guess - clean[falsified])
        self._asked += len(clean)
        self._wrong += len(falsified)
        return answers

    def _count(self, points: Tensor, labels: Tensor) -> list[int]:
        """Count the queries with points (B, 2) and labels (B,) in order; return which of them are to be falsified."""
        network: Any = self._map
        spread = network.spread[labels]
        distance = (points - network.centers[labels]).norm(dim=1)
        growth = (0.5 * torch.erfc((distance - spread) / spread.clamp(min=1e-12))) ** 2 * self.radius**2
        falsified = []
        told = [each.tolist() for each in (points.double(), labels, growth.double(), (self.radius * spread).double())]
        for row in (distance < spread).nonzero().squeeze(1).tolist():
            (x, y), label, more, radius = (each[row] for each in told)
            counted = self._ledger.points[label]
            if any((x - a) ** 2 + (y - b) ** 2 <= radius * radius for a, b in counted):
                continue
            if self._ledger.sums[label] > self.threshold:
                falsified.append(row)
            else:
                counted.append((x, y))
                self._ledger.sums[label] += more
        return falsified

    def _turned(self, features: Tensor, clean: Tensor) -> Tensor:
        """Return the posteriors (B, K) of features moved toward the farthest class, as far as the top class stays.

        The change of the logits is added to the clean log-posterior, which is the same for the victim's own answers.
        """
        network: Any = self._map
        known = network.spread > 0
        if not self.steps or not known.any():
            return clean.clone()
        away = torch.cdist(features, network.middle).masked_fill(~known, -1)
        direction = F.normalize(network.middle[away.argmax(dim=1)] - features, dim=1)
        before, logs, top = self._cut.head(features), clean.log(), clean.argmax(dim=1)
        answers, moving = clean.clone(), torch.ones(len(clean), dtype=torch.bool, device=clean.device)
        for number in range(1, self.steps + 1):
            moved = self._cut.head(features + number * self.step * direction) - before
            found = torch.softmax(logs + moved, dim=1)
            moving = moving & (found.argmax(dim=1) == top)
            answers = torch.where(moving.unsqueeze(1), found, answers)
        return answers

    def session_columns(self) -> dict[str, Any]:
        """Return the share of falsified answers, and how many classes are above the threshold."""
        return self.accounts_columns([self])

    def accounts_columns(self, sessions: Sequence[Any]) -> dict[str, Any]:
        """Return the same about a thief's accounts."""
        over = sum(each > self.threshold for each in self._ledger.sums)
        wrong, asked = (sum(getattr(each, name) for each in sessions) for name in ("_wrong", "_asked"))
        return {"queen_falsified": wrong / max(1, asked), "queen_classes_over": over}

    def honest_columns(self, sessions: Sequence[Any]) -> dict[str, Any]:
        """Return the share of falsified answers to all honest users."""
        wrong, asked = (sum(getattr(each, name) for each in sessions) for name in ("_wrong", "_asked"))
        return {"queen_honest_falsified": wrong / max(1, asked)}


def shadow(context: Context, recipe: Trainer, seed: int) -> nn.Module:
    """Return a weakly trained network of the victim's architecture."""
    victim = context.victim

    def train(network: nn.Module) -> None:
        split = victim.training_split()
        recipe.fit(network, split.images, split.labels, seed=seed, device=context.device, task="QUEEN's shadow")

    about = ["queen-shadow", 1, victim, recipe, seed]
    return context.kept("queen-shadow", about, lambda: victim.untrained(seed=seed, purpose="shadow"), train)


def nearest_posterior(rows: Tensor) -> Tensor:
    """Return the posteriors that make the smallest angles with rows (B, K) that sum to one: their positive parts."""
    positive = rows.clamp(min=0)
    return positive / positive.sum(dim=1, keepdim=True)
