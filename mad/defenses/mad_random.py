"""MAD's ablation y* = random: the target is a random corner of the simplex (paper, fig. 8)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mad.defenses.base import Context, Defense
from mad.defenses.random_noise import keyed_uniform
from mad.seeds import derive
from mad.solvers.vertex import mix


@dataclass
class MadRandom(Defense):
    """Mix each answer with the one-hot posterior of a random class, as far as the budget allows.

    The class is a function of a secret key and of the image, so that an adversary gains nothing by averaging repeated
    queries. The published code draws a new class for each query.

    Args:
        epsilon: L1 budget in [0, 2].
    """

    name = "mad_random"
    needs_epsilon = True
    epsilon: float

    def prepare(self, context: Context) -> None:
        """Draw the secret key."""
        self._key = derive(context.seed, "random corner")

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return posteriors (B, K), each mixed with the one-hot posterior of its image's random class."""
        drawn = keyed_uniform(images, 1, self._key).squeeze(1)
        return mix(clean, (drawn * clean.shape[1]).long(), self.epsilon)
