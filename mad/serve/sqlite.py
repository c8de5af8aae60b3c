"""A ledger in a SQLite file, which the processes of one machine may share."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from mad.errors import MadError
from mad.serve.book import Found, Item, charged, settled

VERSION = 1  # of the table; 0 is a file that SQLite has just made
PATIENCE = 5.0  # seconds to wait for another process's commit
TABLE = f"""
    CREATE TABLE used (client TEXT PRIMARY KEY, queries INTEGER NOT NULL CHECK (queries >= 0)) WITHOUT ROWID;
    PRAGMA user_version = {VERSION};
"""
MEMORIES = """
    CREATE TABLE IF NOT EXISTS memories (
        client TEXT NOT NULL, defense TEXT NOT NULL, memory TEXT NOT NULL, PRIMARY KEY (client, defense)
    ) WITHOUT ROWID;
"""


class SqliteBook:
    """Counts and memories in a SQLite file, in WAL mode; a commit survives a power cut.

    Args:
        file: it is made if there is none; None keeps them in memory.

    Raises:
        MadError: if the file cannot be used, or is something else.
    """

    error: type[Exception] = sqlite3.Error

    def __init__(self, file: Path | None) -> None:
        self.file, self.new = file, file is None or not file.exists()
        self._only: IO[bytes] | None = None
        try:
            self._db: sqlite3.Connection | None = self._opened()
        except sqlite3.Error as error:
            raise MadError(f"the ledger {file} cannot be used ({error}); set ledger= to another file") from error

    def commit(self, items: Sequence[Item]) -> Found:
        """Write items in one transaction."""
        db = self._connected()
        try:
            db.execute("BEGIN IMMEDIATE")
            before = {client: spent(db, client) for client in charged(items)}
            found, counts, memories = settled(items, before)
            db.executemany("INSERT OR REPLACE INTO used VALUES (?, ?)", counts.items())
            rows = [(*whose, text) for whose, text in memories.items()]
            db.executemany("INSERT OR REPLACE INTO memories VALUES (?, ?, ?)", rows)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return found

    def used(self, client: str) -> int:
        """Return how many queries a client has used."""
        return spent(self._connected(), client)

    def memory(self, client: str, defense: str) -> str | None:
        """Return what a defense last remembered of a client."""
        asked = "SELECT memory FROM memories WHERE client = ? AND defense = ?"
        found = self._connected().execute(asked, (client, defense)).fetchone()
        return None if found is None else str(found[0])

    def alone(self) -> None:
        """Lock a file beside this one, until it is closed or the process ends."""
        if self.file is None:
            return
        file = self.file.with_name(f"{self.file.name}.alone")
        try:
            with contextlib.ExitStack() as stack:
                held = stack.enter_context(file.open("wb"))
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                stack.pop_all()
                self._only = held
        except BlockingIOError as error:
            raise MadError(
                f"another server with the ledger {self.file} is running, and this defense remembers queries in its "
                "own process: serve it once"
            ) from error
        except OSError as error:
            raise MadError(f"{file} cannot be written ({error.strerror}); set ledger= to another file") from error

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            self._db.close()
        if self._only is not None:
            self._only.close()

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
                self.new = True  # also a file that was there, and empty
            db.executescript(MEMORIES)
        except BaseException:
            db.close()
            raise
        self._opened_at = self._place()
        return db


def spent(db: sqlite3.Connection, client: str) -> int:
    """Return how many queries a client has used."""
    found = db.execute("SELECT queries FROM used WHERE client = ?", (client,)).fetchone()
    return int(found[0]) if found else 0
