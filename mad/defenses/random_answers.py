"""Answers that say nothing about the image: what no adversary can learn from, to test a panel of adversaries."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mad.defenses.base import Context, Defense
from mad.defenses.random_noise import keyed_uniform
from mad.seeds import derive


@dataclass
class RandomAnswers(Defense):
    """Answer with a posterior drawn uniformly from the simplex, whatever the victim says.

    It is of no use to honest users. A panel of adversaries must be at chance against it; one that is not is given
    more than the answers. The draw is a function of a secret key and of the image.

    Args:
        epsilon: L1 budget in [0, 2]; None for no budget. With one, answers move that far toward the drawn ones.
    """

    name = "random_answers"
    epsilon: float | None = None

    def prepare(self, context: Context) -> None:
        """Draw the secret key."""
        self._key = derive(context.seed, "random answers")

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return posteriors (B, K) from Dirichlet(1, ..., 1): exponential draws, rescaled."""
        drawn = -(1 - keyed_uniform(images, clean.shape[1], self._key)).log()
        return (drawn / drawn.sum(dim=1, keepdim=True)).to(clean.dtype)
