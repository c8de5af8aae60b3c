"""A recovery that trains: it learns from a shadow victim what the defense does to posteriors, and undoes it.

mad-run --config-dir conf recovery=restorer defense=reverse_sigmoid defense.beta=0.8
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mad.datasets import Images, Split, batches, to_unit_range
from mad.deployment import deploy
from mad.errors import check_number
from mad.knowledge import Knowledge
from mad.recoveries import Recovery
from mad.seeds import seeded
from mad.transfer import TransferSet
from mad.victim import StandIn

SHADOW = 1000  # most images whose clean and defended answers are compared


@dataclass(frozen=True)
class Answered:
    """The adversary's own images, labeled with the API's answers: what a shadow victim learns from."""

    pool: Images
    answers: Tensor
    classes: int
    shape: tuple[int, int, int]
    name: str = "answered"

    def train(self) -> Split:
        """Return all images, each with the top class of its answer."""
        return Split(self.pool, self.answers.argmax(dim=1))

    def test(self) -> Split:
        """Return the same: an adversary has no others."""
        return self.train()


@dataclass
class Restorer(Recovery):
    """Train a shadow victim, defend it by the same defense, and learn to map its defended posteriors to its clean ones.

    Args:
        steps: of the map's training, each on all shadow answers.
    """

    name = "restorer"
    knows = ("the defense",)
    steps: int = 300

    def __post_init__(self) -> None:
        check_number("recovery.steps", self.steps, 1, whole=True)

    def prepare(self, adversary: Knowledge, transfer: TransferSet) -> None:
        """Train the shadow victim and the map."""
        images = next(batches(transfer.images, transfer.rows[:SHADOW], SHADOW, torch.device("cpu")))
        dataset = Answered(images, transfer.answers[:SHADOW], adversary.classes, adversary.shape)
        architecture = adversary.knockoff.architecture
        assert architecture is not None  # a cell fills it in
        shadow = StandIn("shadow", dataset, architecture, adversary.knockoff.trainer, seed=adversary.seed + 1)
        api = deploy(shadow, adversary.defense, seed=adversary.seed + 1, store=adversary.store, device=adversary.device)
        clean, defended = api.session().answer(to_unit_range(images))

        def build() -> nn.Module:
            with seeded(adversary.seed, "restorer"):
                return nn.Sequential(nn.Linear(adversary.classes, 64), nn.ReLU(), nn.Linear(64, adversary.classes))

        def train(network: nn.Module) -> None:
            network.to(adversary.device).train()
            optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
            for _ in range(self.steps):
                loss = F.cross_entropy(network(defended.to(adversary.device)), clean.to(adversary.device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        about = [self, shadow, adversary.defense, adversary.seed]  # all that determines the weights
        self._network = adversary.kept("restorer", about, build, train)

    @torch.no_grad()
    def __call__(self, answers: Tensor, images: Tensor | None = None) -> Tensor:
        """Return what the clean posteriors are thought to have been."""
        device = next(self._network.parameters()).device
        return torch.softmax(self._network(answers.to(device)), dim=1).to(answers.device)
