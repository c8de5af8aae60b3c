"""What `mad-run` costs where everything is done: a kept cell, and a kept sweep of three.

    python scripts/bench/kept.py --json docs/bench/kept.json

The cells are made once in a temporary folder; then each command is started in turn with a process that only imports
what a cell that is not kept needs (torch, pandas, matplotlib). Seconds are of the processor, children included, of
which there are as many as of the wall on a machine that does nothing else.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from common import arguments, paired, report

from mad.cli.command import command
from mad.errors import MadError

RUN = "from mad.cli.run import main; main()"
IMPORTS = (
    "import mad.cli.run, mad.pipeline, mad.storage.store, mad.storage.records, mad.figures.table, mad.figures.tradeoff"
)
CELL = (
    "pool.size=200",
    "trainer.epochs=1",
    "trainer.min_steps=0",
    "knockoff.epochs=2",
    "knockoff.min_steps=0",
    "device=cpu",
)


def starter(folder: Path, words: list[str], spent: list[float]) -> Callable[[], str]:
    """Return what runs a Python process to its end and gives its stderr; its processor seconds are appended."""

    def start() -> str:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", *words], cwd=folder, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        return done.stderr

    return start


@command
def main() -> None:
    """Print the seconds of each command."""
    given = arguments(__doc__)
    sweep = [RUN, "-m", "defense.epsilon=0.5,0.8,0.95", *CELL]
    ways: dict[str, tuple[list[str], float | None]] = {
        "imports of a cell that is not kept": ([IMPORTS], None),
        "a kept cell": ([RUN, *CELL], 1.5),
        "a kept sweep of three cells": (sweep, 4.0),
    }
    spent: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        runs = {way: starter(Path(folder), words, spent[way]) for way, (words, _) in ways.items()}
        for way, lines in (("a kept cell", 2), ("a kept sweep of three cells", 6)):
            runs[way]()
            if runs[way]().count("(kept)") != lines:
                raise MadError(f"{way}: not all of it was kept")
            spent[way].clear()
        times = paired(runs, given.repeats)
    rows = []
    for way, (_, bar) in ways.items():
        seconds = statistics.median(spent[way][1:])
        met = None if bar is None else seconds <= bar
        rows.append(
            {
                "command": way,
                "wall s": statistics.median(times[way]),
                "processor s": seconds,
                "bar": "" if bar is None else f"<= {bar:g}",
                "met": met,
            }
        )
    report("mad-run where everything is done", rows, given)


if __name__ == "__main__":
    main()
