"""What a curve of MNIST costs, five epsilons at 50,000 queries, against the published pipeline; multiplied out.

    python scripts/bench/curve.py --data-root DATA --threads 1 --json docs/bench/curve.json        (two minutes)

The published pipeline answers one image at a time (``published.py``) and trains a knockoff for 30 epochs in a plain
loop with batches of 64 (``train.py``); this project answers 256 at once and trains for the 18 epochs of
``trainer=fast``. Queries and epochs of both are timed in turn in one run, the loops in processes of their own, and
multiplied by how many there are. The victim, start-up, evaluation and figures are left out on both sides; ``sweep.py``
measures what these add. The ratios are of the medians.
"""

from __future__ import annotations

import os
import statistics
from typing import Any

import common
import published
import torch
import train
from query import EPSILON, Given

from mad.api import BlackBox
from mad.architectures.lenet import LeNet
from mad.training import place

STRENGTHS, QUERIES, BATCH, SLOW = 5, 50_000, 256, 32
EPOCHS = {"published": train.PLAIN["epochs"], "ours": 18}


def queries(given: Any) -> dict[str, float]:
    """Return the seconds of a defended query."""
    device, shape = torch.device(given.device), (1, 28, 28)
    torch.manual_seed(0)
    victim, surrogate = (place(LeNet(shape, 10), device).eval() for _ in range(2))
    images, weight = torch.rand(BATCH, *shape, device=device), surrogate.get_parameter("head.weight")
    defended = BlackBox(victim, Given(surrogate), shape, None, device)

    def slow() -> None:
        for image in images[:SLOW].split(1):
            published.answer(victim, surrogate, weight, image, EPSILON)

    times = common.paired({"published": slow, "ours": lambda: defended(images)}, given.repeats, given.device)
    counts = {"published": SLOW, "ours": BATCH}
    return {name: statistics.median(each) / counts[name] for name, each in times.items()}


def images(given: Any) -> dict[str, float]:
    """Return the seconds of one image's training step."""
    names = {"published": "plain", "ours": "fast"}
    loops = {label: train.Apart(name, given, 0, given.images) for label, name in names.items()}
    times: dict[str, list[float]] = {label: [] for label in loops}
    for turn in range(given.repeats + 1):
        for label, loop in loops.items():
            taken = loop.run(train.segment)
            times[label] += [taken] * (turn > 0)
    return {label: statistics.median(each) / given.images for label, each in times.items()}


def main() -> None:
    """Measure the parts, and multiply them out."""
    given = common.arguments(__doc__, data_root=os.environ.get("MAD_DATA", "data"), images=6400)
    asked = {name: QUERIES * each for name, each in queries(given).items()}
    trained = {name: QUERIES * EPOCHS[name] * each for name, each in images(given).items()}
    whole = {name: STRENGTHS * (asked[name] + trained[name]) for name in asked}
    parts = {
        f"{QUERIES:,} defended queries": asked,
        f"a knockoff of {QUERIES:,} answers": trained,
        f"{STRENGTHS} epsilons": whole,
    }
    rows = [
        {"seconds": part, **each, "published / ours": each["published"] / each["ours"]} for part, each in parts.items()
    ]
    common.report("A curve of MNIST, epsilon by epsilon", rows, given)


if __name__ == "__main__":
    main()
