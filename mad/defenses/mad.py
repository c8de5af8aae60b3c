"""MAD: Maximizing Angular Deviation (Orekondy, Schiele and Fritz, ICLR 2020)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mad import solvers
from mad.defenses.base import Defense, Setting
from mad.defenses.surrogates import RandomSurrogate, Surrogate
from mad.victim import Victim


@dataclass
class Mad(Defense):
    """Turn the gradient that an adversary would take from each answer as far as the budget allows (eqs. 4-7).

    The adversary's gradient is stood for by that of a surrogate with respect to its last layer's weights, as in the
    published code; ``solvers`` shows why that needs no backward pass.

    Args:
        epsilon: L1 budget in [0, 2]. From 1 on, the top class of every answer changes.
        surrogate: makes the network that stands for the adversary's.
    """

    name = "mad"
    epsilon: float | None
    surrogate: Surrogate = field(default=RandomSurrogate())

    def check(self, victim: Victim) -> None:
        """Refuse a surrogate that does not fit the victim."""
        self.surrogate.check(victim)

    def prepare(self, setting: Setting) -> None:
        """Build the surrogate."""
        self._surrogate = self.surrogate.ready(setting)

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Mix each answer with the one-hot posterior of the largest angular deviation."""
        p = torch.softmax(self._surrogate(images), dim=1)
        return solvers.vertex(clean, p, self.epsilon or 0.0)
