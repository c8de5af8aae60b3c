"""MAD: Maximizing Angular Deviation (Orekondy, Schiele and Fritz, ICLR 2020)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mad import solvers
from mad.defenses.base import Context, Defense
from mad.defenses.surrogates import RandomSurrogate, Surrogate
from mad.errors import MadError, check_choice, check_flag
from mad.gradients import theta
from mad.progress import err
from mad.storage.fingerprint import ADDED
from mad.victim import Victim

GRADIENTS = ("last_layer", "all")
SOLVERS = ("vertex", "exact")


@dataclass
class Mad(Defense):
    """Perturb each answer so that it turns the adversary's gradient by the largest angle in the budget (eqs. 4-7).

    The adversary's network is unknown, so the gradient of a surrogate stands in for it.

    Args:
        epsilon: L1 budget in [0, 2]. From 1 on, the top class of every answer changes.
        surrogate: makes the network whose gradient stands in for the adversary's.
        gradient: the weights that the gradient is taken with respect to: ``last_layer``, as in the published code,
            which needs no backward pass (see ``solvers.metric``), or ``all``, as in the paper's equation.
        solver: ``vertex``, as published, or ``exact``, the global maximum (for some answers of ``mad_argmax``, of more
            than ten classes or with ``gradient=all``, the best that was found; stderr says so).
        as_published: run the surrogate in train mode, as the published code does: its batch norms take the mean and
            variance of each single image. Networks without batch norm, such as LeNet, answer the same either way.
            Dropout stays off, while it makes answers of the published code random. A surrogate that is the victim
            itself, or the adversary's network, stays in eval mode.
    """

    name = "mad"
    needs_epsilon = True
    epsilon: float
    surrogate: Surrogate = field(default=RandomSurrogate())
    gradient: str = "last_layer"
    solver: str = "vertex"
    as_published: bool = field(default=False, metadata=ADDED)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("defense.gradient", self.gradient, GRADIENTS)
        check_choice("defense.solver", self.solver, SOLVERS)
        check_flag("defense.as_published", self.as_published)
        if self.as_published and (self.gradient, self.solver) != (GRADIENTS[0], SOLVERS[0]):
            raise MadError(
                f"defense.as_published=true takes gradient={GRADIENTS[0]} and solver={SOLVERS[0]}, "
                f"got gradient={self.gradient} and solver={self.solver}"
            )

    @property
    def version(self) -> int:  # type: ignore[override]
        """2 for ``solver=exact``, whose version 1 missed some of the best answers; 1 for the published search."""
        return 2 if self.solver == "exact" else 1

    def check(self, victim: Victim) -> None:
        """Raise MadError if the surrogate does not fit the victim."""
        self.surrogate.check(victim)

    def prepare(self, context: Context) -> None:
        """Build the surrogate."""
        network = self.surrogate.ready(context, self.as_published)
        if self.gradient == "all":
            network = WithTheta(network)
        about = [self.gradient, self.as_published, self.surrogate, context.victim, context.seed]
        self._surrogate = context.cached(network, about)

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return the posteriors (B, K) with the largest angular deviation that the solver finds."""
        classes, found = clean.shape[1], self._surrogate(images)
        p = torch.softmax(found[:, :classes], dim=1)
        inner = found[:, classes:].unflatten(1, (classes, classes)) if self.gradient == "all" else None
        return self.solve(clean, p, inner)

    def solve(self, y: Tensor, p: Tensor, inner: Tensor | None) -> Tensor:
        """Return defended posteriors (B, K) for clean ones, the surrogate's, and Theta (B, K, K) or None."""
        return self._best(y, p, inner) if self.solver == "exact" else solvers.vertex(y, p, self.epsilon, inner)

    def _best(self, y: Tensor, p: Tensor, inner: Tensor | None, keep_top: bool = False) -> Tensor:
        """Return the exact solver's answers (B, K); the first without a proof are told on stderr."""
        tally = Counter[str]()
        found = solvers.exact(y, p, self.epsilon, inner, keep_top=keep_top, tally=tally)
        if tally["unproven"] and not getattr(self, "_told", False):
            self._told = True
            said = f"defense {self.name}: solver=exact ended at its limit for {tally['unproven']} of {len(y)} answers"
            err.print(f"{said}: these are the best that it found, without a proof", soft_wrap=True, markup=False)
        return found


class WithTheta(nn.Module):
    """A network that answers images (B, C, H, W) with its logits and all layers' Theta, flat, (B, K + K^2)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return both side by side."""
        logits, inner = theta(self.network, images)
        return torch.cat([logits, inner.flatten(1)], dim=1)
