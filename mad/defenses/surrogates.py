"""The network that stands for the adversary's inside the defense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import nn

from mad.training import place
from mad.victim import Architecture, Victim


class Surrogate(Protocol):
    """Makes the surrogate once the victim is trained."""

    def build(self, victim: Victim, model: nn.Module, seed: int, device: torch.device) -> nn.Module:
        """Return the surrogate, in eval mode and without gradients."""


@dataclass(frozen=True)
class RandomSurrogate:
    """Random weights, never trained: the paper's choice ("far from convergence").

    It runs in eval mode. The published code leaves it in train mode, where batch normalisation sees one image.

    Args:
        architecture: None for the victim's.
    """

    name: ClassVar[str] = "random"
    architecture: Architecture | None = None

    def build(self, victim: Victim, model: nn.Module, seed: int, device: torch.device) -> nn.Module:
        """Draw the weights from ``seed``."""
        surrogate = victim.untrained(self.architecture, seed=seed, purpose="surrogate")
        return place(surrogate, device).requires_grad_(False)
