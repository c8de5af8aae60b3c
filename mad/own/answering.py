"""What a given network, function or service answers, as logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mad import plugins, simplex
from mad.datasets.checked import say
from mad.errors import MadError
from mad.weights import first_line

ANSWERS = ("logits", "posteriors", "labels")
WHOLE = (*(torch.int8, torch.int16, torch.int32, torch.int64), *(torch.uint8, torch.uint16, torch.uint32, torch.uint64))
LEAST = 8  # rows that sum to one, each of them, before they are taken for posteriors


class Answering(nn.Module):
    """Images (B, C, H, W) to logits (B, K) whose softmax is what was answered.

    Args:
        answer: the network, function or connection: images to answers, a tensor or a numpy array. It gets a copy of the
            images, so it may write into them.
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
            found = self.answer[0](images.clone())
        except MadError as error:
            raise error if self.who in str(error) else MadError(f"{self.who}: {error}") from error
        except Exception as error:
            why = f"{type(error).__name__}: {first_line(error)}"
            raise MadError(f"{self.who} failed on images {tuple(images.shape)}, {why}") from error
        try:
            found = owned(found).to(images.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise MadError(f"{self.who} must return a tensor or an array, got {plugins.kind(found)}") from error
        if self.form == "labels":
            return self._of_labels(found, len(images))
        if found.shape != (len(images), self.classes) or not found.is_floating_point():
            advice = "is it of another number of classes?" if found.dim() == 2 and len(found) == len(images) else ""
            labels = found.shape in ((len(images),), (len(images), 1)) and not found.is_floating_point()
            advice = "if they are labels, set victim.answers=labels" if labels else advice
            raise MadError(
                f"{self.who} must answer {len(images)} images with {self.form} {(len(images), self.classes)}, "
                f"got {plugins.kind(found)}; {advice or 'give one row an image'}"
            )
        if self.form == "logits":
            return check_logits(found.float(), self.who)
        if not found.isfinite().all():
            raise MadError(f"{self.who} answers with NaN or infinities: check the model on these images")
        rows = simplex.rescaled(found.float())
        if rows is None:
            raise MadError(f"{self.who} answers with {no_posteriors(found.float())}")
        if rows is not found and not simplex.are_posteriors(found.float()):
            say(f"{self.who}: its posteriors are rounded, so they are rescaled to sum to one")
        return rows.log()

    def _of_labels(self, found: Tensor, count: int) -> Tensor:
        found = found.squeeze(1) if found.shape == (count, 1) else found
        whole = found.shape == (count,) and found.dtype in WHOLE
        labels = found.long() if whole else found  # torch has no minimum of some whole numbers
        if not whole or (count and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes):
            came = f", from {int(labels.min())} to {int(labels.max())}" if whole and count else ""
            raise MadError(
                f"{self.who} must answer {count} images with labels ({count},), whole numbers from 0 to "
                f"{self.classes - 1}; got {plugins.kind(found)}{came}"
            )
        return torch.nn.functional.one_hot(labels, self.classes).float().log()


def owned(found: Any) -> Tensor:
    """Return an answer as a tensor of its own: whoever answered may write the next answer to the same memory.

    Raises:
        TypeError, ValueError, RuntimeError: if it is no tensor, and nothing that becomes one.
    """
    if isinstance(found, np.ndarray) and found.dtype.kind in "iuf":
        # What torch may not take: a view that goes backwards, another order of bytes, the widest floats.
        widest = np.float64 if found.dtype.kind == "f" else np.int64
        fits = found.dtype.kind == "f" and found.dtype.itemsize <= 8
        found = np.array(found, dtype=found.dtype.newbyteorder("=") if fits else widest, order="C")
    return torch.as_tensor(found).detach().clone()


def check_logits(found: Tensor, who: str) -> Tensor:
    """Return logits (B, K) if they are finite and do not look like posteriors, which a softmax would flatten.

    Logits of a few images may have such sums by chance, so fewer than ``LEAST`` rows are not judged by their sums.

    Raises:
        MadError: if not; ``who`` names their source.
    """
    if not found.isfinite().all():
        raise MadError(f"{who} answers with NaN or infinite logits: check the model on these images")
    if len(found) >= LEAST and simplex.rescaled(found) is not None:
        raise MadError(f"{who} answers with rows that sum to one: set victim.answers=posteriors")
    if (what := scaled(found, LEAST)) is not None:
        raise MadError(f"{who} answers with {what}")
    return found


def scaled(rows: Tensor, least: int) -> str | None:
    """Return in words what rows (B, K) are that are multiples of posteriors, which are no logits; None if they are not.

    Fewer distinct rows than ``least`` may have one sum by chance, and are not judged.
    """
    total = simplex.common_sum(rows)
    if total is None or len(rows.unique(dim=0)) < least:
        return None
    what = "percent" if total == 100 else "neither posteriors nor logits"
    advice = f"divide them by {total:.6g}, and set victim.answers=posteriors"
    return f"rows from {rows.min():.3g} that all sum to {total:.6g}, {what}: {advice}"


def no_posteriors(rows: Tensor) -> str:
    """Return in words why rows (B, K) are no posteriors, and what to do."""
    if (words := scaled(rows, 2)) is not None:
        return words
    low, high = rows.sum(dim=1).aminmax()
    what = f"rows from {rows.min():.3g} that sum to {low:.3g} to {high:.3g}, no posteriors"
    logits = "if they are logits, set victim.answers=logits"
    if rows.min() < 0 or rows.max() > 1 or high == 0:
        return f"{what}: {logits}"
    return f"{what}: if they were rounded, round them to two decimals or more; {logits}"
