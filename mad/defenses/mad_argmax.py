"""MAD-argmax: MAD restricted to answers that keep the top class (paper, section 4)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mad import solvers
from mad.defenses.mad import Mad


@dataclass
class MadArgmax(Mad):
    """MAD that keeps the top class of every answer, and so the accuracy for honest users.

    An adversary who trains on the top class only undoes it (fig. 5). ``solver=vertex`` is the published search
    (``solvers.argmax``), ``exact`` the global maximum under the constraint. For more than ten classes,
    ``as_published`` searches exactly as the published code, which skips a candidate.
    """

    name = "mad_argmax"

    def solve(self, y: Tensor, p: Tensor, inner: Tensor | None) -> Tensor:
        """Return defended posteriors (B, K) whose top class is that of y."""
        if self.solver == "exact":
            return solvers.exact(y, p, self.epsilon or 0.0, inner, keep_top=True)
        return solvers.argmax_vertex(y, p, self.epsilon or 0.0, inner, as_published=self.as_published)
