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
from mad.training import DivergedError, place, refuses_one

REWARDS = ("certainty", "diversity", "loss")
WINDOW = 25  # number of last rewards whose mean is the baseline
MOMENTUM = 0.5


@dataclass(frozen=True)
class KnockoffAdaptive(Attack):
    """Query images of the pool's classes with a policy that is learned from the answers; each image is queried once.

    For each request the classes are drawn from the policy, and images within a class at random. Then each answer in
    turn updates the policy, as in the paper. The paper draws one image at a time and trains between any two; requests
    of many images avoid that cost, which dominates at 50,000 queries. A class without images left is no longer drawn.

    Args:
        reward: ``certainty``, ``diversity``, ``loss`` or ``all``, their sum.
        batch_size: images per request, and per training step of the network that gives the reward ``loss``. The
            knockoff is trained afterwards on the whole transfer set, as for any attack.
        learning_rate: learning rate of that network's SGD with momentum.
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
        single = refuses_one(network, pool.shape[1:])
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
                    network.train(len(there) > 1 or not single)
                    F.cross_entropy(network(there), targets.to(adversary.device)).backward()
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
    """Return the sum, (B,) in [0, 1], of how far each answer's classes exceed the mean of all earlier answers.

    Args:
        answers: (B, K), in the order of the queries.
        total: the sum (K,) of all answers before these.
        count: the number of answers before these.
    """
    asked = torch.arange(count, count + len(answers)).clamp(min=1).unsqueeze(1)
    before = (total + answers.cumsum(dim=0) - answers) / asked
    return (answers - before).clamp(min=0).sum(dim=1)


class Scale:
    """Scales each reward to [0, 1] by its minimum and maximum so far, so that all rewards have equal weight."""

    def __init__(self) -> None:
        self._low, self._high = torch.tensor(torch.inf), torch.tensor(-torch.inf)

    def __call__(self, rewards: Tensor) -> Tensor:
        """Return rewards (B, R), in the order of the queries, scaled to [0, 1]; 0 while a reward has not varied."""
        low = torch.minimum(rewards.cummin(dim=0).values, self._low)
        high = torch.maximum(rewards.cummax(dim=0).values, self._high)
        self._low, self._high = low[-1], high[-1]
        return torch.where(high > low, (rewards - low) / (high - low), 0.0)


class Bandit:
    """A gradient bandit: preferences H of the classes, and the policy softmax(H) over classes with images left.

    H cannot overflow: it changes by at most (reward - baseline) / N in the N-th draw of a class, and so grows with the
    logarithm of the number of queries.

    Args:
        labels: the label of each image of the pool, (N,).
        seed: seed of the draws of classes, and of images within them.
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
        """Return the probability of each class, (Z,); 0 for classes outside the mask ``possible``, bool (Z,)."""
        return torch.softmax(self.preferences.masked_fill(~possible, -torch.inf), dim=0)

    def draw(self, count: int) -> Tensor:
        """Draw classes from the policy; return the rows (count,) of images that were not drawn before."""
        self._possible, self._drawn, rows = self._left > 0, [], []
        for _ in range(count):
            z = int(torch.multinomial(self.policy(self._left > 0), 1, generator=self._draw))
            self._left[z] -= 1
            self._drawn.append(z)
            rows.append(self._images[z].pop())
        return torch.tensor(rows)

    def learn(self, rewards: Tensor) -> None:
        """Update the policy, by gradient ascent, with the rewards (B,) of the last draw, one by one."""
        for z, reward in zip(self._drawn, rewards.tolist(), strict=True):
            self.counts[z] += 1
            better = reward - sum(self._baseline) / len(self._baseline) if self._baseline else 0.0
            step = -self.policy(self._possible)
            step[z] += 1
            self.preferences += better / int(self.counts[z]) * step
            self._baseline.append(reward)
        self.learned += len(rewards)

    def columns(self) -> dict[str, Any]:
        """Return the record's columns: the entropy, in bits, of the drawn classes, and how often each was drawn."""
        share = self.counts / self.counts.sum()
        return {"action_entropy": entropy_in_bits(share).item(), "actions": self.counts.tolist()}
