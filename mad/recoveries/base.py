"""The contract of a recovery."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Recovery(ABC):
    """Maps defended answers to training targets."""

    name: ClassVar[str]
    version: ClassVar[int] = 1

    @abstractmethod
    def __call__(self, answers: Tensor) -> Tensor:
        """Return targets (B, K) on the simplex for answers (B, K)."""


@dataclass(frozen=True)
class AsAnswered(Recovery):
    """Train on the answers as they came."""

    name = "none"

    def __call__(self, answers: Tensor) -> Tensor:
        """Return the answers."""
        return answers
