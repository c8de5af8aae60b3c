"""The transfer set, and what an attack brings home."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mad.datasets import Images
from mad.training import Trainer


@dataclass(frozen=True)
class TransferSet:
    """Images and the API's answers to them.

    Args:
        images: the pool, or what was made, uint8 or float in [0, 1], (N, C, H, W). Attacks on a pool keep ``rows``
            into it and never a second copy of the images.
        rows: int64 (M,), which image each answer is about.
        answers: float32 (M, K).
    """

    images: Images
    rows: Tensor
    answers: Tensor

    def __len__(self) -> int:
        """Return M."""
        return len(self.rows)


@dataclass(frozen=True)
class Stolen:
    """What an attack brings home: a transfer set to train on, a network that it trained itself, or both.

    Args:
        network: trained while the attack queried, images in [0, 1] to logits (B, K), in eval mode; None where the
            knockoff is trained afterwards, by its own recipe, on ``transfer``.
        transfer: what was asked and answered; None where an attack keeps none of it.
        columns: further columns of the record, under names that the attack's ``schema`` explains.
        trainer: the recipe of ``network``, for the record; None where that is the knockoff's.
    """

    network: nn.Module | None = None
    transfer: TransferSet | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    trainer: Trainer | None = None
