"""What `mad-run` costs on a cell that is finished, beyond starting up.

    python scripts/bench/kept.py

A small cell is made once in a temporary folder; then `mad-run --help`, a process that only imports what every cell
needs (torch, pandas, matplotlib), and `mad-run` on the finished cell are started in turn. The bar is in seconds of
processor time, of which there are as many as of the wall on a machine that does nothing else.
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


def main() -> None:
    """Print the seconds of each start, and what a finished cell takes beyond the others."""
    given = arguments(__doc__)
    ways = {"mad-run --help": [RUN, "--help"], "imports alone": [IMPORTS], "mad-run, finished cell": [RUN, *CELL]}
    spent: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        runs = {way: starter(Path(folder), words, spent[way]) for way, words in ways.items()}
        cell = "mad-run, finished cell"
        runs[cell]()
        if runs[cell]().count("(kept)") != 2:
            raise SystemExit("the cell and its reference were not both kept")
        spent[cell].clear()
        times = paired(runs, given.repeats)
    beyond = {way: statistics.median(a - b for a, b in zip(spent[cell], spent[way], strict=True)) for way in ways}
    rows = [
        {
            "way": way,
            "wall s": statistics.median(times[way]),
            "processor s": statistics.median(spent[way][1:]),
            "processor s beyond it": None if way == cell else beyond[way],
            "bar": "< 2" if way == "imports alone" else "",
            "met": beyond[way] < 2 if way == "imports alone" else None,
        }
        for way in ways
    ]
    report("mad-run on a finished cell", rows, given)


if __name__ == "__main__":
    main()
