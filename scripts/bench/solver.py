"""What the exact solver costs a query and what it gains, against the published one and LeNet's forward pass.

    python scripts/bench/solver.py --json docs/bench/solver.json        (about three minutes on 2 cores)

Answers: for K = 10 those of a digits victim, trained here, to letters, beside a random surrogate's; for every K also
drawn ones, softmax of normal logits, scaled so that the mean top posterior is 0.6, as unsure as an MNIST victim is of
Fashion-MNIST. Batches of 256, whole calls; the cases of ``solvers.exact`` are counted. Its arithmetic is a few dozen
sorts of K numbers: what it costs at K = 10 is the launching of small tensor operations, so no roofline is near.
"""

from __future__ import annotations

import argparse
import math
import statistics
from typing import Any

import common
import torch
from torch import Tensor, nn

import mad
from mad import solvers
from mad.architectures.lenet import LeNet
from mad.cli.command import command
from mad.datasets import to_unit_range
from mad.solvers.exact import mirror
from mad.solvers.metric import cosine
from mad.solvers.problem import Problem
from mad.training import place

BATCH, EPSILONS = 256, (0.5, 0.95, 1.5)


def real(device: torch.device, *words: str) -> tuple[Tensor, Tensor]:
    """Return a victim's and a random surrogate's posteriors on its pool, (256, K) each; without words: the digits'."""
    cell = mad.load("defense=mad", *words)
    victim, pool = cell.victim, cell.pool
    assert pool is not None
    images = to_unit_range(pool.images(victim.dataset.shape)[:BATCH].to(device))
    networks = victim.train(device), place(victim.untrained(seed=0, purpose="surrogate"), device)
    with torch.no_grad():
        y, p = (torch.softmax(network(images), dim=1) for network in networks)
    return y, p


def drawn(classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return posteriors (256, K) with a mean top of 0.6, and nearly uniform ones."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(BATCH, classes, generator=draw)
    low, high = 0.0, 100.0
    for _ in range(40):
        scale = (low + high) / 2
        sure = torch.softmax(scale * logits, dim=1).amax(dim=1).mean() > 0.6
        low, high = (low, scale) if sure else (scale, high)
    near = 0.1 * torch.randn(BATCH, classes, generator=draw)
    return torch.softmax(low * logits, dim=1).to(device), torch.softmax(near, dim=1).to(device)


def cases(y: Tensor, p: Tensor, epsilon: float) -> str:
    """Return the shares of mirrored, obtuse and acute queries, in percent."""
    problem = Problem(y, p, torch.full_like(y[:, 0], epsilon / 2))
    mirrored = mirror(problem)[1]
    obtuse = ~mirrored & (cosine(problem.lowest(problem.u) - p, problem.u) < 0)
    shares = [100 * part.double().mean().item() for part in (mirrored, obtuse, ~mirrored & ~obtuse)]
    return " / ".join(f"{share:.0f}" for share in shares)


def measure(name: str, pair: tuple[Tensor, Tensor], given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row an epsilon."""
    y, p = pair
    device = torch.device(given.device)
    lenet: nn.Module = place(LeNet((1, 28, 28), 10), device).eval()
    images = torch.rand(BATCH, 1, 28, 28, device=device).contiguous(memory_format=torch.channels_last)
    rows = []
    for epsilon in EPSILONS:
        runs = {
            "forward": lambda: lenet(images),
            "vertex": lambda epsilon=epsilon: solvers.vertex(y, p, epsilon),
            "exact": lambda epsilon=epsilon: solvers.exact(y, p, epsilon),
        }
        with torch.no_grad():
            times = common.paired(runs, given.repeats, given.device)
        over = common.ratio(times["exact"], times["forward"])
        h = [solvers.objective(runs[solver](), y, p).mean().item() for solver in ("vertex", "exact")]
        row = {"answers": name, "K": y.shape[1], "epsilon": epsilon, "mirror / obtuse / acute %": cases(y, p, epsilon)}
        row |= {f"{run} us": statistics.median(times[run]) / BATCH * 1e6 for run in runs}
        row |= {"x forward": over, "H vertex": h[0], "H exact": h[1]}
        bar = y.shape[1] == 10
        rows.append({**row, "bar": "< 1 x forward" if bar else None, "met": over < 1 if bar else None})
    return rows


def growth(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the power of K by which the cost grows from K = 100 to K = 1000."""
    slow = {classes: sum(row["exact us"] for row in rows if row["K"] == classes) for classes in (100, 1000)}
    power = math.log10(slow[1000] / slow[100])
    return {"answers": f"growth from K = 100 to 1000: K^{power:.2f}", "bar": "<= K^2", "met": power <= 2}


@command
def main() -> None:
    """Measure all answers."""
    given = common.arguments(__doc__)
    device = torch.device(given.device)
    rows = measure("digits victim on letters", real(device), given)
    for classes in (10, 100, 1000):
        rows += measure("drawn", drawn(classes, device), given)
    common.report("The exact solver, microseconds a query, batch 256", [*rows, growth(rows)], given)


if __name__ == "__main__":
    main()
