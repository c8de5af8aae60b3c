"""The contract of a recovery, which turns the API's answers into training targets."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar, final

import torch
from torch import Tensor

from mad.knowledge import Knowledge
from mad.schema import Column
from mad.transfer import TransferSet

Self = TypeVar("Self", bound="Recovery")


class Extra(NamedTuple):
    """Images that a recovery adds to the training set, (n, C, H, W), and their targets, posteriors (n, K).

    A weight is given by repeating an image.
    """

    images: Tensor
    targets: Tensor


@dataclass
class Recovery(ABC):
    """Base class of recoveries, which map defended answers to training targets.

    A new recovery implements ``__call__``. One that first learns from the whole transfer set also implements
    ``prepare``; one that trains on some of the answers only, ``keeps``; one that has labeled images of its own,
    ``adds``. ``knows`` is one of ``mad.knowledge.KNOWLEDGE``: what the recovery is given besides the answers. It is
    declared so that readers of a record see how strong its adversary was.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    knows: ClassVar[tuple[str, ...]] = ()
    schema: ClassVar[tuple[Column, ...]] = ()  # the columns that it adds to a record
    needs_images: ClassVar[bool] = False  # whether __call__ uses the images
    trainings: ClassVar[float] = 0.0  # what prepare trains, in trainings of the knockoff; for plan=true
    is_prepared: ClassVar[bool] = False  # true of a copy that has learned from a transfer set

    def prepare(self, adversary: Knowledge, transfer: TransferSet) -> None:  # noqa: B027
        """Learn what ``__call__`` needs from the transfer set; by default nothing.

        Train networks with ``adversary.kept``, so that they are stored and loaded again.

        Args:
            adversary: the adversary's knowledge, with its seed and device.
            transfer: all images and answers.
        """

    @final
    def prepared(self: Self, adversary: Knowledge, transfer: TransferSet) -> Self:
        """Return a copy that has learned from a transfer set."""
        ready = copy.copy(self)
        ready.prepare(adversary, transfer)
        ready.is_prepared = True  # type: ignore[misc]  # of the copy only
        return ready

    def columns(self) -> dict[str, Any]:
        """Return further columns of the record, once prepared, under names that ``schema`` explains."""
        return {}

    @property
    def learns(self) -> bool:
        """Whether it must learn from a whole transfer set (``prepare``) before it is called."""
        return type(self).prepare is not Recovery.prepare

    @property
    def filters(self) -> bool:
        """Whether it drops answers: whether it implements ``keeps``."""
        return type(self).keeps is not Recovery.keeps

    def keeps(self, answers: Tensor, images: Tensor | None = None) -> Tensor:
        """Return which answers are trained on, bool (B,); by default all. Called once it is prepared.

        Where it would keep none of a transfer set, all are trained on, and a line on stderr says so. Attacks that train
        while they query (``recovers_early``) do not go with a recovery that drops answers.

        Args:
            answers: the API's answers (B, K), unchanged.
            images: as in ``__call__``.
        """
        return torch.ones(len(answers), dtype=torch.bool, device=answers.device)

    def adds(self) -> Extra | None:
        """Return images of its own that are trained on, too; by default none. Called once it is prepared."""
        return None

    @abstractmethod
    def __call__(self, answers: Tensor, images: Tensor | None = None) -> Tensor:
        """Return training targets (B, K) on the simplex.

        Args:
            answers: the API's answers (B, K), unchanged.
            images: the images (B, C, H, W) in [0, 1] that were asked about, on the adversary's device, where the
                answers are then, too; None unless ``needs_images``.
        """


@dataclass
class AsAnswered(Recovery):
    """No recovery: train on the answers as the API gave them."""

    name = "none"

    def __call__(self, answers: Tensor, images: Tensor | None = None) -> Tensor:
        """Return the answers unchanged."""
        return answers
