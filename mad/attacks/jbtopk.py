"""Jacobian-based augmentation toward other classes (after Juuti et al., PRADA, Euro S&P 2019)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mad.attacks.jacobian import Jacobian, ascent
from mad.errors import MadError, check_flag, check_name, check_number
from mad.storage.fingerprint import ADDED
from mad.victim import Victim


@dataclass(frozen=True)
class JbTopK(Jacobian):
    """Move each image toward each of the ``k`` classes that the substitute ranks highest, but for the API's own.

    A target's logit is climbed in ``steps`` signed steps, within ``ball`` of the image in every pixel and within
    [0, 1]. One image makes ``k`` queries. Lengths are in pixels in [0, 1]; the published MAD code takes the same
    numbers in normalised inputs (MNIST: ``step=0.0031 ball=0.031``).

    Args:
        k: targets an image.
        steps: gradients a target.
        step: how far one of them moves each pixel (alpha).
        ball: how far all of them may.
        as_published: make the published MAD code's errors. Images are clipped to nothing but the ball, so that they
            leave [0, 1]. What is left of the budget is divided by 3, whatever ``k`` is: below 3, the last images are
            moved in more rounds than it takes, fewer and fewer a round; above, so many are moved that the published
            code overspends, and here, where the budget is kept, nothing changes. One error has no counterpart: where
            the sign of its step has turned (round(round / 5) odd, from the fourth round on), so has that of the ball,
            whose bounds are then the wrong way round: what they leave of a step depends on the version of torch.
        name: names its folder and its rows in tables.
    """

    k: int = 3
    steps: int = 8
    step: float = 0.01
    ball: float = 0.1
    as_published: bool = field(default=False, metadata=ADDED)
    name: str = field(default="jbtopk", compare=False)  # type: ignore[misc]  # the jbtop3 of every k is one class

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("attack.k", self.k, 1, whole=True)
        check_number("attack.steps", self.steps, 1, whole=True)
        check_number("attack.step", self.step, 0)
        check_number("attack.ball", self.ball, 0)
        check_flag("attack.as_published", self.as_published)
        check_name("attack.name", self.name)

    @property
    def version(self) -> int:  # type: ignore[override]
        """2 with the published errors, of which children that overwrite their parents were wrongly one."""
        return 2 if self.as_published else 1

    @property
    def children(self) -> int:
        """How many queries one moved image makes."""
        return self.k

    @property
    def divisor(self) -> int:
        """What the queries that are left are divided by."""
        return max(3, self.k) if self.as_published else self.k

    def check(self, victim: Victim) -> None:
        """Refuse victims without ``k`` classes beside an image's own."""
        if self.k >= victim.dataset.classes:
            raise MadError(f"attack.k must be below the victim's {victim.dataset.classes} classes, got {self.k}")

    def moved(self, substitute: nn.Module, images: Tensor, labels: Tensor, turn: int) -> tuple[Tensor, Tensor]:
        """Return what to ask about, twice: an image's ``k`` children side by side, the likeliest target first."""
        with torch.no_grad():
            others = substitute(images).scatter(1, labels.unsqueeze(1), -torch.inf)
        targets = others.topk(self.k, dim=1).indices.flatten().unsqueeze(1)
        start = images.repeat_interleave(self.k, dim=0)
        low, high = start - self.ball, start + self.ball
        if not self.as_published:
            low, high = low.clamp(min=0), high.clamp(max=1)
        at = start
        for _ in range(self.steps):
            uphill = ascent(lambda here: substitute(here).gather(1, targets).squeeze(1), at)
            at = torch.minimum(torch.maximum(at + self.step * uphill, low), high)
        return at, at
