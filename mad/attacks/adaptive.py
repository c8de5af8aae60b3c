"""Knockoff Nets with the adaptive policy (Orekondy, Schiele and Fritz, CVPR 2019): a bandit over the pool's classes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import SGD

from mad.adversary import Adversary
from mad.api import BlackBox
from mad.attacks.base import Attack, Stolen, TransferSet, queried
from mad.datasets import Images, batches
from mad.errors import MadError, check_choice, check_number
from mad.schema import Column
from mad.seeds import generator
from mad.simplex import entropy_in_bits
from mad.training import DivergedError, place

REWARDS = ("certainty", "diversity", "loss")
WINDOW = 25  # rewards that the baseline is the mean of
MOMENTUM = 0.5


@dataclass(frozen=True)
class KnockoffAdaptive(Attack):
    """Learn, while querying, which of the pool's own classes are worth asking about; each image is asked about once.

    The classes of a request are drawn from the policy, images within a class at random. Answers then change the policy
    one by one, as in the paper; the paper draws one image at a time, and trains between any two, which at 50,000
    queries is mostly waiting. Classes that run out are left to the others.

    Args:
        reward: ``certainty``, ``diversity``, ``loss`` or ``all``, their sum.
        batch_size: images a request, and a step of the network that the loss is of. The knockoff is trained afterwards
            on the whole transfer set, like any other.
        learning_rate: of that network's SGD with momentum.
    """

    name = "adaptive"
    labelled = True
    recovers_early = True
    schema = (
        Column("action_entropy", "number", "bits", "entropy of the pool's classes that the bandit asked about"),
        Column("actions", "series", "queries", "how often each class of the pool was asked about"),
    )
    reward: str = "all"
    batch_size: int = 64
    learning_rate: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("attack.reward", self.reward, ("all", *REWARDS))
        check_number("attack.batch_size", self.batch_size, 1, whole=True)
        check_number("attack.learning_rate", self.learning_rate, 0)

    def run(self, api: BlackBox, pool: Images | None, adversary: Adversary) -> Stolen:
        """Spend the API's whole budget."""
        assert pool is not None
        if adversary.labels is None:
            raise MadError("attack adaptive chooses among the classes of its pool, and was given none")
        bandit, scale = Bandit(adversary.labels, adversary.seed), Scale()
        network = place(adversary.untrained("policy"), adversary.device)
        optimizer = SGD(network.parameters(), lr=self.learning_rate, momentum=MOMENTUM)
        asked: list[Tensor] = []
        answers: list[Tensor] = []
        total, budget = torch.zeros(adversary.classes), api.budget or 0

        def chosen() -> Iterator[Tensor]:
            while left := budget - api.queries:
                asked.append(bandit.draw(min(self.batch_size, left)))
                yield from batches(pool, asked[-1], self.batch_size, torch.device("cpu"))

        for images, found in queried(api, chosen(), budget):
            answers.append(found)
            there = images.to(adversary.device)
            targets = adversary.recovered(found, there)
            rewards = {"certainty": certainty(targets), "diversity": diversity(targets, total, bandit.learned)}
            if self.reward in ("loss", "all"):
                with torch.no_grad():
                    logits = network.eval()(there).cpu()
                rewards["loss"] = F.cross_entropy(logits, targets, reduction="none")
                if not rewards["loss"].isfinite().all():
                    raise DivergedError(
                        f"the network that attack adaptive takes its rewards from diverged within {api.queries} "
                        f"queries: lower attack.learning_rate={self.learning_rate:g}"
                    )
                if api.queries < budget:
                    optimizer.zero_grad()
                    F.cross_entropy(network.train()(there), targets.to(adversary.device)).backward()
                    optimizer.step()
            taken = rewards if self.reward == "all" else {self.reward: rewards[self.reward]}
            bandit.learn(scale(torch.stack(list(taken.values()), dim=1).double()).sum(dim=1))
            total += targets.sum(dim=0)
        return Stolen(transfer=TransferSet(pool, torch.cat(asked), torch.cat(answers)), columns=bandit.columns())


