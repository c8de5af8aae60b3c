"""Losses that are robust to wrong targets, for knockoffs that learn from answers a defense may have changed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mad.errors import UnfitError, check_choice
from mad.training import Trainer

LOSSES = ("generalized", "bootstrap", "smoothed", "small")
POWER = 0.7  # of the generalized cross-entropy, as published
TRUST = 0.8  # share of the target in the bootstrap, as published for its hard form
SMOOTHING = 0.1  # as published
KEPT = 0.7  # share of a batch with the smallest loss that is learned from


@dataclass(frozen=True)
class RobustTrainer(Trainer):
    """A recipe that minimizes a loss which is robust to noisy targets.

    Args:
        robust: which loss, for targets y and the network's posteriors p.
            ``generalized``: the generalized cross-entropy sum_k y_k (1 - p_k^q) / q with q = 0.7 (Zhang and Sabuncu,
            NeurIPS 2018), between the mean absolute error and the cross-entropy.
            ``bootstrap``: cross-entropy with 0.8 y + 0.2 times the one-hot class that the network itself has on top
            (Reed et al., ICLR 2015 workshop, hard form).
            ``smoothed``: cross-entropy with 0.9 y + 0.1 times the uniform posterior (Szegedy et al., CVPR 2016).
            ``small``: cross-entropy of the 70 % of each batch whose Kullback-Leibler divergence from its target is
            smallest (small-loss selection, as by one network of Han et al., co-teaching, NeurIPS 2018, which raises
            the dropped share from zero over ten epochs; here it is fixed).
    """

    robust: str = "generalized"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("robust", self.robust, LOSSES)

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return a batch's mean loss; targets are int64 labels (B,) or posteriors (B, K)."""
        logits = self.logits(model, images)
        if not targets.is_floating_point():
            targets = F.one_hot(targets, logits.shape[1]).to(logits.dtype)
        each: Tensor = getattr(self, f"_{self.robust}")(logits, targets)
        return each.mean()

    def _generalized(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (targets * (1 - (POWER * F.log_softmax(logits, dim=1)).exp()) / POWER).sum(dim=1)

    def _bootstrap(self, logits: Tensor, targets: Tensor) -> Tensor:
        own = F.one_hot(logits.argmax(dim=1), logits.shape[1])
        return F.cross_entropy(logits, TRUST * targets + (1 - TRUST) * own, reduction="none")

    def _smoothed(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, label_smoothing=SMOOTHING, reduction="none")

    def _small(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, targets, reduction="none")
        divergence = losses.detach() + torch.xlogy(targets, targets).sum(dim=1)
        return losses[divergence.argsort(stable=True)[: max(1, round(KEPT * len(losses)))]]


def made_robust(trainer: Trainer, robust: str) -> RobustTrainer:
    """Return a recipe that minimizes a robust loss.

    Raises:
        MadError: if there is no such loss.
        UnfitError: if the recipe has a loss of its own.
    """
    check_choice("knockoff.robust", robust, LOSSES)
    if type(trainer) not in (Trainer, RobustTrainer):
        raise UnfitError(
            f"knockoff.robust replaces the loss of a plain trainer, got {type(trainer).__name__}: set it to null, "
            "or knockoff.rotation=0"
        )
    return RobustTrainer.like(trainer, robust=robust)
