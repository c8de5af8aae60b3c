"""The transfer set: what an adversary asked and what it was answered."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mad.datasets import Images


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
