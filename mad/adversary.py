"""The adversary: what an attack may lean on while it queries, and who trains the stolen model in the end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mad import plugins
from mad.api import BlackBox
from mad.datasets import batch_limit, batches, to_unit_range
from mad.knowledge import Knowledge
from mad.recoveries import Recovery
from mad.storage.checkpoint import Checkpoint
from mad.training import EVALUATION_BATCH, Trainer, logits_of, place
from mad.transfer import TransferSet

SAMPLE = 1000  # images of a transfer set that tell whether anything was learned
NOTHING = 0.1  # nats: where answers vary less, there is nothing to learn
LEAST = 0.001  # nats below one constant answer's loss: what is less is rounding


@dataclass(frozen=True, kw_only=True)
class Adversary(Knowledge):
    """An adversary's knowledge and means.

    Args:
        recovery: what it makes of answers before it trains on them.
        labels: the class of each image of its pool, int64 (N,), of classes that need not be the victim's; None for an
            attack that does not choose by them.
        checkpoint: where an attack of hours leaves how far it has come; None leaves nothing.
    """

    recovery: Recovery
    labels: Tensor | None = None
    checkpoint: Checkpoint | None = None

    @cached_property
    def live(self) -> nn.Module:
        """The one network that an online attack changes in place, and that white-box defenses read; in eval mode."""
        return place(self.untrained(), self.device).eval()

    def recovered(self, answers: Tensor, images: Tensor | None = None) -> Tensor:
        """Return the training targets (B, K) that it makes of answers (B, K), and of the images if those count.

        Raises:
            MadError: if its recovery makes something else of them.
        """
        who, before = f"recovery {self.recovery.name}", plugins.versions([answers])
        found = self.recovery(answers, images if self.recovery.needs_images else None)
        plugins.unchanged(who, before, [answers])
        return plugins.targets(who, found, answers)

    def learned_from(self, transfer: TransferSet) -> Adversary:
        """Return this adversary with a recovery that has learned what it can from a transfer set."""
        if self.recovery.is_prepared:
            return self
        return replace(self, recovery=self.recovery.prepared(self, transfer))

    def targets(self, transfer: TransferSet, count: int | None = None) -> Tensor:
        """Return the training targets (M, K) of a transfer set, or of its first ``count`` answers.

        The recovery must have learned from it: see ``learned_from``.
        """
        answers, rows = transfer.answers[:count], transfer.rows[:count]
        if not self.recovery.needs_images:
            return self.recovered(answers)
        size = batch_limit(EVALUATION_BATCH, self.shape)
        images = (to_unit_range(each) for each in batches(transfer.images, rows, size, self.device))
        found = [self.recovered(some, each) for some, each in zip(answers.split(size), images, strict=True)]
        return torch.cat(found)

    def save(self, api: BlackBox, **state: Any) -> None:
        """Leave a checkpoint: what the API has counted, and what the attack names; see ``Checkpoint.save``."""
        if self.checkpoint is not None:
            self.checkpoint.save(api=api.state(), **state)

    def resume(self, api: BlackBox) -> dict[str, Any] | None:
        """Return what the last checkpoint holds, and let the API count on from there; None if there is none."""
        found = None if self.checkpoint is None else self.checkpoint.load()
        if found is not None:
            api.restore(found.pop("api"))
        return found

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
            self.learned_from(transfer).targets(transfer),
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
        targets = self.targets(transfer, SAMPLE).double()
        logits = logits_of(network, transfer.images, self.device, transfer.rows[:SAMPLE]).double()
        loss = F.cross_entropy(logits, targets.cpu()).item()
        constant = torch.special.entr(targets.mean(dim=0)).sum().item()
        return loss < max(constant - LEAST, NOTHING)
