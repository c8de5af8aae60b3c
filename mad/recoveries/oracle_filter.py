"""The best that an adversary could do by choosing among answers: it is told which of them were changed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad import simplex
from mad.datasets import batch_limit, batches, to_unit_range
from mad.knowledge import Knowledge
from mad.recoveries.base import Recovery
from mad.schema import Column
from mad.training import EVALUATION_BATCH
from mad.transfer import TransferSet

UNTOUCHED = 1e-3  # L1 distance from the clean answer
LEAST = 0.1  # share of the answers that is kept at least


@dataclass
class OracleFilter(Recovery):
    """Keep the answers that are within L1 ``UNTOUCHED`` of the victim's clean ones; at least the least-changed tenth.

    No adversary is given those. It shows what knowing the untouched answers is worth. Where a defense moves all answers
    alike, the tenth that it keeps is arbitrary, and others do better.
    """

    name = "oracle_filter"
    knows = ("the victim's clean answers",)
    needs_images = True
    schema = (Column("untouched", "number", "share", "the answers that the defense left within L1 0.001"),)

    def prepare(self, adversary: Knowledge, transfer: TransferSet) -> None:
        """Find how far each answer was moved, and up to which distance answers are kept."""
        assert adversary.clean is not None  # given to whoever knows the victim's clean answers
        self._clean = adversary.clean
        size = batch_limit(EVALUATION_BATCH, adversary.shape)
        parts = zip(
            transfer.answers.split(size), batches(transfer.images, transfer.rows, size, adversary.device), strict=True
        )
        moved = torch.cat([self._moved(some, to_unit_range(images)) for some, images in parts])
        nearest = moved.sort().values[max(1, round(LEAST * len(moved))) - 1].item()
        self._most = max(UNTOUCHED, nearest)
        self._untouched = (moved <= UNTOUCHED).double().mean().item()

    def columns(self) -> dict[str, float]:
        """Return the share of the answers that were left alone."""
        return {"untouched": self._untouched}

    def keeps(self, answers: Tensor, images: Tensor | None = None) -> Tensor:
        """Return which answers are near the clean ones, bool (B,)."""
        assert images is not None
        return self._moved(answers, images) <= self._most

    def __call__(self, answers: Tensor, images: Tensor | None = None) -> Tensor:
        """Return the answers unchanged."""
        return answers

    def _moved(self, answers: Tensor, images: Tensor) -> Tensor:
        """Return the L1 distance (B,) of each answer from the victim's clean one."""
        return simplex.l1(answers.to(images.device), self._clean(images))
