"""Top class and confidence: what an adversary can use who trusts nothing else of an answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad.recoveries.base import Recovery


@dataclass
class Confidence(Recovery):
    """Keep the top class's probability p, and share 1 - p equally among the other classes.

    Between label-only training and the answers as they came: it drops what a defense writes into the order of the
    lower classes, and keeps how sure the victim says it is.
    """

    name = "confidence"

    def __call__(self, answers: Tensor, images: Tensor | None = None) -> Tensor:
        """Return targets (B, K). Of classes that tie at the top, one keeps p."""
        kept, top = answers.max(dim=1, keepdim=True)
        rest = ((1 - kept) / (answers.shape[1] - 1)).clamp(min=0).expand_as(answers)
        return torch.scatter(rest, 1, top, kept)
