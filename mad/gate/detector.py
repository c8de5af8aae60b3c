"""What a gate knows of honest images: Gaussians of features by class, and how surprising each score is."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mad.gate.conformal import surprises
from mad.seeds import generator

WIDTH = 64  # the most numbers that a feature is reduced to
WEIGHTS = 2**24  # the most numbers in all whitening matrices together
PICTURE = 14  # pixels along each side of the picture that is a feature of its own
NEAR = 200  # training features among which the nearest is searched
FLAT = 1e-5  # an energy below it is the rounding of a network that ends in a log-softmax


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


class Gaussians(Held):
    """Normal distributions of some features, one for each class; scores are log Mahalanobis distances to the predicted.

    Each feature is standardized, and turned at random into fewer numbers where it has many. Covariances are shrunk
    toward that of all classes together, the more the fewer images there are.

    Args:
        widths: of the features.
        classes: number of classes K.
    """

    whiten: Tensor
    centers: Tensor

    def __init__(self, widths: list[int], classes: int) -> None:
        super().__init__()
        count = max(1, classes * len(widths))
        self.width = min(WIDTH, max(8, math.isqrt(WEIGHTS // count)))
        for number, width in enumerate(widths):
            self.register_buffer(f"turn{number}", torch.zeros(width, self.width))
            self.register_buffer(f"shift{number}", torch.zeros(self.width))
        self.register_buffer("whiten", torch.zeros(classes, len(widths), self.width, self.width))
        self.register_buffer("centers", torch.zeros(classes, len(widths), 1, self.width))  # whitened, negative

    def points(self, features: list[Tensor]) -> Tensor:
        """Return features, each (B, D), as points (P, B, W)."""
        turns = [(getattr(self, f"shift{n}"), each, getattr(self, f"turn{n}")) for n, each in enumerate(features)]
        return torch.stack([torch.addmm(*one) for one in turns])

    def learn(self, features: list[Tensor], labels: Tensor, seed: int) -> None:
        """Take down the moments of features, each (N, D), with labels (N,)."""
        for number, each in enumerate(features):
            mean, scale = each.mean(dim=0), each.std(dim=0, correction=0).clamp(min=1e-4)
            drawn = torch.randn(each.shape[1], self.width, generator=generator(seed, "gate's turn"))
            turn = torch.linalg.qr(drawn)[0] if each.shape[1] > self.width else torch.eye(each.shape[1], self.width)
            turn = turn.to(each) / scale.unsqueeze(1)
            getattr(self, f"turn{number}").copy_(turn)
            getattr(self, f"shift{number}").copy_(-(mean @ turn))
        for number, each in enumerate(self.points(features).double()):
            used = min(self.width, features[number].shape[1])
            self._learn_part(number, each[:, :used], labels)

    def _learn_part(self, number: int, points: Tensor, labels: Tensor) -> None:
        """Take down centers and covariances of points (N, W)."""
        classes, width = len(self.whiten), points.shape[1]
        known = labels.bincount(minlength=classes)
        centers = points.new_zeros(classes, width).index_add_(0, labels, points) / known.clamp(min=1).unsqueeze(1)
        apart = points - centers[labels]
        tied = apart.T @ apart / len(apart)
        tied += 1e-3 * tied.diagonal().mean().clamp(min=1e-6) * torch.eye(width).to(tied)
        for label in range(classes):
            own = apart[labels == label]
            share = width / (width + 2 * len(own))
            covariance = share * tied + (1 - share) * own.T @ own / max(1, len(own))
            whiten = torch.linalg.inv(torch.linalg.cholesky(covariance)).T
            self.whiten[label, number, :width, :width] = whiten.float()
            self.centers[label, number, 0, :width] = -(centers[label] @ whiten).float()

    def forward(self, features: list[Tensor], predicted: Tensor) -> Tensor:
        """Return the scores (P, B) of features, each (B, D), of images of predicted classes (B,)."""
        order = predicted.argsort(stable=True)
        counts = predicted.bincount(minlength=len(self.whiten)).tolist()
        points = self.points(features)[:, order].split(counts, dim=1)
        found = [
            torch.baddbmm(self.centers[label], some, self.whiten[label]).norm(dim=2)
            for label, some in enumerate(points)
            if some.shape[1]
        ]
        distances = torch.empty_like(torch.cat(found, dim=1) if found else points[0][:, :, 0])
        if found:
            distances[:, order] = torch.cat(found, dim=1)
        return (distances + 1e-6).log()


class Detector(Held):
    """Scores of features by part, how surprising they are, and what calibration images gave.

    Args:
        names: of the network's features, in order; see ``Taps``.
        widths: their widths.
        shape: (C, H, W) of the images.
        classes: number of classes K.
    """

    points: Tensor
    ordered: Tensor
    start: Tensor
    length: Tensor
    weights: Tensor
    surprises: Tensor
    predicted: Tensor
    shares: Tensor
    bank: Tensor

    def __init__(self, names: list[str], widths: list[int], shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.near = "features" in names  # the last of them: what the last linear layer gets
        self.logits = bool(names)  # of a network without features there are posteriors only, whose energy is rounding
        self.names = ["picture", *(name for name in names if name != "features")]
        self.picture = (min(PICTURE, shape[1]), min(PICTURE, shape[2]))
        own = [shape[0] * self.picture[0] * self.picture[1], *widths[: len(self.names) - 1]]
        self.gaussians = Gaussians(own, classes)
        self.names += [*(["nearest"] if self.near else []), *(["energy"] if self.logits else []), "confidence"]
        parts = len(self.names)  # until it has learned, one without images, which finds nothing surprising
        self.hold(
            points=torch.zeros(NEAR, widths[-1]) if self.near else torch.zeros(0),
            **{name: torch.zeros(parts, 1) for name in ("ordered", "start", "length")},
            weights=torch.full((parts,), 1 / parts),
            surprises=torch.zeros(0, parts),
            predicted=torch.zeros(0),
            shares=torch.zeros(classes),
            bank=torch.zeros(0, classes),
        )
        self.eval()

    def features(self, images: Tensor, taken: list[Tensor]) -> list[Tensor]:
        """Return the features that have Gaussians, each (B, D)."""
        picture = F.adaptive_avg_pool2d(images.float(), self.picture).flatten(1)
        return [picture, *(each.float() for each in (taken[:-1] if self.near else taken))]

    def learn(self, images: Tensor, taken: list[Tensor], labels: Tensor, seed: int) -> None:
        """Take down the moments of training images, and some of their last features."""
        self.gaussians.learn(self.features(images, taken), labels, seed)
        if self.near:
            rows = torch.randperm(len(labels), generator=generator(seed, "gate's neighbors"))[:NEAR]
            self.hold(points=F.normalize(taken[-1][rows.to(labels.device)].float(), dim=1))

    def scores(self, images: Tensor, taken: list[Tensor], logits: Tensor) -> Tensor:
        """Return the score of each part, (L, B): the larger, the less it looks like the predicted class."""
        logits = logits.float()
        found = list(self.gaussians(self.features(images, taken), logits.argmax(dim=1)))
        if self.near:
            last = taken[-1].float()
            cosine = (last @ self.points.T).amax(dim=1) / last.norm(dim=1).clamp(min=1e-12)
            found.append((1 - cosine).clamp(min=1e-7).log())
        total = logits.logsumexp(dim=1)
        found += [-total.where(total.abs() > FLAT, 0.0)] if self.logits else []
        return torch.stack([*found, (total - logits.amax(dim=1)).clamp(min=1e-9).log()])

    def forward(self, images: Tensor, taken: list[Tensor], logits: Tensor) -> Tensor:
        """Return the surprise of each part, -log p, (B, L)."""
        return surprises(self.scores(images, taken, logits), self.ordered, self.start, self.length).T
