"""What a defended query costs: against an undefended one, against two bare forward passes, against the published way.

    python scripts/bench/query.py --json docs/bench/query.json        (about six minutes on 2 cores)

Whole queries, ledger and checks included, by batches of 256, or of 16 where images have 224 pixels. ``floor``: the
victim's and the surrogate's forward passes and nothing else, which no defense that asks a surrogate can go below.
``published``: ``published.py``, one image at a time, its answer compared with ours. The head of 4,096 features (the
last layer of a VGG16 for 224 pixels) takes features for images. All are timed in turn in one process; ratios are
medians of the pairwise ones.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
import common
import published

from mad.api import BlackBox
from mad.architectures.lenet import LeNet
from mad.architectures.vgg import VGG16BN
from mad.cli.command import command
from mad.defenses import Undefended
from mad.defenses.mad import Mad
from mad.errors import MadError
from mad.training import place

BATCH, EPSILON = 256, 0.95
LIMIT = 1.10  # of the floor, the two bare forward passes


class Head(nn.Module):
    """Only the last layer."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(shape[0], classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map features (B, 4096, 1, 1) to logits."""
        return self.head(images.flatten(1))


# network, shape, classes, batch, images a published answer is timed on, how many times faster than that ours must be
CASES: list[tuple[str, Any, tuple[int, int, int], int, int, int, int | None]] = [
    ("lenet", LeNet, (1, 28, 28), 10, BATCH, 8, 40),
    ("lenet, one request", LeNet, (1, 28, 28), 10, 1, 1, None),
    ("vgg16_bn 32x32", VGG16BN, (3, 32, 32), 10, BATCH, 4, None),
    ("vgg16_bn 32x32", VGG16BN, (3, 32, 32), 100, BATCH, 2, 200),
    ("head of 4,096", Head, (4096, 1, 1), 200, BATCH, 1, None),
    ("head of 4,096", Head, (4096, 1, 1), 256, BATCH, 1, 5000),
    ("vgg16_bn 224x224", VGG16BN, (3, 224, 224), 256, 16, 1, None),
]


class Given(Mad):
    """MAD with a surrogate that is given."""

    def __init__(self, surrogate: nn.Module) -> None:
        super().__init__(EPSILON)
        self._surrogate = surrogate


def measure(case: tuple[Any, ...], given: Any) -> dict[str, Any]:
    """Return one network's row."""
    name, make, shape, classes, batch, slow_images, bar = case
    device = torch.device(given.device)
    torch.manual_seed(0)
    victim, surrogate = (place(make(shape=shape, classes=classes), device).eval() for _ in range(2))
    images = torch.rand(batch, *shape, device=device)
    if shape[1] > 1:
        images = images.contiguous(memory_format=torch.channels_last)
    single = images[:slow_images]
    defended = BlackBox(victim, Given(surrogate), shape, None, device)
    undefended = BlackBox(victim, Undefended(), shape, None, device)
    weight = surrogate.head.weight

    @torch.no_grad()
    def floor() -> None:
        victim(images), surrogate(images)

    def slow() -> torch.Tensor:
        each = (published.answer(victim, surrogate, weight, image, EPSILON) for image in single.split(1))
        return torch.cat(list(each)).cpu()

    found: list[torch.Tensor] = []  # by far the slowest of all: nothing of it is thrown away as a warm-up
    twin: dict[str, list[float]] = {"defended": [], "published": []}
    runs = {"defended": lambda: defended(images), "floor": floor, "undefended": lambda: undefended(images)}
    times = common.paired(runs, given.repeats, given.device)
    for _ in range(max(1, given.repeats // 3)):
        twin["published"].append(common.seconds(lambda: found.append(slow()), given.device))
        twin["defended"].append(common.seconds(runs["defended"], given.device))
    error = (found[0] - defended(single)).abs().max().item()
    with FlopCounterMode(display=False) as counter:
        floor()
    over_floor = common.ratio(times["defended"], times["floor"])
    speedup = common.ratio(twin["published"], twin["defended"]) * batch / slow_images
    wanted = f"<= {LIMIT:.2f} x floor{f', >= {bar:,} x published' if bar else ''}"
    middle = {key: statistics.median(value) / batch * 1e6 for key, value in times.items()}
    return {
        "network": name,
        "K": classes,
        "batch": batch,
        "undefended us": middle["undefended"],
        "floor us": middle["floor"],
        "defended us": middle["defended"],
        "x floor": over_floor,
        "published us": statistics.median(twin["published"]) / slow_images * 1e6,
        "x published": speedup,
        "max difference": error,
        "roofline": counter.get_total_flops() / common.matrix_rate(given.device) / statistics.median(times["defended"]),
        "bar": wanted,
        "met": over_floor <= LIMIT and (bar is None or speedup >= bar),
    }


@command
def main() -> None:
    """Measure every case."""
    given = common.arguments(__doc__, networks="")
    title = f"a defended query, microseconds an image, epsilon {EPSILON}"
    cases = [case for case in CASES if given.networks in case[0]]
    if not cases:
        raise MadError(f"--networks must be part of one of {', '.join(case[0] for case in CASES)}")
    common.report(title, [measure(case, given) for case in cases], given)


if __name__ == "__main__":
    main()
