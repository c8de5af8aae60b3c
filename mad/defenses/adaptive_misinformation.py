"""Adaptive Misinformation (Kariyappa and Qureshi, CVPR 2020): wrong answers to queries that look out of place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mad.datasets import Pool, Split
from mad.defenses.base import Context, Defense
from mad.defenses.outliers import ExposureTrainer, OutlierTrainer, joined
from mad.errors import MadError, check_number
from mad.training import logits_of
from mad.victim import Victim

NEGLIGIBLE = 1e-7  # a share that moves no probability by more than float32 rounds it


@dataclass(frozen=True)
class MisinformationTrainer(OutlierTrainer):
    """A recipe for a network that is wrong: it minimizes the reverse cross-entropy, of images and outliers alike."""

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return the mean reverse cross-entropy of a batch and of as many labeled outliers, if there are any."""
        drawn = self.outliers()
        if drawn is not None and drawn[1] is not None:
            labels = F.one_hot(drawn[1], targets.shape[1]).to(targets) if targets.dim() == 2 else drawn[1]
            images, targets = joined(images, drawn[0]), torch.cat([targets, labels])
        return reverse_cross_entropy(self.logits(model, images), targets).mean()


@dataclass
class AdaptiveMisinformation(Defense):
    """Mix an answer with a wrong one, the more the less sure the victim is.

    The answer is (1 - a) f(x) + a g(x), where f(x) is the victim's posterior, a = sigmoid(nu (tau - max_k f(x)_k)), and
    g is a network of the victim's architecture that is trained to be wrong: on the victim's training images it
    minimizes -log(1 - g(x)_y), y the label. With nu = 1000 a sure answer stays as it is, to the last bit, and g runs
    only on the others.

    With ``outliers``, as in the paper, the API serves a victim that is trained anew with outlier exposure (weight 1),
    so that it is less sure about images that are none of its classes; and g also learns to be wrong about the
    outliers, whose labels are the top classes of the served victim. The published code trains f and g at the same
    time; here g is trained after f. Without outliers the plain victim is served. An adversary whose pool holds the
    outliers is weaker than a real one, who asks what the defender has not seen: take another pool for them.

    An adversary who knows tau can tell by an answer's top probability whether it was mixed, and keep the others.

    Args:
        epsilon: an additional L1 budget in [0, 2]; None, as published, for none.
        tau: answers whose top probability is below tau are wrong; in [0, 1], higher is stronger.
        nu: how sharply a falls from 1 to 0 at tau, above 0. The paper's is 1000.
        outliers: the pool that f and g are trained with; None for the plain victim.
    """

    name = "adaptive_misinformation"
    strength_parameter = "tau"
    epsilon: float | None = None
    tau: float = 0.7
    nu: float = 1000.0
    outliers: Pool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("defense.tau", self.tau, 0, 1)
        check_number("defense.nu", self.nu, 1e-9)

    def check(self, victim: Victim) -> None:
        """Raise MadError if outliers are given and the victim cannot be trained with them, or if it has no images."""
        if self.outliers is not None:
            victim.check_trainable(f"defense={self.name} with defense.outliers={self.outliers.name}")
        if victim.given is not None:  # its data may all be for testing
            try:
                victim.training_split()
            except MadError as error:
                raise MadError(f"defense={self.name} trains a network on the victim's data: {error}") from error

    def about(self, context: Context) -> list[Any]:
        """Return what determines the outliers and the victim that is served."""
        victim, pool = context.victim, self.outliers
        if pool is None:
            return [victim]
        return [victim, pool, context.contents(pool)]

    def trainings(self, victim: Victim) -> float:
        """Return one for the second network, and one for the victim with outlier exposure."""
        return 1.0 if self.outliers is None else 2.0

    def serves_another(self) -> bool:
        """Return whether the victim is trained with outlier exposure."""
        return self.outliers is not None

    def serve(self, context: Context) -> nn.Module:
        """Return the victim, or one that is trained with outlier exposure."""
        pool = self.outliers
        if pool is None:
            return context.model
        recipe = ExposureTrainer.like(context.victim.trainer)

        def fit(network: nn.Module, split: Split, how: dict[str, Any]) -> None:
            recipe.fit(network, split.images, split.labels, outliers=context.images(pool), **how)

        return context.retrained("exposed", [recipe, pool, context.contents(pool)], fit)

    def prepare(self, context: Context) -> None:
        """Train or load the misinformation network."""
        victim, pool = context.victim, self.outliers
        recipe = MisinformationTrainer.like(victim.trainer)

        def train(network: nn.Module) -> None:
            split = victim.training_split()
            how: dict[str, Any] = {"seed": context.seed, "device": context.device, "task": "misinformation"}
            if pool is not None:
                how["outliers"] = context.images(pool)
                how["labels"] = logits_of(context.model, how["outliers"], context.device).argmax(dim=1)
            recipe.fit(network, split.images, split.labels, **how)

        build = partial(victim.untrained, seed=context.seed, purpose="misinformation")
        about = ["misinformation", recipe, context.seed, *self.about(context)]
        self._wrong = context.kept(f"{victim.name}-misinformation", about, build, train)

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return the mixed posteriors (B, K)."""
        share = self.share(clean)
        rows = (share > NEGLIGIBLE).nonzero()[:, 0]
        if len(rows) == 0:
            return clean
        if len(rows) == len(clean):
            return torch.lerp(clean, self.wrong(images), share)
        mixed = torch.lerp(clean[rows], self.wrong(images[rows]), share[rows])
        return clean.index_copy(0, rows, mixed)

    def share(self, clean: Tensor) -> Tensor:
        """Return a, the share of the wrong answer in each answer, (B, 1)."""
        return (self.tau - clean.amax(dim=1, keepdim=True)).mul_(self.nu).sigmoid_()

    def wrong(self, images: Tensor) -> Tensor:
        """Return the misinformation network's posteriors (B, K)."""
        return torch.softmax(self._wrong(images), dim=1)


def reverse_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log(1 - p_y) of each row of logits (B, K), (B,), where p is the softmax; finite also where p_y is 1.

    Args:
        logits: (B, K).
        labels: y, int64 (B,), or shares of the classes (B, K), as mixup makes them, for the mean by these shares.
    """
    soft = labels.dim() == 2
    one = logits.argmax(dim=1) if soft else labels
    others = logits.scatter(1, one.unsqueeze(1), -torch.inf)
    found = logits.logsumexp(dim=1) - others.logsumexp(dim=1)
    if not soft:
        return found
    rest = -torch.log1p(-torch.softmax(logits, dim=1).scatter(1, one.unsqueeze(1), 0))  # of classes of at most 1/2
    return (labels * rest.scatter(1, one.unsqueeze(1), found.unsqueeze(1))).sum(dim=1)
