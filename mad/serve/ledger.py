"""How many queries each client has used, and what defenses remember of it: one SQLite file, kept across restarts.

A charge is on the disk, synced, before the images are answered. Charges that wait are committed together, by one
thread, so that many clients share the time of a sync.
"""

from __future__ import annotations

import json
import os
import queue
import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mad.errors import BudgetExceededError, MadError

VERSION = 1  # of the table; 0 is a file that SQLite has just made
PATIENCE = 5.0  # seconds to wait for another process's commit
AT_ONCE = 256  # charges a commit
TABLE = f"""
    CREATE TABLE used (client TEXT PRIMARY KEY, queries INTEGER NOT NULL CHECK (queries >= 0)) WITHOUT ROWID;
    PRAGMA user_version = {VERSION};
"""
MEMORIES = """
    CREATE TABLE IF NOT EXISTS memories (
        client TEXT NOT NULL, defense TEXT NOT NULL, memory TEXT NOT NULL, PRIMARY KEY (client, defense)
    ) WITHOUT ROWID;
"""


class LedgerError(MadError):
    """The ledger cannot be read or written now; nothing was charged, as far as this process knows."""


@dataclass
class Charge:
    """Queries to be charged to a client, and where it goes how many it has used then."""

    client: str
    queries: int
    budget: int | None
    done: Future[int] = field(default_factory=Future)


@dataclass
class Memory:
    """What a defense remembers of a client, as JSON, and a future of when that is on the disk."""

    client: str
    defense: str
    text: str
    done: Future[int] = field(default_factory=Future)


class Ledger:
    """The used queries of all clients. Thread-safe; the processes of one machine may share the file.

    Args:
        file: the SQLite file, in WAL mode, on a local disk; it is made if there is none. None counts in memory.

    Raises:
        MadError: if the file cannot be used, or is something else.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._queue: queue.SimpleQueue[Charge | Memory | None] = queue.SimpleQueue()
        try:
            self._db: sqlite3.Connection | None = self._opened()
        except sqlite3.Error as error:
            raise MadError(f"the ledger {file} cannot be used ({error}); set ledger= to another file") from error
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)
        self._thread.start()

    def charge(self, client: str, queries: int, budget: int | None) -> Future[int]:
        """Charge a client, and return a future of how many queries it has used then.

        It raises ``BudgetExceededError`` if fewer are left than are asked for, and ``LedgerError`` if the file cannot
        be written; nothing is charged then.
        """
        charge = Charge(client, queries, budget)
        self._queue.put(charge)
        return charge.done

    def used(self, client: str) -> int:
        """Return how many queries a client has used.

        Raises:
            LedgerError: if the file cannot be read.
        """
        try:
            with self._lock:
                return spent(self._connected(), client)
        except sqlite3.Error as error:
            raise self._lost(error) from error

    def remember(self, client: str, defense: str, memory: Any) -> Future[int]:
        """Write down what a defense remembers of a client; return a future of when that is on the disk.

        It raises ``LedgerError`` if the file cannot be written. Later calls win.
        """
        item = Memory(client, defense, json.dumps(memory))
        self._queue.put(item)
        return item.done

    def memory(self, client: str, defense: str) -> Any:
        """Return what a defense last remembered of a client; None if it did not.

        Raises:
            LedgerError: if the file cannot be read.
        """
        asked = "SELECT memory FROM memories WHERE client = ? AND defense = ?"
        try:
            with self._lock:
                found = self._connected().execute(asked, (client, defense)).fetchone()
        except sqlite3.Error as error:
            raise self._lost(error) from error
        return None if found is None else json.loads(found[0])

    def close(self) -> None:
        """Commit what waits, and close the file."""
        self._queue.put(None)
        self._thread.join()
        if self._db is not None:
            self._db.close()

    def _work(self) -> None:
        going = True
        while going:
            some = [self._queue.get()]
            while len(some) < AT_ONCE and not self._queue.empty():
                some.append(self._queue.get())
            going = None not in some
            charges = [each for each in some if each is not None and each.done.set_running_or_notify_cancel()]
            try:
                with self._lock:
                    found = self._committed(charges)
            except Exception as error:
                lost = self._lost(error)
                for charge in charges:
                    charge.done.set_exception(lost)
                continue
            for charge, used in zip(charges, found, strict=True):
                if isinstance(used, int):
                    charge.done.set_result(used)
                else:
                    charge.done.set_exception(used)

    def _committed(self, charges: Sequence[Charge | Memory]) -> list[int | BudgetExceededError]:
        """Charge several, in one transaction; return how much is used after each, or that it was over the budget."""
        db, found = self._connected(), list[int | BudgetExceededError]()
        try:
            db.execute("BEGIN IMMEDIATE")
            for charge in charges:
                if isinstance(charge, Memory):
                    known = (charge.client, charge.defense, charge.text)
                    db.execute("INSERT OR REPLACE INTO memories VALUES (?, ?, ?)", known)
                    found.append(0)
                    continue
                used = spent(db, charge.client)
                if charge.budget is not None and used + charge.queries > charge.budget:
                    left = max(0, charge.budget - used)
                    text = f"{charge.queries} queries asked for, {left} of {charge.budget} left"
                    found.append(BudgetExceededError(text))
                    continue
                used += charge.queries
                db.execute("INSERT OR REPLACE INTO used VALUES (?, ?)", (charge.client, used))
                found.append(used)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return found

    def _connected(self) -> sqlite3.Connection:
        """Return the database; if its file went away, it is opened again once it is back, and never made anew."""
        if self._db is not None and self.file is not None and self._place() != self._opened_at:
            self._db.close()
            self._db = None
        if self._db is None:
            self._db = self._opened(again=True)
        return self._db

    def _place(self) -> tuple[int, int] | None:
        """Return which file lies at the path, None for no file: writing to one that was removed would seem to work."""
        try:
            found = os.stat(self.file or "")
            return found.st_dev, found.st_ino
        except OSError:
            return None

    def _opened(self, again: bool = False) -> sqlite3.Connection:
        """Return the checked database. A new file is made only at the start: an empty one would restore all budgets."""
        mode = "rw" if again else "rwc"
        where = ":memory:" if self.file is None else f"{self.file.absolute().as_uri()}?mode={mode}"
        db = sqlite3.connect(where, PATIENCE, isolation_level=None, check_same_thread=False, uri=self.file is not None)
        try:
            (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version != VERSION and (tables or again):
                raise sqlite3.DatabaseError("it is no ledger")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut, not only a killed process
            if not tables:
                db.executescript(f"BEGIN IMMEDIATE; {TABLE} COMMIT;")
            db.executescript(MEMORIES)
        except BaseException:
            db.close()
            raise
        self._opened_at = self._place()
        return db

    def _lost(self, error: Exception) -> LedgerError:
        return LedgerError(f"the ledger of queries cannot be written now ({error})")


def spent(db: sqlite3.Connection, client: str) -> int:
    """Return how many queries a client has used."""
    found = db.execute("SELECT queries FROM used WHERE client = ?", (client,)).fetchone()
    return int(found[0]) if found else 0
