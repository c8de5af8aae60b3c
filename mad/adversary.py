"""The adversary: what an attack may lean on while it queries, and who trains the stolen model in the end."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mad import plugins
from mad.recoveries import Recovery
from mad.seeds import seeded
from mad.training import Trainer, logits_of, place

if TYPE_CHECKING:
    from mad.attacks import TransferSet
    from mad.knockoff import Knockoff

SAMPLE = 1000  # images of a transfer set that tell whether anything was learned
NOTHING = 0.1  # nats: where answers vary less, there is nothing to learn
LEAST = 0.001  # nats below one constant answer's loss: what is less is rounding


@dataclass(frozen=True)
class Adversary:
    """An adversary's knowledge and means; of the victim it knows the shape of an image and the classes, no more.

    Args:
        knockoff: how it trains.
        recovery: what it makes of answers before it trains on them.
        shape: (C, H, W) of the images that the API takes.
        classes: K.
        seed: the cell's.
        device: where it computes.
        labels: the class of each image of its pool, int64 (N,), of classes that need not be the victim's; None for an
            attack that does not choose by them.
    """

    knockoff: Knockoff
    recovery: Recovery
    shape: tuple[int, int, int]
    classes: int
    seed: int
    device: torch.device
    labels: Tensor | None = None

    def untrained(self, purpose: str = "knockoff") -> nn.Module:
        """Return its network as it is before any training; the purpose, with the seed, draws the weights."""
        with seeded(self.seed, purpose):
            model = self.knockoff.architecture(shape=self.shape, classes=self.classes)  # type: ignore[misc]
        self.knockoff.start(model)
        return model

    @cached_property
    def live(self) -> nn.Module:
        """The one network that an online attack changes in place, and that white-box defenses read; in eval mode."""
        return place(self.untrained(), self.device).eval()

    def recovered(self, answers: Tensor) -> Tensor:
        """Return the training targets (B, K) that it makes of answers (B, K).

        Raises:
            MadError: if its recovery makes something else of them.
        """
        who, before = f"recovery {self.recovery.name}", plugins.versions([answers])
        found = self.recovery(answers)
        plugins.unchanged(who, before, [answers])
        return plugins.targets(who, found, answers)

    def train(self, transfer: TransferSet, task: str = "knockoff", trainer: Trainer | None = None) -> nn.Module:
        """Return a network, in eval mode, trained anew on what it recovers from a transfer set.

        Args:
            transfer: images and answers.
            task: what the progress bar calls this; with the seed, it draws weights and order.
            trainer: another recipe than the knockoff's.

        Raises:
            DivergedError: if the training diverges.
        """
        model = self.untrained(task)
        (trainer or self.knockoff.trainer).fit(
            model,
            transfer.images,
            self.recovered(transfer.answers),
            rows=transfer.rows,
            seed=self.seed,
            device=self.device,
            task=task,
        )
        return model

    def learned(self, network: nn.Module, transfer: TransferSet) -> bool:
        """Return whether a network fits what it was trained on better than one constant answer to everything does.

        Training that was thrown off by too large a rate can end in such an answer. The thief sees it in its own loss.
        """
        targets = self.recovered(transfer.answers[:SAMPLE]).double()
        logits = logits_of(network, transfer.images, self.device, transfer.rows[:SAMPLE]).double()
        loss = F.cross_entropy(logits, targets).item()
        constant = torch.special.entr(targets.mean(dim=0)).sum().item()
        return loss < max(constant - LEAST, NOTHING)
