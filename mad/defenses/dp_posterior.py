"""Answers from the exponential mechanism of differential privacy, a baseline of QUEEN (Chen et al., 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad.defenses.base import Context, Defense
from mad.defenses.random_noise import keyed_uniform
from mad.errors import check_choice, check_number
from mad.seeds import derive

ANSWERS = ("posterior", "label")


@dataclass
class DpPosterior(Defense):
    """Answer with p_i proportional to exp(privacy y_i / 2), or with a label that is drawn from p.

    p is the exponential mechanism with the posterior as its score, whose sensitivity is 1 (McSherry and Talwar, 2007).
    A label drawn from it is differentially private for one query: with epsilon = ``privacy``, towards a change of that
    answer's posterior. The published code sends p itself, which is deterministic and gives no privacy: it is a softmax
    of temperature 2 / privacy, which an adversary can invert.

    The label is a function of a secret key and of the image, so that repeated queries tell nothing more.

    Args:
        epsilon: L1 budget in [0, 2], not the epsilon of privacy; None, as published, for no budget.
        privacy: epsilon of the mechanism, at least 0; smaller is stronger, 0 answers alike for all images. Published 1,
            which makes answers of ten classes nearly flat.
        answers: ``posterior`` for p, as published; ``label`` for a drawn label, one-hot, which costs accuracy.
    """

    name = "dp_posterior"
    strength_parameter = "privacy"
    epsilon: float | None = None
    privacy: float = 1.0
    answers: str = "posterior"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("defense.privacy", self.privacy, 0)
        check_choice("defense.answers", self.answers, ANSWERS)

    def prepare(self, context: Context) -> None:
        """Draw the secret key."""
        self._key = derive(context.seed, "private label")

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return posteriors (B, K) in the order of the clean ones, or one-hot labels."""
        p = torch.softmax(self.privacy / 2 * clean.double(), dim=1)
        if self.answers == "posterior":
            return p.to(clean.dtype)
        drawn = keyed_uniform(images, 1, self._key)
        label = (p.cumsum(dim=1) < drawn).sum(dim=1, keepdim=True).clamp(max=clean.shape[1] - 1)
        return torch.zeros_like(clean).scatter(1, label, 1.0)
