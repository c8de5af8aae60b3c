"""MAD's ablation G = I: it turns the posteriors themselves, not the gradients (paper, fig. 8)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mad.defenses.base import Defense
from mad.solvers.vertex import mix


@dataclass
class MadIdentity(Defense):
    """Turn each answer away from the posterior y, as far as the budget allows, without a surrogate or gradients.

    With G = I the objective of eq. 4 is 2 - 2 cos(answer, y). At the corner e_k it is 2 - 2 y_k / ||y||, so the
    published search over corners always ends at the least likely class (of equal ones, the first).

    Args:
        epsilon: L1 budget in [0, 2].
    """

    name = "mad_identity"
    needs_epsilon = True
    epsilon: float

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return posteriors mixed with the one-hot posterior of their least likely class."""
        return mix(clean, clean.argmin(dim=1), self.epsilon)
