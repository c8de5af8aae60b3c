"""What a gate knows of honest images: Gaussians of features by class, and how surprising each score is."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mad.gate.conformal import surprises, tail_of
from mad.seeds import generator

WIDTH = 128  # the most numbers that a feature is reduced to
WEIGHTS = 2**22  # the most of one part's whitening matrices, of all classes together
PICTURE = 14  # pixels along each side of the picture that is a feature of its own
NEAR = 500  # training features among which the nearest is searched


class Held(nn.Module):
    """A module whose buffers take the shape of what is loaded."""

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        for name, own in self._buffers.items():
            if own is not None and (found := state.get(prefix + name)) is not None:
                self._buffers[name] = torch.empty_like(found, device=own.device)
        super()._load_from_state_dict(state, prefix, *rest)

    def hold(self, **tensors: Tensor) -> None:
        """Set buffers."""
        for name, value in tensors.items():
            self.register_buffer(name, value)


class Gaussian(Held):
    """A normal distribution of a feature (B, D) for each class; the score is the squared Mahalanobis distance to the
    predicted class. Covariances are shrunk toward that of all classes together, the more the fewer images there are."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("mean", "scale", "turn", "centers", "whiten"):
            self.register_buffer(name, torch.zeros(0))

    def learn(self, features: Tensor, labels: Tensor, classes: int, seed: int) -> None:
        """Take down the moments of features (N, D) with labels (N,)."""
        width = min(WIDTH, features.shape[1], max(8, math.isqrt(WEIGHTS // classes)))
        mean, scale = features.mean(dim=0), features.std(dim=0, correction=0).clamp(min=1e-4)
        turn = torch.eye(features.shape[1])
        if features.shape[1] > width:
            drawn = torch.randn(features.shape[1], width, generator=generator(seed, "gate's projection"))
            turn = torch.linalg.qr(drawn)[0]
        turn = turn.to(features) / scale.unsqueeze(1)
        points = ((features - mean) @ turn).double()
        known = labels.bincount(minlength=classes)
        centers = torch.zeros(classes, width, dtype=torch.float64, device=points.device)
        centers.index_add_(0, labels, points)
        centers /= known.clamp(min=1).unsqueeze(1)
        apart = points - centers[labels]
        tied = apart.T @ apart / len(apart)
        tied += 1e-3 * tied.diagonal().mean().clamp(min=1e-6) * torch.eye(width).to(tied)
        whiten = []
        for label in range(classes):
            own = apart[labels == label]
            share = width / (width + 2 * len(own))
            covariance = share * tied + (1 - share) * own.T @ own / max(1, len(own))
            whiten.append(torch.linalg.inv(torch.linalg.cholesky(covariance)).T)
        self.hold(mean=mean, scale=scale, turn=turn, centers=centers.float(), whiten=torch.stack(whiten).float())

    def forward(self, features: Tensor, parts: list[tuple[int, Tensor]]) -> Tensor:
        """Return the scores (B,) of features (B, D) whose rows of each predicted class are listed."""
        points = (features - self.mean) @ self.turn
        found = points.new_empty(len(points))
        for label, rows in parts:
            found[rows] = ((points[rows] - self.centers[label]) @ self.whiten[label]).square().sum(dim=1)
        return (found + 1e-9).log()


class Nearest(Held):
    """Some training features; the score is the distance to the nearest, as one less the cosine."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("points", torch.zeros(0))

    def learn(self, features: Tensor, labels: Tensor, classes: int, seed: int) -> None:
        """Draw the features that are kept."""
        rows = torch.randperm(len(features), generator=generator(seed, "gate's neighbors"))[:NEAR]
        self.hold(points=F.normalize(features[rows.to(features.device)], dim=1))

    def forward(self, features: Tensor, parts: list[tuple[int, Tensor]]) -> Tensor:
        """Return the scores (B,) of features (B, D)."""
        return (1 - (F.normalize(features, dim=1) @ self.points.T).amax(dim=1)).clamp(min=1e-7).log()


class Detector(Held):
    """Scores of features by part, how surprising they are, and what calibration images gave.

    Args:
        names: of the network's features, in order; see ``Taps``.
        classes: number of classes K.
    """

    def __init__(self, names: list[str], classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.parts = nn.ModuleList([Gaussian() for _ in ["picture", *names]])
        self.names = ["picture", *names, *(["nearest"] if "features" in names else []), "energy", "confidence"]
        if "features" in names:
            self.parts.append(Nearest())
        for name in ("ordered", "start", "length", "weights", "surprises", "predicted", "shares", "bank", "shifted"):
            self.register_buffer(name, torch.zeros(0))
        self.eval()

    def features(self, images: Tensor, taken: list[Tensor]) -> list[Tensor]:
        """Return the features of each part."""
        size = [min(PICTURE, side) for side in images.shape[2:]]
        found = [F.adaptive_avg_pool2d(images.float(), size).flatten(1), *(each.float() for each in taken)]
        return found + found[-1:] if "nearest" in self.names else found

    def scores(self, images: Tensor, taken: list[Tensor], logits: Tensor) -> Tensor:
        """Return the score of each part, (B, L): the larger, the less it looks like the predicted class."""
        logits = logits.float()
        predicted = logits.argmax(dim=1)
        order = predicted.argsort(stable=True)
        counts = predicted.bincount(minlength=self.classes).tolist()
        rows = [(label, some) for label, some in enumerate(order.split(counts)) if len(some)]
        found = [part(each, rows) for part, each in zip(self.parts, self.features(images, taken), strict=True)]
        total = logits.logsumexp(dim=1)
        unsure = (total - logits.amax(dim=1)).clamp(min=1e-9).log()
        return torch.stack([*found, -total, unsure], dim=1)

    def forward(self, images: Tensor, taken: list[Tensor], logits: Tensor) -> Tensor:
        """Return the surprise of each part, -log p, (B, L)."""
        return self.surprising(self.scores(images, taken, logits))

    def surprising(self, scores: Tensor) -> Tensor:
        """Return the surprise of each score, (B, L)."""
        each = zip(scores.unbind(dim=1), self.ordered, self.start, self.length, strict=True)
        return torch.stack([surprises(*one) for one in each], dim=1)

    def learn_tails(self, scores: Tensor) -> None:
        """Take down how honest scores (N, L) are distributed."""
        found = [tail_of(each) for each in scores.unbind(dim=1)]
        ordered, start, length = (torch.stack(each) for each in zip(*found, strict=True))
        self.hold(ordered=ordered, start=start, length=length)
