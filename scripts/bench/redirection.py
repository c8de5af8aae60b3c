"""What an answer of gradient redirection costs, against the published form and two bare forward passes.

    python scripts/bench/redirection.py --json docs/bench/redirection.json        (about two minutes on 2 cores)

Whole queries, ledger and checks included, of the direction of all ones; with ten strengths, the answers of all of them
from one pass, as the published form also computes them. ``published``: the form in which the method
was published, written here from its definition: two backward passes a batch, then a loop over images and strengths
that moves mass class by class. ``floor``: the victim's and the surrogate's forward passes, which no defense that asks
a surrogate can go below. All are timed in turn in one process; ratios are medians of the pairwise ones.
"""

from __future__ import annotations

import statistics
from typing import Any

import common
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mad import solvers
from mad.api import BlackBox
from mad.architectures.fast_resnet import FastResNet
from mad.architectures.lenet import LeNet
from mad.cli.command import command
from mad.defenses.gradient_redirection import GradientRedirection
from mad.directional import Directional
from mad.training import place

EPSILON, FASTER = 0.95, 3
ONE, ALL = (EPSILON,), tuple(step / 10 for step in range(1, 11))
CASES: list[tuple[str, Any, tuple[int, int, int], int, int, tuple[float, ...], int | None]] = [
    ("lenet", LeNet, (1, 28, 28), 10, 32, ONE, FASTER),
    ("lenet", LeNet, (1, 28, 28), 10, 32, ALL, FASTER),
    ("lenet", LeNet, (1, 28, 28), 10, 256, ONE, None),
    ("lenet", LeNet, (1, 28, 28), 10, 1, ONE, None),
    ("fast_resnet", FastResNet, (3, 32, 32), 10, 32, ONE, None),
    ("fast_resnet", FastResNet, (3, 32, 32), 100, 32, ONE, None),
]


class Given(GradientRedirection):
    """Gradient redirection with a surrogate that is given."""

    def __init__(self, scores: Directional) -> None:
        super().__init__(EPSILON)
        self._scores = scores


def published(victim: nn.Module, surrogate: nn.Module, images: Tensor, strengths: tuple[float, ...]) -> Tensor:
    """Return the answers (B, E, K) at E strengths, image by image."""
    with torch.no_grad():
        clean = F.softmax(victim(images), dim=1)
    weights = [value.requires_grad_() for value in surrogate.parameters()]
    direction = torch.ones(sum(value.numel() for value in weights), device=images.device)
    share = torch.zeros_like(clean, requires_grad=True)
    loss = (share * F.log_softmax(surrogate(images), dim=1)).sum()
    gradient = torch.cat([row.flatten() for row in torch.autograd.grad(loss, weights, create_graph=True)])
    (scores,) = torch.autograd.grad(gradient @ direction, share)
    for value in weights:
        value.requires_grad_(False)
    answers = []
    for y, score, epsilon in ((*pair, each) for pair in zip(clean, scores, strict=True) for each in strengths):
        q, left = y.clone(), epsilon / 2
        order = score.argsort()
        for k in order[:-1]:
            if left <= 0:
                break
            taken = min(left, q[k].item())
            q[k] -= taken
            q[order[-1]] += taken
            left -= taken
        answers.append(q)
    return torch.stack(answers).unflatten(0, (len(images), -1))


def measure(case: tuple[Any, ...], given: Any) -> dict[str, Any]:
    """Return one case's row."""
    name, make, shape, classes, batch, strengths, bar = case
    device = torch.device(given.device)
    torch.manual_seed(0)
    victim, surrogate = (place(make(shape, classes), device).eval().requires_grad_(False) for _ in range(2))
    images = torch.rand(batch, *shape, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    scores = Directional(surrogate, images[:4])
    defended = BlackBox(victim, Given(scores), shape, None, device)

    @torch.no_grad()
    def floor() -> None:
        victim(images), surrogate(images)

    @torch.no_grad()
    def ours() -> Tensor:
        if len(strengths) == 1:
            return defended(images).unsqueeze(1)
        clean = F.softmax(victim(images), dim=1)
        found = scores(images)
        return torch.stack([solvers.linear(clean, found, epsilon) for epsilon in strengths], dim=1)

    runs = {"floor": floor, "defended": ours, "published": lambda: published(victim, surrogate, images, strengths)}
    times = common.paired(runs, given.repeats, given.device)
    error = (runs["published"]().to(device) - ours().to(device)).abs().amax(dim=(1, 2))
    speedup = common.ratio(times["published"], times["defended"])
    middle = {key: statistics.median(value) / batch * 1e6 for key, value in times.items()}
    return {
        "network": name,
        "K": classes,
        "batch": batch,
        "strengths": len(strengths),
        **{f"{key} us": value for key, value in middle.items()},
        "x floor": common.ratio(times["defended"], times["floor"]),
        "x published": speedup,
        "max difference": error.max().item(),
        "bar": None if bar is None else f">= {bar} x published",
        "met": None if bar is None else speedup >= bar,
    }


@command
def main() -> None:
    """Measure every case."""
    given = common.arguments(__doc__)
    rows = [measure(case, given) for case in CASES]
    common.report(f"gradient redirection, microseconds an image, epsilon {EPSILON}", rows, given)


if __name__ == "__main__":
    main()
