"""Jacobian-based augmentation toward random classes, JBDA-TR (Juuti et al., PRADA, Euro S&P 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from mad.attacks.jacobian import Targeted, climbed
from mad.errors import check_flag

TRAVEL = 1.85  # times ``ball``: how far all steps together would move a pixel that none of them turned back


@dataclass(frozen=True)
class Jbtr(Targeted):
    """Move each image toward ``k`` random classes other than the API's own answer, by PGD on the substitute.

    A run takes ``steps`` signed gradient steps down the cross-entropy with its target, each
    projected onto the L-infinity ball around the image and onto [0, 1], and makes one query. The targets of one image
    differ from each other, so no image is queried twice. Pixels are in [0, 1]; the published ModelGuard code has the
    same numbers for normalized inputs.

    Args:
        seeds: images of the pool to begin with; at most the budget. 1,000 as in ModelGuard's experiments.
        step: how far one step moves each pixel; None, as published, for 1.85 ``ball`` / ``steps``.
        redrawn: draw a new target at every step, as ModelGuard's code does, and not one for the whole run, as PRADA.
    """

    name = "jbtr"
    seeds: int = 1000
    redrawn: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("attack.redrawn", self.redrawn)

    def moved(
        self, substitute: nn.Module, images: Tensor, labels: Tensor, turn: int, draw: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the moved images (B * k, C, H, W), to query and to store; the ``k`` children of one are adjacent."""
        with torch.no_grad():
            classes = substitute(images[:1]).shape[1]
        start, fixed = images.repeat_interleave(self.k, dim=0), self.targets(labels, classes, draw)
        low, high = (start - self.ball).clamp(min=0), (start + self.ball).clamp(max=1)

        def score(at: Tensor) -> Tensor:
            wanted = self.targets(labels, classes, draw) if self.redrawn else fixed
            return -F.cross_entropy(substitute(at), wanted, reduction="none")

        step = self.ball * TRAVEL / self.steps if self.step is None else self.step
        at = climbed(score, start, self.steps, step, low, high)
        return at, at

    def targets(self, labels: Tensor, classes: int, draw: Generator | None) -> Tensor:
        """Return ``k`` different random classes for each image but its own, int64 (B * k,)."""
        order = torch.rand(len(labels), classes, generator=draw).to(labels.device)
        return order.scatter(1, labels.unsqueeze(1), -1).topk(self.k, dim=1).indices.flatten()
