"""What MAD-argmax costs a query, K = 10, by its exact solver and by the published search, which tries every set.

    python scripts/bench/argmax.py --threads 1 --json docs/bench/argmax.json        (about two minutes)
    python scripts/bench/argmax.py --threads 1 --overrides "victim=mnist pool=fashion_mnist data_root=FOLDER"

The published search is written out in ``plain``: one posterior at a time, one set of classes after another. Answers are
those of ``solver.py``: a victim's to its pool, trained here, beside a random surrogate's; and drawn ones.
"""

from __future__ import annotations

import itertools
import statistics

import common
import torch
from solver import drawn, real
from torch import Tensor

from mad import solvers
from mad.cli.command import command
from mad.solvers.argmax import TIE

EPSILON, BARS = 0.95, {1: 5000, 256: 400}  # microseconds a query, by batch


def plain(y: Tensor, p: Tensor, epsilon: float) -> Tensor:
    """Return the answer (K,) of the published search to one posterior (K,), beside a surrogate's (K,)."""
    classes, top = range(len(y)), int(y.argmax())
    others = [each for each in classes if each != top]
    best, least, u = y, 2.0, y - p
    for size in range(len(y)):
        for some in itertools.combinations(others, size):
            corner = torch.zeros_like(y)
            corner[list(some)] = 1
            corner[top] = 1 + TIE
            corner /= corner.sum()
            cosine = torch.cosine_similarity(corner - p, u, dim=0)
            if cosine < least:
                best, least = corner, float(cosine)
    step = min(1.0, epsilon / float((best - y).abs().sum()))
    return (1 - step) * y + step * best


@command
def main() -> None:
    """Measure all answers in both batches."""
    given = common.arguments(__doc__, overrides="")
    words, device = given.overrides.split(), torch.device(given.device)
    rows = []
    for name, (all_y, all_p) in {"the victim's": real(device, *words), "drawn": drawn(10, device)}.items():
        for batch, bar in BARS.items():
            y, p = all_y[:batch], all_p[:batch]
            runs = {
                "plain": lambda y=y, p=p: plain(y[0], p[0], EPSILON),
                "search": lambda y=y, p=p: solvers.argmax_vertex(y, p, EPSILON),
                "exact": lambda y=y, p=p: solvers.exact(y, p, EPSILON, keep_top=True),
            }
            with torch.no_grad():
                times = common.paired(runs, given.repeats, given.device)
                off = (plain(y[0], p[0], EPSILON) - solvers.argmax_vertex(y[:1], p[:1], EPSILON)[0]).abs().max().item()
                h = [solvers.objective(runs[one](), y, p).mean().item() for one in ("search", "exact")]
            us = {one: 1e6 * statistics.median(times[one]) / (1 if one == "plain" else batch) for one in runs}
            faster = batch * common.ratio(times["plain"], times["exact"])
            row = {"answers": name, "batch": batch, "plain us": us["plain"], "search us": us["search"]}
            row |= {"exact us": us["exact"], "plain / exact": faster, "plain - search": off}
            row |= {"H search": h[0], "H exact": h[1]}
            rows.append({**row, "bar": f"exact <= {bar:,} us", "met": us["exact"] <= bar})
    common.report(f"MAD-argmax, microseconds a query, K = 10, epsilon {EPSILON}", rows, given)


if __name__ == "__main__":
    main()
