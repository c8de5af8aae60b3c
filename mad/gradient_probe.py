"""What only a simulation can see of an adversary that trains while it queries (paper, figs. 6 and 7).

How far each answer turned the adversary's own gradient takes the clean answer, and the loss that it heads for takes
the test split: an adversary has neither. So the API, not the attack, calls the ``GradientProbe``, which tells nobody.
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

    The gradient of a product <z, v> is J^T v. So ``theta`` of this network holds <J^T v, J^T w> for N backward passes,
    and no gradient is formed.
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

    As arctan: where d is small, rounding would turn the arccos of nearly 1 into a tenth of a degree.
    """
    return torch.rad2deg(torch.atan2((uu * dd - ud * ud).clamp(min=0).sqrt(), uu + ud))


def deviations(network: nn.Module, image: Tensor, clean: Tensor, given: Tensor) -> Tensor:
    """Return how far training on ``given`` in place of ``clean`` turns the gradient of one step, in degrees, (2,).

    First with respect to all weights, then to those of the last layer, taken to be linear: its gradient (p - q) h^T
    has the features h in common. NaN where a gradient is zero. Once the network has learned an answer, p - q is mostly
    rounding in float32, so p and what is left of it are computed in float64; only its direction goes on from there.

    Args:
        network: the adversary's as it is now, in eval mode.
        image: (1, C, H, W) in [0, 1], where the network lies.
        clean: the target (1, K) that the clean answer makes.
        given: the target (1, K) that the given answer makes.
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
    """Sees each request before the adversary takes its step.

    Args:
        adversary: who trains ``adversary.live`` between its requests.
        test: the victim's test split.
        budget: number of queries; the test loss is taken ``POINTS`` times, evenly, and at the end.
    """

    def __init__(self, adversary: Adversary, test: Split, budget: int) -> None:
        self._adversary, self._test = adversary, test
        self._due = [round(point * budget / POINTS) for point in range(POINTS)]
        self._angles: list[Tensor] = []
        self._losses: dict[int, float] = {}

    def __call__(self, images: Tensor, clean: Tensor, given: Tensor) -> None:
        """Measure a request of images (B, C, H, W): what its answers (B, K) were, clean and given."""
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
        """Return the columns of ``SCHEMA``; answers that make either gradient zero are left out of the angles."""
        self._take_loss()
        found: dict[str, Any] = {}
        for name, angles in zip(("", "_last_layer"), torch.stack(self._angles).T, strict=True):
            angles = angles[~angles.isnan()]
            counts = torch.bincount(angles.long().clamp(max=DEGREES - 1), minlength=DEGREES)
            found[f"deviation{name}_mean"] = angles.mean().item() if len(angles) else None
            found[f"deviation{name}_histogram"] = counts.tolist()
        return found | {"test_loss_queries": list(self._losses), "test_loss": list(self._losses.values())}
