"""A few labeled images of the victim's kind: enough to see that classes were exchanged, and to train on besides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mad.errors import check_number
from mad.knowledge import Knowledge
from mad.recoveries.base import Extra, Recovery
from mad.recoveries.first_model import first_model
from mad.schema import Column
from mad.training import logits_of
from mad.transfer import TransferSet

IDENTITY = 1e-3  # preferred where no labeled image tells


@dataclass
class Few(Recovery):
    """Use ``count`` images with their true labels, as an adversary can label some by hand.

    A first model, trained on the answers as they came, is asked about them. If another assignment of its classes to
    the victim's has right more of them than the answers' own does, by more than 2 sqrt(count), the classes of all
    answers are exchanged accordingly. The images are then trained on, too, each as often as it takes for them to be
    ``share`` of the training set.

    Where they come from: see ``Knowledge.labeled``.

    Args:
        count: number of labeled images.
        share: share of the training set that they make, in [0, 0.9]; 0 only looks for exchanged classes.
    """

    name = "few"
    knows = ("the victim's data",)
    trainings = 1.0  # the first model
    schema = (Column("classes_moved", "whole number", "classes", "how many of an answer's classes stand for another"),)
    count: int = 100
    share: float = 0.1

    def __post_init__(self) -> None:
        check_number("recovery.count", self.count, 1, whole=True)
        check_number("recovery.share", self.share, 0, 0.9)

    def prepare(self, adversary: Knowledge, transfer: TransferSet) -> None:
        """Draw the images, train the first model, and find which class stands for which."""
        images, labels = adversary.labeled("recovery.count", self.count)
        model = first_model(adversary, transfer)
        told = torch.softmax(logits_of(model, images, adversary.device), dim=1)
        self._source = assigned(told, labels)
        times = -(-self.share * len(transfer) // ((1 - self.share) * len(labels)))
        self._extra = None
        if times:
            again = torch.arange(len(labels)).repeat(int(times))
            self._extra = Extra(images[again], F.one_hot(labels[again], adversary.classes).float())

    def columns(self) -> dict[str, Any]:
        """Return how many classes were exchanged."""
        return {"classes_moved": int((self._source != torch.arange(len(self._source))).sum())}

    def adds(self) -> Extra | None:
        """Return the labeled images."""
        return self._extra

    def __call__(self, answers: Tensor, images: Tensor | None = None) -> Tensor:
        """Return the answers (B, K), with each class's probability taken from the class that stands for it."""
        return answers[:, self._source.to(answers.device)]


def assigned(told: Tensor, labels: Tensor) -> Tensor:
    """Return, for each class, the class of the answers that stands for it, int64 (K,): a permutation.

    Args:
        told: posteriors (n, K) that a model of the answers gives to labeled images.
        labels: their true labels (n,).
    """
    from scipy.optimize import linear_sum_assignment  # a slow import

    classes = told.shape[1]
    said = torch.zeros(classes, classes, dtype=torch.float64).index_add_(0, labels, told.double())  # [true, said]
    score = said / said.sum(dim=1, keepdim=True).clamp(min=1) + IDENTITY * torch.eye(classes)
    source = torch.from_numpy(linear_sum_assignment(score.numpy(), maximize=True)[1])
    as_is, exchanged = ((told[:, each].argmax(dim=1) == labels).sum() for each in (torch.arange(classes), source))
    return source if exchanged - as_is > 2 * len(labels) ** 0.5 else torch.arange(classes)
