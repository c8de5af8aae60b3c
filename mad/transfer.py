"""The transfer set, and the result of an attack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mad.datasets import Images
from mad.training import Trainer
from mad.victim import Architecture


@dataclass(frozen=True)
class TransferSet:
    """Images and the API's answers to them.

    Args:
        images: the pool, or images that the attack made, uint8 or float in [0, 1], (N, C, H, W). An attack on a pool
            stores the pool itself and ``rows`` into it, never a copy of the images.
        rows: int64 (M,), the row of the image that each answer is about.
        answers: float32 (M, K).
    """

    images: Images
    rows: Tensor
    answers: Tensor

    def __len__(self) -> int:
        """Return M, the number of answers."""
        return len(self.rows)


@dataclass(frozen=True)
class Stolen:
    """The result of an attack: a transfer set to train on, a network that the attack trained itself, or both.

    Args:
        network: a network trained during the attack, images in [0, 1] to logits (B, K), in eval mode; None if the
            knockoff is trained afterwards, by its own recipe, on ``transfer``.
        transfer: the images and their answers; None if the attack does not store them.
        columns: columns that the attack adds to the record, under the names in its ``schema``.
        trainer: the recipe of ``network``, for the record; None if it is the knockoff's recipe.
        architecture: of ``network``, for the record; None if it is the knockoff's architecture.
    """

    network: nn.Module | None = None
    transfer: TransferSet | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    trainer: Trainer | None = None
    architecture: Architecture | None = None
