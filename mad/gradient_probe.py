"""Measurements of an adversary that trains while it queries, for studies only (paper, figs. 6 and 7).

The probe measures how far each answer turns the adversary's gradient, which needs the clean answer, and the
adversary's test loss, which needs the test split. An adversary has neither. So the API calls the ``GradientProbe``, and
the attack never sees its results.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mad.adversary import Adversary
from mad.datasets import Split
from mad.gradients import theta
from mad.schema import Column
from mad.training import logits_of

DEGREES = 180
POINTS = 30
ALL, LAST = "all weights", "the last layer's weights"
SCHEMA = (
    *(
        column
        for name, weights in (("", ALL), ("_last_layer", LAST))
        for column in (
            Column(
                f"deviation{name}_mean",
                "number",
                "degrees, 0 to 180",
                f"mean angle between clean and given answers' gradients, {weights}; empty if each is zero",
                "probe=true",
            ),
            Column(
                f"deviation{name}_histogram",
                "series",
                "180 counts, one a degree",
                f"these angles, {weights}",
                "probe=true",
            ),
        )
    ),
    Column("test_loss_queries", "series", "queries", "after how many the test loss was taken", "probe=true"),
    Column(
        "test_loss",
        "series",
        "nats",
        "the stolen model's mean cross-entropy on the labels of the test split then",
        "probe=true",
    ),
)


class Along(nn.Module):
    """Maps images to the products (B, N) of their logits with fixed directions (N, K).

    The gradient of a product <z, v> is J^T v. So ``theta`` of this network holds the inner products <J^T v, J^T w>, at
    the cost of N backward passes and without storing a gradient.
    """

    def __init__(self, network: nn.Module, directions: Tensor) -> None:
        super().__init__()
        self.network, self.directions = network, directions
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the products."""
        return self.network(images) @ self.directions.T


def angle(uu: Tensor, ud: Tensor, dd: Tensor) -> Tensor:
    """Return the angle between u and u + d in degrees, [0, 180], from their inner products.

    It uses arctan, because for small d the rounding error of arccos near 1 is a tenth of a degree.
    """
    return torch.rad2deg(torch.atan2((uu * dd - ud * ud).clamp(min=0).sqrt(), uu + ud))


def deviations(network: nn.Module, image: Tensor, clean: Tensor, given: Tensor) -> Tensor:
    """Return by which angle training on ``given`` instead of ``clean`` turns the gradient of one step, degrees (2,).

    The first angle is for all weights, the second for those of the last layer, which must be linear: its gradients
    (p - q) h^T share the features h. An angle is NaN if a gradient is zero. Once the network has learned an answer,
    p - q in float32 is mostly rounding error, so it is computed in float64, and only its direction is used.

    Args:
        network: the adversary's current network, in eval mode.
        image: (1, C, H, W) in [0, 1], on the network's device.
        clean: the training target (1, K) from the clean answer.
        given: the training target (1, K) from the defended answer.
    """
    with torch.no_grad():
        p = torch.softmax(network(image).double(), dim=1)
    steps = [target - p * target.sum() for target in (clean.double(), given.double())]
    u, a = (step / step.abs().amax() for step in steps)
    directions = torch.cat([u, a - u]).to(image.dtype)
    whole = theta(Along(network, directions), image)[1][0]
    both = torch.stack([whole, directions @ directions.T]).double()
    return angle(both[:, 0, 0], both[:, 0, 1], both[:, 1, 1]).cpu()


class GradientProbe:
    """Measures each request before the adversary's training step.

    Args:
        adversary: the adversary, which trains ``adversary.live`` between requests.
        test: the victim's test split.
        budget: number of queries; the test loss is measured ``POINTS`` times, evenly spaced, and at the end.
    """

    def __init__(self, adversary: Adversary, test: Split, budget: int) -> None:
        self._adversary, self._test = adversary, test
        self._due = [round(point * budget / POINTS) for point in range(POINTS)]
        self._angles: list[Tensor] = []
        self._losses: dict[int, float] = {}

    def __call__(self, images: Tensor, clean: Tensor, given: Tensor) -> None:
        """Measure a request: its images (B, C, H, W), and its clean and defended answers, (B, K) each."""
        if self._due and len(self._angles) >= self._due[0]:
            self._take_loss()
        adversary = self._adversary
        there = images.to(adversary.device)
        y, q = (adversary.recovered(answers, there).to(adversary.device) for answers in (clean, given))
        for one in zip(there.split(1), y.split(1), q.split(1), strict=True):
            self._angles.append(deviations(adversary.live, *one))

    def _take_loss(self) -> None:
        done = len(self._angles)
        self._due = [due for due in self._due if due > done]
        logits = logits_of(self._adversary.live, self._test.images, self._adversary.device)
        self._losses[done] = F.cross_entropy(logits, self._test.labels).item()

    def columns(self) -> dict[str, Any]:
        """Return the columns of ``SCHEMA``; angles leave out answers for which a gradient is zero."""
        self._take_loss()
        found: dict[str, Any] = {}
        for name, angles in zip(("", "_last_layer"), torch.stack(self._angles).T, strict=True):
            angles = angles[~angles.isnan()]
            counts = torch.bincount(angles.long().clamp(max=DEGREES - 1), minlength=DEGREES)
            found[f"deviation{name}_mean"] = angles.mean().item() if len(angles) else None
            found[f"deviation{name}_histogram"] = counts.tolist()
        return found | {"test_loss_queries": list(self._losses), "test_loss": list(self._losses.values())}
