"""What an answer of ModelGuard-W costs, against the victim's forward pass and against a linear program for each.

    python scripts/bench/modelguard.py --json docs/bench/modelguard.json        (about two minutes on 2 cores)

`forward` is the victim's posterior without a defense, `defended` the same with one, by batches; `solver` the solver
alone. `program` is HiGHS, one linear program a posterior, by SciPy; the published code calls CBC by PuLP instead. All
are timed in turn in one process, on a CPU by the process's own time; ratios are medians of the pairwise ones. Other
work on the machine empties the caches between calls, and then small operations cost several times as much: measure on
a quiet one. `same twice` is the forward pass against itself. `off` is the largest difference between the two minima.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import common
import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from mad import solvers
from mad.architectures.lenet import LeNet
from mad.defenses.modelguard_w import ModelGuardW
from mad.solvers.modelguard import MARGIN, OFFSET
from mad.training import place

EPSILON, PROGRAMS, WARM = 1.0, 8, 2
CASES = ((10, 1), (10, 32), (10, 256), (100, 32), (1000, 32))
DEFENDED, FASTER = 1.15, 100


def alternated(runs: Mapping[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, list[float]]:
    """Return the seconds of each run, taken in turn."""
    if device.startswith("cuda"):
        return common.paired(runs, repeats, device)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + WARM):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name] += [time.process_time() - start] * (turn >= WARM)
    return times


def program(y: np.ndarray) -> float:
    """Return the least sum_i log(y_i + 1e-6) q_i within the budget, with one variable for each |q_i - y_i|."""
    classes, top = len(y), int(y.argmax())
    one = np.eye(classes)
    lead = np.delete(one - one[top], top, axis=0)
    above = np.block([[one, -one], [-one, -one], [np.zeros(classes), np.ones(classes)], [lead, np.zeros_like(lead)]])
    below = np.concatenate([y, -y, [EPSILON], np.full(classes - 1, -min(MARGIN, EPSILON / (2 * classes)))])
    cost = np.concatenate([np.log(y + OFFSET), np.zeros(classes)])
    total = np.concatenate([np.ones(classes), np.zeros(classes)])
    return linprog(cost, above, below, total[None], [y.sum()], [(0, None)] * (2 * classes), "highs").fun


def least(y: Tensor) -> Tensor:
    """Return the same by the solver, (B,)."""
    return ((y + OFFSET).log() * solvers.modelguard(y, EPSILON)).sum(dim=1)


def measure(classes: int, batch: int, given: Any) -> dict[str, Any]:
    """Return one row: a LeNet that answers random images as unsurely as a victim answers other data."""
    torch.manual_seed(0)
    device = torch.device(given.device)
    victim = place(LeNet((1, 28, 28), classes), device).eval()
    defense, images = ModelGuardW(EPSILON), torch.rand(batch, 1, 28, 28, device=device)
    logits = victim(images)
    scale = 3 / logits.std(dim=1).mean()

    def forward() -> Tensor:
        return torch.softmax(scale * victim(images), dim=1)

    y = forward()
    rows = y.double().cpu().numpy()[: PROGRAMS if classes < 1000 else 1]
    rows /= rows.sum(axis=1, keepdims=True)
    runs = {"forward": forward, "defended": lambda: defense(images, forward())}
    runs |= {"solver": lambda: solvers.modelguard(y, EPSILON), "again": forward}
    times = alternated(runs, 60 * given.repeats, given.device)
    programs = {"program": lambda: [program(row) for row in rows], "solver": runs["solver"]}
    slow = alternated(programs, max(1, given.repeats // 3), given.device)
    slow["program"] = [each / len(rows) for each in slow["program"]]
    slow["solver"] = [each / batch for each in slow["solver"]]
    off = max(abs(a - program(row)) for a, row in zip(least(torch.from_numpy(rows)).tolist(), rows, strict=True))
    over, faster = common.ratio(times["defended"], times["forward"]), common.ratio(slow["program"], slow["solver"])
    row = {"K": classes, "batch": batch}
    row |= {f"{name} us": statistics.median(times[name]) / batch * 1e6 for name in ("forward", "defended", "solver")}
    row |= {"x forward": over, "same twice": common.ratio(times["again"], times["forward"])}
    row |= {"program us": statistics.median(slow["program"]) * 1e6, "x faster": faster, "off": off}
    bar = (classes, batch) == (10, 32)
    row["bar"] = f"<= {DEFENDED} x forward, >= {FASTER} x faster" if bar else None
    row["met"] = over <= DEFENDED and faster >= FASTER if bar else None
    return row


def main() -> None:
    """Measure every case."""
    given = common.arguments(__doc__)
    with torch.no_grad():
        rows = [measure(classes, batch, given) for classes, batch in CASES]
    common.report(f"ModelGuard-W, microseconds a query, LeNet, epsilon {EPSILON}", rows, given)


if __name__ == "__main__":
    main()
