"""The adversary: the knowledge and methods that an attack may use, and the training of the stolen model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mad import plugins, simplex
from mad.api import BlackBox
from mad.datasets import batch_limit, batches, to_unit_range
from mad.datasets.base import VALUES
from mad.datasets.checked import check_images, say
from mad.datasets.joined import joined
from mad.errors import MadError
from mad.knowledge import Knowledge
from mad.recoveries import Recovery
from mad.recoveries.base import Extra
from mad.seeds import generator
from mad.storage.checkpoint import Checkpoint
from mad.training import EVALUATION_BATCH, Trainer, logits_of, place
from mad.transfer import TransferSet

SAMPLE, EACH = 1000, 20  # images of a transfer set on which ``learned`` is decided: at least so many, so many a class
NOTHING = 0.1  # nats: a loss below this counts as learned, however little the answers vary
LEAST = 0.001  # nats by which the loss must be below a constant answer's; a smaller difference is rounding


@dataclass(frozen=True, kw_only=True)
class Adversary(Knowledge):
    """An adversary: its knowledge (see ``Knowledge``), its recovery and its pool's labels.

    Args:
        recovery: turns answers into training targets.
        labels: the label of each image of the pool, int64 (N,), whose classes need not be the victim's; None for an
            attack that does not use labels.
        checkpoint: where a long attack saves its progress; None saves nothing.
        recoveries: the names of the recoveries that were applied so far; filled by ``recovered``.
    """

    recovery: Recovery
    labels: Tensor | None = None
    checkpoint: Checkpoint | None = None
    recoveries: set[str] = field(default_factory=set, repr=False, compare=False)

    @cached_property
    def live(self) -> nn.Module:
        """The network, in eval mode, that an online attack trains in place and that a white-box defense reads."""
        return place(self.untrained(), self.device).eval()

    def recovered(self, answers: Tensor, images: Tensor | None = None) -> Tensor:
        """Return the recovery's training targets (B, K) for answers (B, K), on their device.

        Args:
            answers: the API's answers.
            images: the images of the answers, (B, C, H, W) in [0, 1]; used only if the recovery ``needs_images``. It
                is then given the answers on the images' device.

        Raises:
            MadError: if the targets are not posteriors of the answers' shape, or if the recovery changes the answers.
        """
        if self.recovery.learns and not self.recovery.is_prepared:
            raise MadError(
                f"recovery {self.recovery.name} must learn from a whole transfer set before it is applied: the attack "
                "must say recovers_early = True, so that such recoveries are refused at the start"
            )
        self.recoveries.add(self.recovery.name)
        images = images if self.recovery.needs_images else None
        given = beside(answers, images)
        who, before = f"recovery {self.recovery.name}", plugins.versions([given])
        found = self.recovery(given, images)
        plugins.unchanged(who, before, [given])
        return plugins.targets(who, found, given).to(answers.device)

    def learned_from(self, transfer: TransferSet) -> Adversary:
        """Return this adversary with its recovery prepared on a transfer set; itself if that is done already."""
        if self.recovery.is_prepared:
            return self
        return replace(self, recovery=self.recovery.prepared(self, transfer))

    def targets(self, transfer: TransferSet) -> Tensor:
        """Return the training targets (M, K) of a transfer set, of answers that are kept or not.

        The recovery must be prepared: see ``learned_from``.
        """
        found = [self.recovered(some, images) for some, images in self._parts(transfer)]
        return found[0] if len(found) == 1 else torch.cat(found)

    def chosen(self, transfer: TransferSet, said: bool = True) -> tuple[Tensor, Tensor]:
        """Return what is trained on: the rows (m,) and the targets (m, K) of the answers that the recovery keeps.

        Args:
            transfer: images and answers. The recovery must be prepared: see ``learned_from``.
            said: whether a line on stderr says so where it keeps none, and all are trained on.
        """
        rows = transfer.rows
        if not self.recovery.filters:
            return rows, self.targets(transfer)
        who, targets, kept = f"recovery {self.recovery.name}", [], []
        for some, images in self._parts(transfer):
            targets.append(self.recovered(some, images))
            keeps = self.recovery.keeps(beside(some, images), images)
            kept.append(plugins.choice(f"{who}: keeps", keeps, len(some)).cpu())
        keep = torch.cat(kept)
        if keep.any():
            return rows[keep], torch.cat(targets)[keep]
        if said:
            say(f"{who} keeps none of the {len(rows)} answers: all are trained on")
        return rows, torch.cat(targets)

    def added(self) -> Extra | None:
        """Return the images that the recovery, once prepared, adds to the training, and their targets; None for none.

        Raises:
            MadError: if they are no images of the API's shape with a posterior each.
        """
        found, who = self.recovery.adds(), f"recovery {self.recovery.name}: adds"
        if found is None:
            return None
        if not isinstance(found, Extra) or not isinstance(found.images, Tensor):
            raise MadError(f"{who} must return mad.recoveries.base.Extra of two tensors, got {plugins.kind(found)}")
        check_images(who, found.images, tuple(self.shape))
        wanted, targets = (len(found.images), self.classes), found.targets
        right = isinstance(targets, Tensor) and targets.is_floating_point() and tuple(targets.shape) == wanted
        if not right or not simplex.are_posteriors(targets):
            none = " that are none" * right
            raise MadError(f"{who} must return {wanted[0]} posteriors {wanted}, got {plugins.kind(targets)}{none}")
        return found

    def _parts(self, transfer: TransferSet) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the answers and, if the recovery uses them, their images in [0, 1], batch by batch."""
        answers, rows = transfer.answers, transfer.rows
        if not self.recovery.needs_images:  # images may be slow to decode
            whole = answers.numel() <= VALUES
            parts = [answers] if whole else answers.split(batch_limit(EVALUATION_BATCH, self.shape))
            yield from ((some, None) for some in parts)
            return
        parts = answers.split(batch_limit(EVALUATION_BATCH, self.shape))
        images = batches(transfer.images, rows, len(parts[0]), self.device)
        for some, each in zip(parts, images, strict=True):
            yield some, to_unit_range(each)

    def save(self, api: BlackBox, **state: Any) -> None:
        """Save a checkpoint: the API's counters, and the attack's own state; see ``Checkpoint.save``."""
        if self.checkpoint is None and self.store is not None:
            say("the defense is stateful, so the attack saves no checkpoint: a run that is stopped begins again")
        if self.checkpoint is not None:
            self.checkpoint.save(api=api.state(), recoveries=sorted(self.recoveries), **state)

    def resume(self, api: BlackBox) -> dict[str, Any] | None:
        """Return the attack's state of the last checkpoint, and restore the API's counters; None if there is none."""
        found = None if self.checkpoint is None else self.checkpoint.load()
        if found is not None:
            api.restore(found.pop("api"))
            self.recoveries.update(found.pop("recoveries"))
        return found

    def train(self, transfer: TransferSet, task: str = "knockoff", trainer: Trainer | None = None) -> nn.Module:
        """Return a new network, in eval mode, trained on the recovery's targets for a transfer set.

        Answers that the recovery does not keep are left out, and the images that it adds are trained on, too.

        Args:
            transfer: images and answers.
            task: the name in the progress bar; with the seed, it determines initial weights and order.
            trainer: replaces the knockoff's training recipe.

        Raises:
            DivergedError: if the training diverges.
        """
        model, ready = self.untrained(task), self.learned_from(transfer)
        images, (rows, targets) = transfer.images, ready.chosen(transfer)
        more = ready.added()
        if more is not None:
            images, targets = joined(images, rows, more.images), torch.cat([targets, more.targets.to(targets)])
            rows = torch.arange(len(targets))
        (trainer or self.knockoff.trainer).fit(
            model,
            images,
            targets,
            rows=rows,
            seed=self.seed,
            device=self.device,
            task=task,
        )
        return model

    def learned(self, network: nn.Module, transfer: TransferSet) -> bool:
        """Return whether a network fits its training targets better than the best constant answer does.

        Training at too large a learning rate can end in a constant answer. The adversary can tell from its own loss,
        without the victim's test data.
        """
        rows, targets = self.chosen(sample(transfer, self.seed), said=False)
        targets = targets.double()
        logits = logits_of(network, transfer.images, self.device, rows).double()
        loss = F.cross_entropy(logits, targets.cpu()).item()
        constant = torch.special.entr(targets.mean(dim=0)).sum().item()
        return loss < max(constant - LEAST, NOTHING)


def beside(answers: Tensor, images: Tensor | None) -> Tensor:
    """Return answers on the device of their images, if there are any."""
    return answers if images is None else answers.to(images.device)


def sample(transfer: TransferSet, seed: int) -> TransferSet:
    """Return random answers of a transfer set, which may be in the order of their classes; or all.

    The best constant answer to N answers of K classes seems better than it is by about (K - 1) / 2 N nats.
    """
    size = max(SAMPLE, EACH * transfer.answers.shape[1])
    if len(transfer) <= size:
        return transfer
    some = torch.randperm(len(transfer), generator=generator(seed, "learned"))[:size]
    return TransferSet(transfer.images, transfer.rows[some], transfer.answers[some])
