"""Self-training: the adversary relabels its images with its own first model, and trains on that (Lee, 2013)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mad.errors import check_flag
from mad.knowledge import Knowledge
from mad.recoveries.base import Recovery
from mad.recoveries.first_model import first_model
from mad.transfer import TransferSet


@dataclass
class SelfTraining(Recovery):
    """Train a first model on the answers as they came, and replace each answer by what that model says of the image.

    A network learns what is alike in many images before what is particular to one. What a defense draws anew for each
    image is noise to it, and the first model's answers have less of that. A poison that is a rule of the image is
    learned, too, and stays.

    Args:
        labels: take the first model's top class, one-hot, as in pseudo-labels; false for its posterior.
    """

    name = "self_training"
    needs_images = True
    trainings = 1.0  # the first model
    labels: bool = False

    def __post_init__(self) -> None:
        check_flag("recovery.labels", self.labels)

    def prepare(self, adversary: Knowledge, transfer: TransferSet) -> None:
        """Train the first model."""
        self._model, self._device = first_model(adversary, transfer), adversary.device

    @torch.no_grad()
    def __call__(self, answers: Tensor, images: Tensor | None = None) -> Tensor:
        """Return the first model's answers (B, K)."""
        assert images is not None
        found = torch.softmax(self._model(images.to(self._device)), dim=1)
        if self.labels:
            found = F.one_hot(found.argmax(dim=1), found.shape[1])
        return found.to(answers)
