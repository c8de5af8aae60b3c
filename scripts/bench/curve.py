"""What a curve of MNIST costs, five epsilons at 50,000 queries, against the published pipeline; multiplied out.

    python scripts/bench/curve.py --data-root DATA --threads 1 --json docs/bench/curve.json        (two minutes)

The published pipeline answers one image at a time (``published.py``) and trains a knockoff for 30 epochs in a plain
loop with batches of 64 (``train.py``); this project answers 256 at once and trains the knockoff by its own recipe of 18
epochs, on soft answers. Queries and epochs of both are timed in turn in one run, the loops in processes of their own,
and multiplied by how many there are; nothing was run as a whole. The victim, start-up, evaluation and figures are left
out on both sides; ``sweep.py`` measures what these add.
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
from mad.cli.command import command
from mad.training import place

STRENGTHS, QUERIES, BATCH, SLOW = 5, 50_000, 256, 32
Times = dict[str, list[float]]  # seconds, in the order in which they were taken


def queries(given: Any) -> Times:
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
    return {name: [taken / counts[name] for taken in each] for name, each in times.items()}


def epochs(given: Any) -> Times:
    """Return the seconds of a knockoff's epoch, an image."""
    names = {"published": "plain", "ours": "knockoff"}
    loops = {label: train.Apart(name, given, 0, given.images) for label, name in names.items()}
    times: Times = {label: [] for label in loops}
    for turn in range(given.repeats + 1):
        for label, loop in loops.items():
            taken = loop.run(train.segment)
            times[label] += [taken / given.images] * (turn > 0)
    return times


def multiplied(times: Times, counts: dict[str, int]) -> Times:
    """Return the seconds of so many."""
    return {name: [taken * counts[name] for taken in each] for name, each in times.items()}


@command
def main() -> None:
    """Measure the parts, and multiply them out."""
    given = common.arguments(__doc__, data_root=os.environ.get("MAD_DATA", "data"), images=6400)
    each = {"published": QUERIES, "ours": QUERIES}
    asked, epoch = multiplied(queries(given), each), multiplied(epochs(given), each)
    lengths = {"published": int(train.PLAIN["epochs"]), "ours": train.knockoff().epochs}
    trained = multiplied(epoch, lengths)
    whole = {name: [STRENGTHS * sum(pair) for pair in zip(asked[name], trained[name], strict=True)] for name in asked}
    parts = {
        f"{QUERIES:,} defended queries": asked,
        "an epoch of a knockoff": epoch,
        f"a knockoff, {lengths['published']} epochs and {lengths['ours']}": trained,
        f"{STRENGTHS} epsilons": whole,
    }
    rows = [
        {"seconds": part}
        | {name: statistics.median(taken) for name, taken in times.items()}
        | {"published / ours": common.ratio(times["published"], times["ours"])}
        for part, times in parts.items()
    ]
    common.report("A curve of MNIST, multiplied out", rows, given)


if __name__ == "__main__":
    main()
