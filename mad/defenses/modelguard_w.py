"""ModelGuard-W (Tang et al., USENIX Security 2024): answers that agree least with the posterior, within the budget."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad import solvers
from mad.defenses.base import Defense

ROUNDING = 1e-5  # a budget for each class above which rounding to float32 cannot close the gap to the top class


@dataclass
class ModelGuardW(Defense):
    """Minimize sum_i log(y_i + 1e-6) q_i over posteriors q within the budget that keep the top class of y.

    Mass moves from the likely classes to the unlikely ones; the top class stays above every other by 1e-4. The
    published code solves one linear program an answer; here a batch is solved at once, and exactly. It is
    deterministic and needs no surrogate.

    Args:
        epsilon: L1 budget in [0, 2]; 1 in the published code.
    """

    name = "modelguard_w"
    epsilon: float | None = 1.0

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return posteriors (B, K) with the top classes of the clean ones."""
        epsilon = 2.0 if self.epsilon is None else self.epsilon
        answer = solvers.modelguard(clean, epsilon)
        if epsilon > ROUNDING * clean.shape[1]:
            return answer
        # So near, two classes may tie once they are rounded.
        kept = answer.argmax(dim=1, keepdim=True) == clean.argmax(dim=1, keepdim=True)
        return torch.where(kept, answer, clean)
