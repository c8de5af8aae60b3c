"""A sweep's folder: a note a job, read at the sweep's end, and hidden files that go with it."""

from __future__ import annotations

import fcntl
import json
import socket
import time
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mad.errors import MadError
from mad.progress import err
from mad.schema import Record
from mad.storage.files import below, folders, holder, locked, unwritable, write

SWEEPS = Path("sweeps")
HELD = ".held"
RENEWED = ".{}.renewed"
HIDDEN = (".*.tmp", ".*.turn", RENEWED.format("*"), HELD)
OPEN: list[tuple[Path, Any]] = []  # what this process holds; of no callback, since those travel into the jobs


def begin(outputs: Path, folder: Path) -> None:
    """Make a sweep's folder and hold it until ``end``; clear it, and what killed sweeps left hidden in theirs.

    Raises:
        MadError: if another sweep holds the folder, or it cannot be made.
    """
    with locked(outputs, SWEEPS):
        if folder.is_relative_to(outputs):
            below(outputs, folder.relative_to(outputs))
        if holder(folder / HELD):
            raise MadError(f"{folder} is the folder of a sweep that still runs: choose another hydra.sweep.dir")
        clear_dead(outputs, folder)
        clear(folder, "*.json")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / HELD).open("xb", buffering=0)
        except OSError as error:
            raise unwritable(folder, error) from error
        OPEN.append((outputs, file))
        with suppress(OSError):  # where there are no locks at all, the store says so
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(socket.gethostname().encode())


def end() -> None:
    """Give up the folder that this process holds, and clear what was hidden in it and in those of killed sweeps."""
    while OPEN:
        outputs, file = OPEN.pop()
        file.close()
        with suppress(MadError), locked(outputs, SWEEPS):  # a disk that cannot be written keeps what it has
            clear_dead(outputs, Path(file.name).parent)


def clear_dead(outputs: Path, folder: Path) -> None:
    """Clear what is hidden in the folders of sweeps that run no more; the caller holds the lock of them all."""
    for each in (*folders(outputs, f"{SWEEPS}/*"), folder):
        if not holder(each / HELD):
            clear(each, *HIDDEN)


def clear(folder: Path, *patterns: str) -> None:
    """Remove a folder's files of some patterns."""
    for pattern in patterns:
        for file in folder.glob(pattern):
            with suppress(OSError):
                file.unlink()


def doubt(folder: Path) -> str | None:
    """Return what is wrong if a lock that the sweep's first host holds can be taken on this host, too."""
    here = socket.gethostname()
    with suppress(OSError), (folder / HELD).open("r+") as file:
        there = file.read()
        if there and there != here:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where locks hold
            return f"locks of {there} do not hold on {here}: cells may be made twice there, but each record is whole"
    return None


def plan(folder: Path, jobs: list[list[str]]) -> None:
    """Write a note for each job that will be launched: one that dies can leave none of its own."""
    for number, each in enumerate(jobs):
        note(folder, number, {"overrides": each, "jobs": len(jobs)})


def note(folder: Path, number: int, content: Record) -> None:
    """Write the note of one of a sweep's jobs; whoever reads sees the old one or the new one."""
    write(folder / f"{number}.json", json.dumps(content).encode())


def start(folder: Path, number: int, content: Record) -> None:
    """Add to the note of a job that it has begun, and what else is known of it."""
    with suppress(OSError, ValueError):  # of a sweep whose jobs were not known beforehand there is none
        content = json.loads((folder / f"{number}.json").read_text()) | content
    note(folder, number, content | {"since": time.time()})


def over(folder: Path, number: int, found: Record, *, made: bool) -> str:
    """Add to the note of a job what became of it, and whether it was made or kept; return where the sweep stands."""
    own = json.loads((folder / f"{number}.json").read_text())
    note(folder, number, own | found | ({"seconds": time.time() - own["since"]} if made else {}))
    every = read(folder)
    ended = sum(map(is_over, every))
    places = (place for place in range(ended, 0, -1) if first(folder, f"over-{place}"))  # each is said once
    return standing(every, next(places, ended), free=1)


def tell(before: int) -> int:
    """Print where the sweep stands that this process holds, if more than so many jobs are over; return how many are."""
    for _, file in OPEN:
        every = read(Path(file.name).parent)
        ended = sum(map(is_over, every))
        if ended > before:
            err.print(standing(every, ended), soft_wrap=True)
            before = ended
    return before


def is_over(note: Record) -> bool:
    """Tell whether a job's note says what became of it."""
    return "record" in note or "error" in note


def standing(every: list[Record], place: int, free: int = 0) -> str:
    """Say how many of a sweep's jobs are over, of how many, and how long the others will take.

    That is told from the jobs that were made in this sweep: those that were kept took no time.

    Args:
        every: the sweep's notes.
        place: how many are over.
        free: how many processes are about to take their next job.
    """
    planned = max(each.get("jobs", 0) for each in every)
    if not planned:  # a sweeper that chooses them as it goes
        return f"{place} done"
    running = [time.time() - each["since"] for each in every if "since" in each and not is_over(each)]
    waiting = sum("since" not in each for each in every)
    taken = min(free, waiting)
    seconds = [each["seconds"] for each in every if "seconds" in each]
    rest = left(seconds, running + [0.0] * taken, waiting - taken) if seconds and (running or waiting) else ""
    return ", ".join(filter(None, [f"{place} of {planned}", rest]))


def left(finished: list[float], running: list[float], missing: int) -> str:
    """Estimate the time left: finished cells' mean, for what is missing and what running cells lack of it.

    Args:
        finished: seconds that finished cells took.
        running: seconds since running cells were begun; as many go on side by side.
        missing: how many have not begun.
    """
    if not running and not missing:
        return "nothing left to do"
    if not finished:
        return "time left unknown until a cell is done"
    mean = sum(finished) / len(finished)
    seconds = (missing * mean + sum(max(0.0, mean - gone) for gone in running)) / max(1, len(running))
    return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"


def read(folder: Path) -> list[Record]:
    """Return a sweep's notes in the order of its jobs."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"), key=lambda file: int(file.stem))]


def first(folder: Path, name: str) -> bool:
    """Tell whether no other job of this sweep has asked this about the same name."""
    try:
        (folder / f".{name}.turn").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class Renewed:
    """What a sweep has made again, by fingerprint: its jobs share it, whatever machine they run on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __contains__(self, name: object) -> bool:
        return (self.folder / RENEWED.format(name)).exists()

    def add(self, name: str) -> None:
        """Note that it was made again."""
        with suppress(OSError):  # on a full disk it is made once more, which changes no number
            (self.folder / RENEWED.format(name)).touch()


def list_failures(failed: list[Record], every: list[Record]) -> None:
    """Print a table, a line a cell that failed: what sets it apart from the sweep's other cells, and why it failed."""
    common = set.intersection(*(set(each["overrides"]) for each in every)) if len(every) > 1 else set()
    table = Table.grid(padding=(0, 2, 0, 0))
    for each in failed:
        name = " ".join(word for word in each["overrides"] if word not in common)
        why = each.get("error", "ended without a word: killed, or out of memory?")
        table.add_row(Text(f"failed: {name}"), Text(why))
    lines = StringIO()
    Console(file=lines, width=10_000).print(table)  # however narrow the terminal, no line is folded or cut
    for line in lines.getvalue().splitlines():
        err.print(line.rstrip(), soft_wrap=True, markup=False)
