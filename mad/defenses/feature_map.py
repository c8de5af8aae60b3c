"""A map of a network's features into the plane, in which the classes of the training images are clusters."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mad.datasets import Images, batch_limit, batches, to_unit_range
from mad.seeds import seeded
from mad.training import EVALUATION_BATCH, Trainer, place

HIDDEN = 64  # width of the mapping network
FAR = 1e9  # a squared distance that nothing is at


@dataclass(frozen=True)
class ContrastiveTrainer(Trainer):
    """A recipe that draws points of one label together, and those of others apart (supervised contrastive loss)."""

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return the mean negative log-probability that a point's neighbour is of its label; near ones are likelier."""
        points = model(images)
        alone = torch.eye(len(points), dtype=torch.bool, device=points.device)
        likelier = (-(points.unsqueeze(1) - points).square().sum(dim=2)).masked_fill(alone, -FAR).log_softmax(dim=1)
        same = (targets.unsqueeze(1) == targets) & ~alone
        return -(likelier.where(same, 0).sum(dim=1) / same.sum(dim=1).clamp(min=1)).mean()


class Cut(nn.Module):
    """A network that returns features (B, D), the input of its last linear layer, which ``head`` maps to logits (B, K).

    Of a network whose answers do not come from a linear layer, or from several, the features are the log-posteriors.

    Args:
        network: images to logits, in eval mode; a copy is taken, since it is hooked while it runs.
        images: images to try it on.
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        names = [name for name, part in self.network.named_modules() if isinstance(part, nn.Linear)]
        self.last: str | None = names[-1] if names else None
        self.eval()
        with torch.no_grad():
            features, logits = self._run(images)
            linear = features is not None and features.dim() == 2 and len(features) == len(images)
            if not linear or not torch.allclose(self.head(features), logits, atol=1e-4):
                self.last = None

    def _run(self, images: Tensor) -> tuple[Any, Tensor]:
        if self.last is None:
            logits = self.network(images)
            return torch.log_softmax(logits, dim=1), logits
        given: list[Tensor] = []
        hook = self.network.get_submodule(self.last).register_forward_pre_hook(lambda _, args: given.append(args[0]))
        try:
            logits = self.network(images)
        finally:
            hook.remove()
        return (given[0] if len(given) == 1 else None), logits

    def forward(self, images: Tensor) -> Tensor:
        """Return the features."""
        found: Tensor = self._run(images)[0]
        return found

    def head(self, features: Tensor) -> Tensor:
        """Return the logits (B, K)."""
        return features if self.last is None else self.network.get_submodule(self.last)(features)


class Mapping(nn.Module):
    """Maps features (B, D) to points (B, 2), and holds what is known of the training images' features.

    Attributes:
        middle: the mean of each class's features, (K, D).
        centers: the mean of each class's points, (K, 2).
        spread: the mean distance of a class's points to their center, (K,); 0 for a class without images.
    """

    mean: Tensor
    scale: Tensor
    middle: Tensor
    centers: Tensor
    spread: Tensor

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("middle", torch.zeros(classes, width))
        self.register_buffer("centers", torch.zeros(classes, 2))
        self.register_buffer("spread", torch.zeros(classes))

    def forward(self, features: Tensor) -> Tensor:
        """Return the points of features (B, D), or (B, D, 1, 1)."""
        found: Tensor = self.layers((features.flatten(1) - self.mean) / self.scale)
        return found

    def learn(self, features: Tensor, labels: Tensor, trainer: Trainer, seed: int) -> None:
        """Train on features (N, D) with labels (N,), and take down centers and spreads."""
        device = features.device
        self.to(device)
        self.mean.copy_(features.mean(dim=0))
        self.scale.copy_(features.std(dim=0, correction=0).clamp(min=1e-6))
        images = features[:, :, None, None]
        trainer.fit(self, images, labels, seed=seed, device=device, task="QUEEN's mapping")
        with torch.no_grad():
            points = self(features)
            for label in labels.unique().tolist():
                own = labels == label
                self.middle[label], self.centers[label] = features[own].mean(dim=0), points[own].mean(dim=0)
                self.spread[label] = (points[own] - self.centers[label]).norm(dim=1).mean()


def mapping(width: int, classes: int, seed: int) -> Mapping:
    """Return an untrained mapping of features of a width."""
    with seeded(seed, "queen map"):
        return Mapping(width, classes).eval()


@torch.no_grad()
def features_of(network: Cut, images: Images, device: torch.device) -> Tensor:
    """Return the features (N, D) of images, on the device."""
    size = batch_limit(EVALUATION_BATCH, images.shape[1:])
    place(network, device)
    return torch.cat([network(to_unit_range(batch)) for batch in batches(images, None, size, device)])
