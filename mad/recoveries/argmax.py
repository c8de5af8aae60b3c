"""The label-only adversary (paper, figs. 5 and 9)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from mad.recoveries.base import Recovery


@dataclass
class Argmax(Recovery):
    """Keep only the top class of each answer, one-hot. It undoes every defense that does not change the top class."""

    name = "argmax"

    def __call__(self, answers: Tensor, images: Tensor | None = None) -> Tensor:
        """Return one-hot targets (B, K)."""
        return F.one_hot(answers.argmax(dim=1), answers.shape[1]).to(answers.dtype)
