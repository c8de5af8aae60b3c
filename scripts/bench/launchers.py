"""Two jobs of one thread each against one job of two: what a sweep gets out of this machine's cores.

    python scripts/bench/launchers.py
    python scripts/bench/launchers.py --victim mnist --pool fashion_mnist --budget 10000 --data-root FOLDER

Two knockoffs of one attack are trained as `side by side` (a process each, one thread) and as `in turn` (one process,
`--cores` threads), alternately, in processes that live through all of it; on an otherwise idle machine this decides
the default of sweeps. Each row also says what the knockoffs cost in seconds of processor time, which other users of
the machine disturb less, and whether both ways gave the same weights, to the bit.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import torch
from common import arguments, paired, ratio, report

import mad
from mad.attacks import TransferSet
from mad.cell import Cell
from mad.cli.command import command
from mad.seeds import generator

STATE: dict[str, Any] = {}


def cell_of(victim: str, pool: str, budget: int, epochs: int, data_root: str) -> Cell:
    """Return the cell of a command line's words."""
    wanted: dict[str, Any] = {"victim": victim, "pool": pool, "knockoff.epochs": epochs, "data_root": data_root}
    wanted["knockoff.min_steps"] = "0" if epochs else ""
    return mad.load(*(f"{key}={value}" for key, value in wanted.items() if value))


def prepare(victim: str, pool: str, budget: int, epochs: int, data_root: str) -> None:
    """Keep in this process what a knockoff is trained on; its answers stand for any defense's."""
    cell = cell_of(victim, pool, budget, epochs, data_root)
    assert cell.pool is not None
    images = cell.pool.images(cell.victim.dataset.shape)
    rows = torch.arange(budget or len(images))
    answers = torch.rand(len(rows), cell.victim.dataset.classes, generator=generator(0, "answers")).softmax(1)
    STATE.update(cell=cell, transfer=TransferSet(images, rows, answers))


def knockoff(threads: int, seed: int) -> tuple[float, str]:
    """Train one; return the processor seconds it took, and the digest of its weights."""
    torch.set_num_threads(threads)
    start = time.process_time()
    model = replace(STATE["cell"], seed=seed).adversary(torch.device("cpu")).train(STATE["transfer"])
    spent = time.process_time() - start
    weights = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
    return spent, hashlib.sha256(weights).hexdigest()


def ways(
    given: Namespace, pools: list[ProcessPoolExecutor], seen: dict[str, list[Any]]
) -> dict[str, Callable[[], Any]]:
    """Return both ways of training one knockoff a core."""

    def side_by_side() -> None:
        futures = [pool.submit(knockoff, 1, seed) for seed, pool in enumerate(pools)]
        seen["side by side"].append([future.result() for future in futures])

    def in_turn() -> None:
        seen["in turn"].append([pools[0].submit(knockoff, given.cores, seed).result() for seed in range(given.cores)])

    return {"side by side": side_by_side, "in turn": in_turn}


@command
def main() -> None:
    """Print the wall time of both ways, and what one saves over the other."""
    given = arguments(__doc__, victim="digits", pool="", budget=0, epochs=0, data_root="", cores=2)
    words = (given.victim, given.pool, given.budget, given.epochs, given.data_root)
    cell_of(*words)  # what is wrong is told before any process starts
    seen: dict[str, list[Any]] = {"side by side": [], "in turn": []}
    pools = [
        ProcessPoolExecutor(1, get_context("spawn"), initializer=prepare, initargs=words) for _ in range(given.cores)
    ]
    times = paired(ways(given, pools, seen), given.repeats)
    for pool in pools:
        pool.shutdown()
    names = {way: [digest for _, digest in runs[0]] for way, runs in seen.items()}
    rows = [
        {
            "way": f"{given.cores} knockoffs {way}",
            "wall s": statistics.median(times[way]),
            "processor s": statistics.median(sum(spent for spent, _ in run) for run in seen[way][1:]),
            "over in turn": ratio(times[way], times["in turn"]),
            "same bits as in turn": names[way] == names["in turn"],
            "bar": "< 1" if way == "side by side" else "",
            "met": ratio(times[way], times["in turn"]) < 1 if way == "side by side" else None,
        }
        for way in times
    ]
    report(f"{given.victim}: one thread a job, or all of them in one", rows, given)


if __name__ == "__main__":
    main()
