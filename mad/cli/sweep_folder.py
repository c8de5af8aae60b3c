"""A sweep's folder: one note (a JSON file) per job, read at the sweep's end, and hidden files of its state."""

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
from mad.progress import err, time_left
from mad.schema import Record
from mad.storage.files import below, folders, holder, locked, unwritable, write

SWEEPS = Path("sweeps")
HELD = ".held"
RENEWED = ".{}.renewed"
HIDDEN = (".*.tmp", ".*.turn", RENEWED.format("*"), HELD)
OPEN: list[tuple[Path, Any]] = []  # what this process holds; jobs get copies of callbacks, so not there


def begin(outputs: Path, folder: Path) -> None:
    """Make a sweep's folder and hold its lock until ``end``; remove its old notes and killed sweeps' hidden files.

    Raises:
        MadError: if another sweep holds the folder, or if it cannot be made.
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
        with suppress(OSError):  # on a disk without locks, the store raises an error
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(socket.gethostname().encode())


def end() -> None:
    """Release the folder that this process holds; remove the hidden files in it and in those of killed sweeps."""
    while OPEN:
        outputs, file = OPEN.pop()
        file.close()
        with suppress(MadError), locked(outputs, SWEEPS):  # on a read-only disk the files stay
            clear_dead(outputs, Path(file.name).parent)


def clear_dead(outputs: Path, folder: Path) -> None:
    """Remove the hidden files in folders of sweeps that no longer run; the caller must hold the lock ``SWEEPS``."""
    for each in (*folders(outputs, f"{SWEEPS}/*"), folder):
        if not holder(each / HELD):
            clear(each, *HIDDEN)


def clear(folder: Path, *patterns: str) -> None:
    """Remove the files of a folder that match a pattern."""
    for pattern in patterns:
        for file in folder.glob(pattern):
            with suppress(OSError):
                file.unlink()


def doubt(folder: Path) -> str | None:
    """Return a warning if the sweep's lock, which another host holds, can be taken here: locks do not work then."""
    here = socket.gethostname()
    with suppress(OSError), (folder / HELD).open("r+") as file:
        there = file.read()
        if there and there != here:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where locks hold
            return f"locks of {there} do not hold on {here}: cells may be made twice there, but each record is whole"
    return None


def plan(folder: Path, jobs: list[list[str]]) -> None:
    """Write a note for each job that will be launched, since a job that dies cannot write one."""
    for number, each in enumerate(jobs):
        note(folder, number, {"overrides": each, "jobs": len(jobs)})


def note(folder: Path, number: int, content: Record) -> None:
    """Write the note of a job atomically: a reader sees the old or the new note."""
    write(folder / f"{number}.json", json.dumps(content).encode())


def start(folder: Path, number: int, content: Record) -> None:
    """Add to the note of a job that it has started, and further content."""
    with suppress(OSError, ValueError):  # no note exists if the sweeper chooses jobs while it runs
        content = json.loads((folder / f"{number}.json").read_text()) | content
    note(folder, number, content | {"since": time.time()})


def over(folder: Path, number: int, found: Record, *, made: bool) -> str:
    """Add the result of a job to its note, and whether its record was made or loaded; return the sweep's progress."""
    own = json.loads((folder / f"{number}.json").read_text())
    note(folder, number, own | found | ({"seconds": time.time() - own["since"]} if made else {}))
    every = read(folder)
    ended = sum(map(is_over, every))
    places = (place for place in range(ended, 0, -1) if first(folder, f"over-{place}"))  # each is printed once
    return standing(every, next(places, ended), free=1)


def tell(before: int) -> int:
    """Print the progress of this process's sweep if more than ``before`` jobs are over; return how many are."""
    for _, file in OPEN:
        every = read(Path(file.name).parent)
        ended = sum(map(is_over, every))
        if ended > before:
            err.print(standing(every, ended), soft_wrap=True)
            before = ended
    return before


def is_over(note: Record) -> bool:
    """Return whether a job's note holds its result."""
    return "record" in note or "error" in note


def standing(every: list[Record], place: int, free: int = 0) -> str:
    """Return a text of how many of a sweep's jobs are over, and how long the others will take.

    The estimate uses only jobs that this sweep ran, since loading a record takes no time.

    Args:
        every: the sweep's notes.
        place: number of jobs that are over.
        free: number of processes that are about to start their next job.
    """
    planned = max(each.get("jobs", 0) for each in every)
    if not planned:  # the sweeper chooses jobs while it runs
        return f"{place} done"
    running = [time.time() - each["since"] for each in every if "since" in each and not is_over(each)]
    waiting = sum("since" not in each for each in every)
    taken = min(free, waiting)
    seconds = [each["seconds"] for each in every if "seconds" in each]
    rest = left(seconds, running + [0.0] * taken, waiting - taken) if seconds and (running or waiting) else ""
    return ", ".join(filter(None, [f"{place} of {planned}", rest]))


def left(finished: list[float], running: list[float], missing: int) -> str:
    """Return an estimate of the time left, from the mean time of finished cells.

    Args:
        finished: seconds that each finished cell took.
        running: seconds since each running cell started; their number is the number of cells at once.
        missing: number of cells that have not started.
    """
    if not running and not missing:
        return "nothing left to do"
    if not finished:
        return "time left unknown until a cell is done"
    mean = sum(finished) / len(finished)
    seconds = (missing * mean + sum(max(0.0, mean - gone) for gone in running)) / max(1, len(running))
    return time_left(seconds)


def read(folder: Path) -> list[Record]:
    """Return a sweep's notes in the order of its jobs."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"), key=lambda file: int(file.stem))]


def first(folder: Path, name: str) -> bool:
    """Return True for the first job of this sweep that asks with this name, and False for all others."""
    try:
        (folder / f".{name}.turn").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class Renewed:
    """The fingerprints of items that a sweep has made again; its jobs share them across machines, as files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __contains__(self, name: object) -> bool:
        return (self.folder / RENEWED.format(name)).exists()

    def add(self, name: str) -> None:
        """Add the fingerprint of an item that was made again."""
        with suppress(OSError):  # on a full disk the item is made once more, with the same result
            (self.folder / RENEWED.format(name)).touch()


def list_missing(what: str, missing: list[Record], every: list[Record]) -> None:
    """Print a table with one line per cell without a record: its settings that differ from other cells', and why.

    Args:
        what: what the lines begin with, such as ``failed``.
        missing: the cells' notes.
        every: the notes of all cells.
    """
    common = set.intersection(*(set(each["overrides"]) for each in every)) if len(every) > 1 else set()
    table = Table.grid(padding=(0, 2, 0, 0))
    for each in missing:
        name = " ".join(word for word in each["overrides"] if word not in common)
        why = each.get("error", "ended without a word: killed, or out of memory?")
        table.add_row(Text(f"{what}: {name}"), Text(why))
    lines = StringIO()
    Console(file=lines, width=10_000).print(table)  # wide, so that no line is folded or cut
    for line in lines.getvalue().splitlines():
        err.print(line.rstrip(), soft_wrap=True, markup=False)
