"""What a given network, function or service answers, as logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mad import plugins, simplex
from mad.errors import MadError
from mad.weights import first_line

ANSWERS = ("logits", "posteriors", "labels")


class Answering(nn.Module):
    """Images (B, C, H, W) to logits (B, K) whose softmax is what was answered.

    Args:
        answer: the network, function or connection: images to answers, a tensor or a numpy array.
        form: what it answers, one of ``ANSWERS``: logits (B, K), posteriors (B, K), or labels (B,).
        classes: number of classes K.
        who: names it in errors.
    """

    def __init__(self, answer: Callable[[Tensor], Any], form: str, classes: int, who: str) -> None:
        super().__init__()
        self.network = answer if isinstance(answer, nn.Module) else None
        self.answer, self.form, self.classes, self.who = [answer], form, classes, who

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, float32; the logarithm of a posterior of 0 is -inf.

        Raises:
            MadError: if the answers are not of the form that was promised.
        """
        try:
            found = self.answer[0](images)
        except MadError as error:
            raise error if self.who in str(error) else MadError(f"{self.who}: {error}") from error
        except Exception as error:
            raise MadError(f"{self.who} failed on images {tuple(images.shape)}: {first_line(error)}") from error
        found = torch.as_tensor(found).detach().to(images.device)
        if self.form == "labels":
            return self._of_labels(found, len(images))
        if found.shape != (len(images), self.classes) or not found.is_floating_point():
            raise MadError(
                f"{self.who} must answer {len(images)} images with {self.form} {(len(images), self.classes)}, "
                f"got {plugins.kind(found)}; is it of another number of classes?"
            )
        if self.form == "logits":
            return check_logits(found.float(), self.who)
        if not simplex.are_posteriors(found.float()):
            what = "rows that are no posteriors" if found.isfinite().all() else "NaN or infinities"
            raise MadError(f"{self.who} answers with {what}: if they are logits, set victim.answers=logits")
        return found.float().log()

    def _of_labels(self, found: Tensor, count: int) -> Tensor:
        found = found.squeeze(1) if found.shape == (count, 1) else found
        whole = found.shape == (count,) and not found.is_floating_point() and found.dtype != torch.bool
        if not whole or (count and not 0 <= int(found.min()) <= int(found.max()) < self.classes):
            raise MadError(
                f"{self.who} must answer {count} images with labels ({count},), whole numbers from 0 to "
                f"{self.classes - 1}; got {plugins.kind(found)}"
            )
        return torch.nn.functional.one_hot(found.long(), self.classes).float().log()


def check_logits(found: Tensor, who: str) -> Tensor:
    """Return logits (B, K) if they are finite and do not look like posteriors, which a softmax would flatten.

    Raises:
        MadError: if not; ``who`` names their source.
    """
    if not found.isfinite().all():
        raise MadError(f"{who} answers with NaN or infinite logits: check the model on these images")
    if simplex.are_posteriors(found):
        raise MadError(f"{who} answers with rows that sum to one: set victim.answers=posteriors")
    return found
