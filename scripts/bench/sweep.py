"""What a sweep costs over the knockoffs it must train: eight epsilons of one attack, as a user would run them.

    python scripts/bench/sweep.py
    python scripts/bench/sweep.py --victim mnist --pool fashion_mnist --budget 50000 --data-root FOLDER

The victim is trained first and not timed. The sweep then runs in a process of its own; a knockoff of the same budget
is trained here, before and after it, from the clean answers.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from common import arguments, report, seconds

import mad
from mad.cli.command import command
from mad.deployment import deploy
from mad.errors import MadError
from mad.pipeline import inputs
from mad.storage.store import Store

EPSILONS = "0,0.1,0.3,0.5,0.8,0.9,0.95,0.99"
CELLS = len(EPSILONS.split(","))
BAR = 1.10
MAD_RUN = [sys.executable, "-c", "from mad.cli.run import main; main()"]


def overrides(given: Namespace) -> list[str]:
    """Return the words of a cell but for epsilon."""
    wanted = {"pool": given.pool, "attack.budget": given.budget, "data_root": given.data_root}
    return [f"victim={given.victim}", "defense=mad", *(f"{key}={value}" for key, value in wanted.items() if value)]


def sweep(words: list[str], threads: int) -> float:
    """Run the sweep in a process of its own; return its wall time in seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    subprocess.run(
        [*MAD_RUN, "-m", *words, f"defense.epsilon={EPSILONS}"], env=environment, check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def records(outputs: str) -> list[dict[str, Any]]:
    """Return the sweep's records, having checked that every cell is there and the victim was trained once."""
    found = [json.loads(file.read_text()) for file in Path(outputs).glob("runs/*/*/*/*/record.json")]
    victims = list(Path(outputs).glob("victims/*/*/victim.json"))
    times = {record["seconds_victim"] for record in found}
    if (len(found), len(victims), len(times)) != (CELLS, 1, 1):
        raise MadError(f"{len(found)} of {CELLS} records, {len(victims)} victims, victim times {times}")
    return found


@command
def main() -> None:
    """Print what the sweep cost, over eight times one knockoff's training."""
    given = arguments(__doc__, victim="digits", pool="", budget=0, data_root="")
    with tempfile.TemporaryDirectory() as outputs:
        words = overrides(given)
        cell, device = mad.load(*words), torch.device(given.device)
        images, budget, _ = inputs(cell)
        api = deploy(cell.victim, seed=cell.seed, store=Store(outputs), device=device)
        victim_seconds, adversary = api.seconds, cell.adversary(device)
        transfer = cell.attack.spend(api.session(budget), images, adversary).transfer

        def knockoff() -> None:
            adversary.train(transfer)

        half = max(1, given.repeats // 2)
        alone = [seconds(knockoff, given.device) for _ in range(half)]
        # one cell after the other
        where = [f"outputs={outputs}", f"device={given.device}", f"threads={given.threads}", "hydra/launcher=basic"]
        wall = sweep([*words, *where], given.threads)
        alone += [seconds(knockoff, given.device) for _ in range(half)]
        found = records(outputs)
    report(f"{CELLS} epsilons of one attack", [row(given, budget, victim_seconds, wall, alone, found)], given)


def row(
    given: Namespace,
    budget: int,
    victim_seconds: float,
    wall: float,
    alone: list[float],
    found: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return the sweep's times in seconds, and what they are over those of the knockoffs by themselves."""
    knockoff = statistics.median(alone)
    trained = sum(record["seconds_knockoff"] for record in found)
    queried = sum(record["seconds_queries"] for record in found)
    over = wall / (CELLS * knockoff)
    return {
        "victim": given.victim,
        "queries": budget,
        "victim s": victim_seconds,
        "one knockoff s": knockoff,
        "sweep s": wall,
        "of it knockoffs s": trained,
        "queries s": queried,
        "start, evaluation, figures s": wall - trained - queried,
        "sweep / knockoffs": over,
        "bar": f"<= {BAR:.2f}",
        "met": over <= BAR,
    }


if __name__ == "__main__":
    main()
