"""Reverse sigmoid (Lee et al., 2018), a baseline of the paper; by default it keeps every top class."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mad import simplex
from mad.defenses.base import Context, Defense
from mad.errors import check_flag, check_number
from mad.storage.fingerprint import ADDED
from mad.victim import Victim

GAMMAS = {"mnist": 0.2, "fashion_mnist": 0.4, "cifar10": 0.1}  # the paper's, by data set
GAMMA = 0.2  # the paper's value for other data sets
BELOW = 0.99  # share of the beta at which two classes would tie


@dataclass
class ReverseSigmoid(Defense):
    """Answer with y - r(y), rescaled, where r(y) = beta (sigmoid(gamma logit(y)) - 1/2).

    Probabilities above 1/2 fall, and those below rise. A row whose largest probability is at least 1/2 keeps its top
    class for every beta up to 1. In a flatter row another class could overtake it; there beta is lowered to just below
    the value at which that happens, unless ``as_published`` is set.

    Args:
        epsilon: L1 budget in [0, 2]; None, as published, for no budget, so that only beta decides how far answers move.
        beta: strength, in [0, 1]; 0 changes nothing.
        gamma: steepness of the sigmoid, above 0; None for the paper's value for the victim's data set.
        as_published: never lower beta, as in the published code; for a large beta the top class of flat rows changes.
    """

    name = "reverse_sigmoid"
    strength_parameter = "beta"
    epsilon: float | None = None
    beta: float = 0.2
    gamma: float | None = None
    as_published: bool = field(default=False, metadata=ADDED)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("defense.beta", self.beta, 0, 1)
        if self.gamma is not None:
            check_number("defense.gamma", self.gamma, 1e-6)
        check_flag("defense.as_published", self.as_published)

    def prepare(self, context: Context) -> None:
        """Look up gamma where none is given."""
        self._gamma = self.gamma_of(context.victim)

    def gamma_of(self, victim: Victim) -> float:
        """Return gamma for a victim."""
        return GAMMAS.get(victim.dataset.name, GAMMA) if self.gamma is None else self.gamma

    def settled(self, victim: Victim) -> Defense:
        """Return this defense with the victim's gamma: an adversary's shadow victims have data of another name."""
        return replace(self, gamma=self.gamma_of(victim))

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return posteriors, with the top classes of the clean ones unless ``as_published``."""
        y = clean.double().clamp(max=1)
        s = torch.sigmoid(self._gamma * torch.logit(y))  # 0 and 1 at infinite logits
        beta = self.betas(y)
        if self.as_published:
            return rescaled(y - beta * (s - 0.5)).to(clean.dtype)
        top = clean.argmax(dim=1, keepdim=True)
        # y_top - beta s_top >= y_j - beta s_j holds up to the beta at which the two meet.
        lead, pull = y.gather(1, top) - y, s.gather(1, top) - s
        meeting = torch.where(pull > 0, lead / pull, torch.inf).amin(dim=1, keepdim=True)
        beta = (BELOW * meeting).minimum(beta)
        answer = rescaled(y - beta * (s - 0.5)).to(clean.dtype)
        answer = answer if self.epsilon is None else simplex.shrink(answer, clean, self.epsilon)
        # Two classes that differ in their last bits may still tie once rounded.
        kept = answer.argmax(dim=1, keepdim=True) == top
        return torch.where(kept, answer, clean)

    def betas(self, y: Tensor) -> Tensor:
        """Return the beta of each row of clean posteriors, float64 (B, 1)."""
        return torch.full_like(y[:, :1], self.beta)


def rescaled(mass: Tensor) -> Tensor:
    """Return rows (B, K) rescaled to sum to one; negative entries, which only rounding causes, are set to 0."""
    mass = mass.clamp(min=0)
    return mass / mass.sum(dim=1, keepdim=True)