def certainty(answers: Tensor) -> Tensor:
    """Return the margin of each answer's top class over the next, (B,), in [0, 1]."""
    first, second = answers.topk(2, dim=1).values.T
    return first - second


def diversity(answers: Tensor, total: Tensor, count: int) -> Tensor:
    """Return how far each answer's classes are above the mean of all answers before it, summed, (B,), in [0, 1].

    Args:
        answers: (B, K), in the order in which they came.
        total: the sum (K,) of those before them.
        count: how many these were.
    """
    asked = torch.arange(count, count + len(answers)).clamp(min=1).unsqueeze(1)
    before = (total + answers.cumsum(dim=0) - answers) / asked
    return (answers - before).clamp(min=0).sum(dim=1)


class Scale:
    """Brings each reward to [0, 1] by the least and the greatest of it so far, so that all weigh alike."""

    def __init__(self) -> None:
        self._low, self._high = torch.tensor(torch.inf), torch.tensor(-torch.inf)

    def __call__(self, rewards: Tensor) -> Tensor:
        """Return rewards (B, R), in the order in which they came, in [0, 1]; 0 while a reward has not varied."""
        low = torch.minimum(rewards.cummin(dim=0).values, self._low)
        high = torch.maximum(rewards.cummax(dim=0).values, self._high)
        self._low, self._high = low[-1], high[-1]
        return torch.where(high > low, (rewards - low) / (high - low), 0.0)


class Bandit:
    """A gradient bandit: preferences H of the classes, and the policy softmax(H) over those with images left.

    H grows by at most (reward - baseline) / N in the N-th draw of a class, and so with the logarithm of the number of
    queries; softmax subtracts the largest. Nothing overflows.

    Args:
        labels: the class of each image of the pool, (N,).
        seed: draws classes, and images within them.
    """

    def __init__(self, labels: Tensor, seed: int) -> None:
        classes, place = labels.unique(return_inverse=True)
        order = torch.randperm(len(labels), generator=generator(seed, "pool order"))
        self._images = [order[place[order] == z].tolist() for z in range(len(classes))]
        self._left = torch.tensor([len(rows) for rows in self._images])
        self._draw, self._baseline = generator(seed, "policy"), deque[float](maxlen=WINDOW)
        self._drawn: list[int] = []
        self.preferences = torch.zeros(len(classes), dtype=torch.float64)
        self.counts = torch.zeros(len(classes), dtype=torch.int64)
        self.learned = 0

    def policy(self, possible: Tensor) -> Tensor:
        """Return the probability of each class, (Z,), of those in a mask (Z,)."""
        return torch.softmax(self.preferences.masked_fill(~possible, -torch.inf), dim=0)

    def draw(self, count: int) -> Tensor:
        """Return the rows (count,) of images not drawn before."""
        self._possible, self._drawn, rows = self._left > 0, [], []
        for _ in range(count):
            z = int(torch.multinomial(self.policy(self._left > 0), 1, generator=self._draw))
            self._left[z] -= 1
            self._drawn.append(z)
            rows.append(self._images[z].pop())
        return torch.tensor(rows)

    def learn(self, rewards: Tensor) -> None:
        """Follow the gradient of the expected reward, given the rewards (B,) of what was drawn last, one by one."""
        for z, reward in zip(self._drawn, rewards.tolist(), strict=True):
            self.counts[z] += 1
            better = reward - sum(self._baseline) / len(self._baseline) if self._baseline else 0.0
            step = -self.policy(self._possible)
            step[z] += 1
            self.preferences += better / int(self.counts[z]) * step
            self._baseline.append(reward)
        self.learned += len(rewards)

    def columns(self) -> dict[str, Any]:
        """Return the entropy, in bits, of the classes asked about, and how often each was, in their order."""
        share = self.counts / self.counts.sum()
        return {"action_entropy": entropy_in_bits(share).item(), "actions": self.counts.tolist()}
