"""D-DAE: a network that maps defended posteriors to clean ones (Chen et al., IEEE S&P 2023), learned from shadows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mad.errors import check_number
from mad.knowledge import Knowledge
from mad.recoveries.base import Recovery
from mad.recoveries.shadows import Pairs, pairs
from mad.seeds import seeded
from mad.training import Trainer
from mad.transfer import TransferSet

WIDTHS = (128, 64)
LEAST = 1e-4  # deviation by which probabilities are divided
RECIPE = Trainer(
    epochs=1,
    batch_size=256,
    optimizer="adam",
    learning_rate=0.001,
    momentum=0.0,
    weight_decay=0.0,
    schedule="cooldown",
    precision="float32",
)


@dataclass
class Restorer(Recovery):
    """Train shadow victims behind the same defense, and a network ... -> 128 -> 64 -> K from their answers back.

    It learns from what the defense does to the shadows' answers to half of the transfer set's images; the shadows have
    learned the other half (see ``mad.recoveries.shadows``). It sees an answer's K probabilities, each standardized over
    the pairs, and which of them is the largest: a defense may leave a difference of 1e-5. It minimizes the
    cross-entropy to the clean posteriors. The published one sees the probabilities alone, and also guesses first which
    defense is in use; this one is told. It makes no further query.

    Args:
        shadows: number of shadow victims.
        steps: of the network's training, each on 256 answers.
    """

    name = "restorer"
    knows: ClassVar[tuple[str, ...]] = ("the defense",)
    trainings = 1.0  # three shadows, of a third of the steps each
    shadows: int = 3
    steps: int = 3000

    def __post_init__(self) -> None:
        check_number("recovery.shadows", self.shadows, 1, whole=True)
        check_number("recovery.steps", self.steps, 1, whole=True)

    def prepare(self, adversary: Knowledge, transfer: TransferSet) -> None:
        """Train the shadows and the network."""
        found, device = self.pairs(adversary, transfer), adversary.device
        recipe = RECIPE.but(min_steps=self.steps)

        def build() -> nn.Module:
            with seeded(adversary.seed, "restorer"):
                sizes = [2 * adversary.classes, *WIDTHS]
                layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes)]
                flat = [layer for both in layers for layer in both]
                return nn.Sequential(Seen(adversary.classes), *flat, nn.Linear(sizes[-1], adversary.classes))

        def train(network: nn.Module) -> None:
            network[0].standardize(found.defended)  # type: ignore[index]  # it is a Seen
            recipe.fit(network, grid(found.defended), found.clean, seed=adversary.seed, device=device, task="restorer")

        about = [self, recipe, list(found), adversary.seed]
        self._network = adversary.kept("restorer", about, build, train)
        self._device = device

    def pairs(self, adversary: Knowledge, transfer: TransferSet) -> Pairs:
        """Return the defended and the clean posteriors that it learns from."""
        return pairs(adversary, transfer, self.shadows)

    @torch.no_grad()
    def __call__(self, answers: Tensor, images: Tensor | None = None) -> Tensor:
        """Return what the clean posteriors are thought to have been, (B, K)."""
        return torch.softmax(self._network(grid(answers).to(self._device)), dim=1).to(answers)


class Seen(nn.Module):
    """What the restorer sees of answers as images (B, K, 1, 1): the standardized probabilities and the top class."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(classes))
        self.register_buffer("deviation", torch.ones(classes))

    def standardize(self, answers: Tensor) -> None:
        """Take the mean and deviation of each class's probability from answers (P, K)."""
        self.mean.copy_(answers.mean(dim=0))
        self.deviation.copy_(answers.std(dim=0, correction=0).clamp(min=LEAST))

    def forward(self, images: Tensor) -> Tensor:
        """Return both side by side, (B, 2 K)."""
        rows = images.flatten(1)
        top = F.one_hot(rows.argmax(dim=1), rows.shape[1]).to(rows)
        return torch.cat([(rows - self.mean) / self.deviation, top], dim=1)


def grid(answers: Tensor) -> Tensor:
    """Return posteriors (B, K) as images (B, K, 1, 1), which a ``Trainer`` takes; rounding must not leave [0, 1]."""
    return answers.float().clamp(0, 1).unsqueeze(2).unsqueeze(3)
