"""The contract of a recovery: what an adversary makes of the answers before it trains on them."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeVar, final

from torch import Tensor

from mad.knowledge import Knowledge
from mad.transfer import TransferSet

Self = TypeVar("Self", bound="Recovery")


@dataclass
class Recovery(ABC):
    """Maps defended answers to training targets. An author writes ``__call__``, and ``prepare`` where it learns first.

    ``knows`` says what it takes beside the answers, one of ``mad.knowledge.KNOWLEDGE``: who reads a record must see
    what its adversary was given.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    knows: ClassVar[str] = "nothing"
    needs_images: ClassVar[bool] = False  # whether __call__ looks at the images
    is_prepared: ClassVar[bool] = False  # true of a copy that has learned from a transfer set

    def prepare(self, adversary: Knowledge, transfer: TransferSet) -> None:  # noqa: B027
        """Learn what ``__call__`` needs; may train networks (``adversary.kept``); by default nothing.

        Args:
            adversary: what it knows, its seed and its device.
            transfer: all images and answers.
        """

    @final
    def prepared(self: Self, adversary: Knowledge, transfer: TransferSet) -> Self:
        """Return a copy that has learned from a transfer set."""
        ready = copy.copy(self)
        ready.prepare(adversary, transfer)
        ready.is_prepared = True  # type: ignore[misc]  # of the copy only
        return ready

    @property
    def learns(self) -> bool:
        """Whether it learns from a whole transfer set before it is called."""
        return type(self).prepare is not Recovery.prepare

    @abstractmethod
    def __call__(self, answers: Tensor, images: Tensor | None = None) -> Tensor:
        """Return targets (B, K) on the simplex.

        Args:
            answers: (B, K), as they came.
            images: (B, C, H, W) in [0, 1] that they answer, on the adversary's device; None if not ``needs_images``.
        """


@dataclass
class AsAnswered(Recovery):
    """Train on the answers as they came."""

    name = "none"

    def __call__(self, answers: Tensor, images: Tensor | None = None) -> Tensor:
        """Return the answers."""
        return answers
