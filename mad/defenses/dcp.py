"""DCP (Khaled et al., ICMLA 2023): the reverse sigmoid for unsure answers only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad.defenses.reverse_sigmoid import ReverseSigmoid
from mad.errors import check_number


@dataclass
class Dcp(ReverseSigmoid):
    """Answer with y - alpha r(y), rescaled: r is the reverse sigmoid's, alpha = sigmoid(nu (tau - max y)).

    The gate alpha is that of Adaptive Misinformation (Kariyappa and Qureshi, CVPR 2020). Sure answers, which honest
    users mostly get, stay as they are; queries from other distributions, about which the victim is unsure, are
    perturbed. As published, one number is both beta and tau. Unlike the published code, odds are not clipped at 1, and
    alpha beta is lowered where the top class of a flat answer would change, unless ``as_published`` is set.

    Args:
        epsilon: L1 budget in [0, 2]; None, as published, for no budget.
        beta: strength of the reverse sigmoid, in [0, 1].
        gamma: steepness of the sigmoid, above 0; None for the reverse sigmoid's value for the victim's data set.
        as_published: never lower alpha beta, as in the published code.
        tau: posteriors whose largest probability is below it are perturbed, in [0, 1]; None for beta, as published.
        nu: steepness of the gate, above 0; published 1000, for which it is nearly a step.
    """

    name = "dcp"
    beta: float = 0.8
    tau: float | None = None
    nu: float = 1000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau is not None:
            check_number("defense.tau", self.tau, 0, 1)
        check_number("defense.nu", self.nu, 1e-6)

    def betas(self, y: Tensor) -> Tensor:
        """Return alpha beta for each row of clean posteriors, float64 (B, 1)."""
        tau = self.beta if self.tau is None else self.tau
        return self.beta * torch.sigmoid(self.nu * (tau - y.amax(dim=1, keepdim=True)))
