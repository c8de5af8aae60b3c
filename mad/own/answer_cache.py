"""A durable cache of a service's answers: one SQLite file a service, one row an image.

An answer is on the disk, synced, before anyone gets to see it. So a run that is killed has lost no answer, and none is
paid for twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from mad.errors import MadError
from mad.storage.files import DamagedError, held, set_aside, unwritable

T = TypeVar("T")
Rows = dict[bytes, np.ndarray]  # an image's key, and its answer as it came: float32 (K,), or (1,) for a label
VERSION = 1  # of the tables; 0 is a file that SQLite has just made
SEAL = 8  # bytes of checksum a row
AT_ONCE = 500  # keys a look-up: older SQLite takes up to 999
PATIENCE = 60.0  # seconds that a process waits for another's commit
TABLES = f"""
    CREATE TABLE answers (key BLOB PRIMARY KEY, answer BLOB NOT NULL, seal BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE pace (one INTEGER PRIMARY KEY CHECK (one = 1), next REAL NOT NULL);
    PRAGMA user_version = {VERSION};
"""


class Answers:
    """The answers of one service. Thread-safe, and shared by the processes of one machine.

    The file is in SQLite's WAL mode, which works on a local disk, or on a network's disk for one machine at a time.

    Args:
        file: the file, made if needed; None keeps the answers in memory, until this process ends.

    Raises:
        MadError: if the file cannot be read or written. A damaged one is set aside, with a line, and begun again.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._lock, self._alone = threading.Lock(), threading.Lock()
        self._db = self._open()

    def __len__(self) -> int:
        """Return how many images have an answer."""
        return self._do(lambda db: db.execute("SELECT count(*) FROM answers").fetchone()[0])

    def known(self, keys: Sequence[bytes]) -> Rows:
        """Return the answers of those keys that have one; a row whose checksum does not hold counts as none."""
        parts = [list(keys[start : start + AT_ONCE]) for start in range(0, len(keys), AT_ONCE)]

        def read(db: sqlite3.Connection) -> Rows:
            found = {}
            for part in parts:
                marks = ",".join("?" * len(part))
                for key, answer, seal in db.execute(f"SELECT * FROM answers WHERE key IN ({marks})", part):
                    if seal == sealed(key, answer):
                        found[key] = np.frombuffer(answer, dtype="<f4")
            return found

        return self._do(read)

    def keep(self, answers: Rows, next_turn: float = 0.0) -> None:
        """Commit answers, synced to the disk, and when the next request may be sent (see ``next_turn``)."""
        content = {key: row.astype("<f4").tobytes() for key, row in answers.items()}
        rows = [(key, answer, sealed(key, answer)) for key, answer in content.items()]

        def write(db: sqlite3.Connection) -> None:
            with db:
                db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)
                db.execute("INSERT OR REPLACE INTO pace VALUES (1, ?)", (next_turn,))

        self._do(write)

    @property
    def next_turn(self) -> float:
        """When the next request may be sent, on the clock of whoever called ``keep`` last; 0 before the first."""
        found = self._do(lambda db: db.execute("SELECT next FROM pace").fetchone())
        return found[0] if found else 0.0

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Let one thread of one process ask at a time, so that what two want to know is paid for once.

        The turn of a process that dies is over.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._alone)
            if self.file is not None:
                self._hold(stack, ".turn")
            yield

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _hold(self, stack: contextlib.ExitStack, kind: str) -> None:
        """Hold a lock beside the file until the stack is left."""
        assert self.file is not None
        try:
            stack.enter_context(held(self.file.with_name(self.file.name + kind)))
        except OSError as error:
            raise unwritable(self.file, error) from error

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what ``work`` makes of the database; if that is damaged, it works on a new one."""
        with self._lock:
            try:
                try:
                    return work(self._db)
                except sqlite3.OperationalError:
                    raise
                except sqlite3.DatabaseError:
                    self._db.close()
                    self._db = self._open()
                    return work(self._db)
            except sqlite3.Error as error:
                raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> MadError:
        return MadError(f"cannot use {self.file} ({error}); make room, or set outputs= to a folder you may write")

    def _open(self) -> sqlite3.Connection:
        """Return the database; what is damaged is set aside first, by one process."""
        if self.file is None:
            return opened(":memory:")
        with contextlib.ExitStack() as stack:
            self._hold(stack, ".lock")
            try:
                try:
                    return opened(str(self.file))
                except sqlite3.OperationalError:
                    raise
                except sqlite3.DatabaseError as error:
                    set_aside(DamagedError(self.file, str(error)))
                for end in ("-wal", "-shm"):  # a new file must not be read with the old one's log
                    with contextlib.suppress(FileNotFoundError):
                        left = self.file.with_name(self.file.name + end)
                        left.replace(left.with_name(f"{self.file.name}.damaged{end}"))
                return opened(str(self.file))
            except sqlite3.Error as error:
                raise self._unusable(error) from error


def opened(file: str) -> sqlite3.Connection:
    """Return a checked SQLite file with the tables of the cache; they are made if the file is new.

    Raises:
        sqlite3.DatabaseError: if the file is damaged, or another program's.
    """
    db = sqlite3.connect(file, timeout=PATIENCE, isolation_level="IMMEDIATE", check_same_thread=False)
    try:
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if tables and version != VERSION:
            raise sqlite3.DatabaseError("it is no cache of answers")
        (sound,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if sound != "ok":
            raise sqlite3.DatabaseError(" ".join(sound.split()))
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut, not only a killed process
        if not tables:
            db.executescript(f"BEGIN IMMEDIATE; {TABLES} COMMIT;")
    except BaseException:
        db.close()
        raise
    return db


def sealed(key: bytes, answer: bytes) -> bytes:
    """Return the checksum of a row: SQLite does not see a bit that flipped inside an answer."""
    return hashlib.sha256(key + answer).digest()[:SEAL]
