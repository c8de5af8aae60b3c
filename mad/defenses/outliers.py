"""Training with outliers: images that are none of the victim's classes, of a pool that the defender owns."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mad.augmentation import augmented
from mad.datasets import Images, batches, to_device, to_unit_range
from mad.errors import check_number
from mad.seeds import generator
from mad.training import Trainer

Drawn = tuple[Tensor, Tensor | None]  # a batch of outliers, and their labels


@dataclass(frozen=True)
class OutlierTrainer(Trainer):
    """A recipe whose loss also sees a batch of outliers in each step; subclasses say what it does with them.

    Outliers are drawn in passes of random order that depend on the seed only, as many a step as ``batch_size``, and are
    augmented as the training images are. They are a pool's, so no network of an honest evaluation may be trained on the
    images that the adversary asks about.

    Args:
        weight: weight of the outliers' loss, at least 0.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("the weight of the outliers' loss", self.weight, 0)

    def epochs_of(
        self,
        model: nn.Module,
        images: Images,
        targets: Tensor,
        *,
        seed: int,
        device: torch.device,
        task: str,
        rows: Tensor | None = None,
        outliers: Images | None = None,
        labels: Tensor | None = None,
    ) -> Iterator[int]:
        """Train ``model`` in place as ``Trainer.epochs_of`` does, with outliers.

        Args:
            model: see ``Trainer.epochs_of``, as for all arguments but the last two.
            images: the training images.
            targets: their labels.
            seed: also determines the order of the outliers.
            device: where to train.
            task: the name in the progress bar.
            rows: the image of each target.
            outliers: uint8 or float in [0, 1], (N, C, H, W); None for a training without.
            labels: the outliers' labels, int64 (N,); None if the loss needs none.
        """
        bound = copy.copy(self)
        if outliers is not None:
            object.__setattr__(bound, "_drawn", self.endless(outliers, labels, seed, device, task))
        yield from Trainer.epochs_of(bound, model, images, targets, seed=seed, device=device, task=task, rows=rows)

    def endless(
        self, outliers: Images, labels: Tensor | None, seed: int, device: torch.device, task: str
    ) -> Iterator[Drawn]:
        """Yield batches of outliers, with their labels if there are any, without end."""
        outliers = to_device(outliers, device) if isinstance(outliers, Tensor) else outliers
        labels = None if labels is None else labels.to(device)
        order, draw = generator(seed, f"outliers of {task}"), generator(seed, f"augmentation of outliers of {task}")
        size = min(self.batch_size, len(outliers))
        while True:
            turn = torch.randperm(len(outliers), generator=order)[: len(outliers) // size * size]
            for some, batch in zip(turn.split(size), batches(outliers, turn, size, device), strict=True):
                found = augmented(batch, self.augment, draw)
                yield found, None if labels is None else labels[some.to(device)]

    def outliers(self) -> Drawn | None:
        """Return the outliers of this step, (B, C, H, W), and their labels; None in a training without outliers."""
        drawn: Iterator[Drawn] | None = getattr(self, "_drawn", None)
        return None if drawn is None else next(drawn)


@dataclass(frozen=True)
class ExposureTrainer(OutlierTrainer):
    """Outlier exposure (Hendrycks, Mazeika and Dietterich, ICLR 2019): a network that is unsure about outliers.

    The loss is the cross-entropy of the labels plus ``weight`` times that of the uniform posterior on the outliers.
    """

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch and of as many outliers, which pass the network together."""
        drawn = self.outliers()
        if drawn is None:
            return super().loss(model, images, targets)
        logits = self.logits(model, joined(images, drawn[0]))
        known, unknown = logits[: len(images)], logits[len(images) :]
        return F.cross_entropy(known, targets) + self.weight * uniform_cross_entropy(unknown).mean()


def joined(images: Tensor, outliers: Tensor) -> Tensor:
    """Return images and outliers as one batch of floats in [0, 1]."""
    return torch.cat([to_unit_range(images), to_unit_range(outliers)])


def uniform_cross_entropy(logits: Tensor) -> Tensor:
    """Return the cross-entropy of the uniform posterior for each row of logits (B, K): -1/K sum_k log p_k, (B,)."""
    return logits.logsumexp(dim=1) - logits.mean(dim=1)
