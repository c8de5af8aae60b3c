"""What an answer of ModelGuard-W costs, against the victim's forward pass and against a linear program for each.

    pip install pulp
    python scripts/bench/modelguard.py --json docs/bench/modelguard.json        (about two minutes on 2 cores)

`forward` is the victim's posterior without a defense, `defended` the same with one, by batches; `solver` the solver
by itself. `program` is HiGHS, one linear program a posterior, by SciPy; `cbc` is what the published code calls, by
PuLP, several posteriors in one program as there, and empty without PuLP. All are timed in turn in one process, on a
CPU by the time that the process and its children (CBC) get, which other work on the machine changes little; ratios are
medians of the pairwise ones. `same twice` is the forward pass against itself. `off` is the largest difference between
the solvers' minima.
"""

from __future__ import annotations

import importlib.util
import resource
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
from mad.cli.command import command
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
            start = spent()
            run()
            times[name] += [spent() - start] * (turn >= WARM)
    return times


def spent() -> float:
    """Return the seconds of a CPU that this process and its ended children got."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)  # coarse, which only what calls CBC feels
    return time.process_time() + ended.ru_utime + ended.ru_stime


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


def by_cbc(rows: np.ndarray) -> float:
    """Return the sum over posteriors (B, K) of the least value, from one linear program that CBC solves."""
    import pulp

    problem, cost = pulp.LpProblem("modelguard", pulp.LpMinimize), []
    for number, y in enumerate(rows):
        classes, top = range(len(y)), int(y.argmax())
        answer, moved = (
            [pulp.LpVariable(f"{name}_{number}_{k}", 0, 1 if name == "q" else None) for k in classes] for name in "qm"
        )
        problem += pulp.lpSum(answer) == float(y.sum())
        problem += pulp.lpSum(moved) <= EPSILON
        for k in classes:
            problem += answer[k] - moved[k] <= float(y[k])
            problem += -answer[k] - moved[k] <= -float(y[k])
            if k != top:
                problem += answer[k] - answer[top] <= -min(MARGIN, EPSILON / (2 * len(y)))
        cost += [float(weight) * each for weight, each in zip(np.log(y + OFFSET), answer, strict=True)]
    problem += pulp.lpSum(cost)
    problem.solve(pulp.PULP_CBC_CMD(msg=False))
    return float(pulp.value(problem.objective))


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
    found = least(torch.from_numpy(rows))
    off = max(abs(a - program(row)) for a, row in zip(found.tolist(), rows, strict=True))
    if importlib.util.find_spec("pulp"):
        programs["cbc"] = lambda: by_cbc(rows)
        off = max(off, abs(by_cbc(rows) - found.sum().item()) / len(rows))
    slow = alternated(programs, max(1, given.repeats // 3), given.device)
    slow = {name: [each / (batch if name == "solver" else len(rows)) for each in some] for name, some in slow.items()}
    over, faster = common.ratio(times["defended"], times["forward"]), common.ratio(slow["program"], slow["solver"])
    theirs = common.ratio(slow["cbc"], slow["solver"]) if "cbc" in slow else None
    row = {"K": classes, "batch": batch}
    row |= {f"{name} us": statistics.median(times[name]) / batch * 1e6 for name in ("forward", "defended", "solver")}
    row |= {"x forward": over, "same twice": common.ratio(times["again"], times["forward"])}
    row |= {f"{name} us": statistics.median(slow[name]) * 1e6 for name in slow if name != "solver"}
    row |= {"x faster": faster, "x faster than cbc": theirs, "off": off}
    bar = (classes, batch) == (10, 32)
    row["bar"] = f"<= {DEFENDED} x forward, >= {FASTER} x faster than cbc" if bar else None
    row["met"] = over <= DEFENDED and (theirs or faster) >= FASTER if bar else None
    return row


@command
def main() -> None:
    """Measure every case."""
    given = common.arguments(__doc__)
    with torch.no_grad():
        rows = [measure(classes, batch, given) for classes, batch in CASES]
    common.report(f"ModelGuard-W, microseconds a query, LeNet, epsilon {EPSILON}", rows, given)


if __name__ == "__main__":
    main()
