"""Jacobian-based data augmentation: one FGSM step (fast gradient sign method) per image and round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from mad.attacks.jacobian import Jacobian, ascent
from mad.errors import MadError, check_flag, check_number
from mad.victim import Victim


@dataclass(frozen=True)
class Jbda(Jacobian):
    """Query x + s step sign(grad_x CE(substitute(x), label)), clipped to [0, 1] (Papernot et al., AsiaCCS 2017).

    This is one step of the fast gradient sign method (FGSM) on the substitute. The label is the top class of the API's
    answer to x, and s = (-1)^floor(round / period). Pixels are in [0, 1], as in Papernot et al., whose step is 0.1. The
    published MAD code steps 0.1 in normalized inputs; on MNIST, with standard deviation 0.3081, that is ``step=0.031``.

    Args:
        step: how far each pixel is moved (lambda).
        period: rounds after which the step changes its sign (tau); None for never.
        as_published: reproduce the errors of the published MAD code. Normalized inputs, not pixels, are clipped to
            [0, 1], so pixels are clipped to [mean, mean + std]. While no reservoir is in effect, children overwrite
            their parents, including the seeds. ``jbself`` stores x + delta with the answer to x - delta. The sign is
            (-1)^round(round / period).
        mean: mean of the normalization in which ``as_published`` clips: a number in [0, 1], or one per channel.
        std: standard deviation of that normalization, above 0.
    """

    name = "jbda"
    toward: ClassVar[int] = 1  # 1: ascend the loss; -1: descend it
    step: float = 0.1
    period: int | None = 5
    as_published: bool = False
    mean: float | Sequence[float] = 0.1307
    std: float | Sequence[float] = 0.3081

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("attack.step", self.step, 0)
        if self.period is not None:
            check_number("attack.period", self.period, 1, whole=True)
        check_flag("attack.as_published", self.as_published)
        for name, low in (("mean", 0), ("std", 1e-9)):
            value = getattr(self, name)
            for one in value if isinstance(value, (list, tuple)) else [value]:
                check_number(f"attack.{name}", one, low, 1)

    def check(self, victim: Victim) -> None:
        """Raise MadError if the number of channels is not that of ``mean`` and ``std``."""
        channels = victim.dataset.shape[0]
        for name in ("mean", "std"):
            value = getattr(self, name)
            if isinstance(value, (list, tuple)) and len(value) not in (1, channels):
                raise MadError(
                    f"attack.{name} must be a number, or one a channel of the victim's {channels}, got {value}"
                )

    @property
    def overwrites(self) -> bool:
        """Whether a child replaces its parent in the transfer set."""
        return self.as_published

    def moved(
        self, substitute: nn.Module, images: Tensor, labels: Tensor, turn: int, draw: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the images to query and the images to store, (B, C, H, W) each."""
        uphill = ascent(lambda at: F.cross_entropy(substitute(at), labels, reduction="none"), images)
        delta = self.signed_step(turn) * uphill
        if not self.as_published:
            made = (images + self.toward * delta).clamp(0, 1)
            return made, made
        low, std = (torch.tensor(value, device=images.device).view(-1, 1, 1) for value in (self.mean, self.std))
        stored = torch.minimum(torch.maximum(images + delta, low), low + std)
        return images + self.toward * (stored - images), stored

    def signed_step(self, turn: int) -> float:
        """Return the step of a round, with its sign."""
        if self.period is None:
            return self.step
        turns = round(turn / self.period) if self.as_published else turn // self.period
        return self.step * (-1) ** turns


@dataclass(frozen=True)
class Jbself(Jbda):
    """As ``Jbda``, but against the gradient: toward the class that the API answered with (as in the MAD paper)."""

    name = "jbself"
    toward = -1

    @property
    def verbatim(self) -> bool:  # type: ignore[override]
        """Whether each answer is the API's to the image stored with it: not as published."""
        return not self.as_published
