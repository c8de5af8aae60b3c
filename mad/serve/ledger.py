"""How many queries each client has used, and what defenses remember of it: exact, and kept across restarts.

A charge is on the disk, synced, before the images are answered. Charges that wait are committed together, by one
thread, so that many clients share the time of a sync.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from mad.errors import MadError
from mad.serve.book import POSTGRES, Book, Charge, Found, Item, Memory

AT_ONCE = 256  # items a commit


class LedgerError(MadError):
    """The ledger cannot be read or written now; nothing was charged, as far as this process knows."""


class Ledger:
    """The used queries of all clients. Thread-safe; several processes may share it.

    Args:
        place: a SQLite file on a local disk, which is made if there is none, for the processes of one machine; or a
            PostgreSQL database, ``postgresql://USER@HOST/NAME``, for those of several. None counts in memory.

    Raises:
        MadError: if it cannot be used, or is something else.
    """

    def __init__(self, place: Path | str | None) -> None:
        self._book = opened(place)
        self._queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)
        self._thread.start()

    @property
    def new(self) -> bool:
        """Whether it was made just now, so that every budget is whole."""
        return self._book.new

    def charge(self, client: str, queries: int, budget: int | None) -> Future[int]:
        """Charge a client, and return a future of how many queries it has used then.

        It raises ``BudgetExceededError`` if fewer are left than are asked for, and ``LedgerError`` if it cannot be
        written; nothing is charged then.
        """
        charge = Charge(client, queries, budget)
        self._queue.put(charge)
        return charge.done

    def used(self, client: str) -> int:
        """Return how many queries a client has used.

        Raises:
            LedgerError: if the ledger cannot be read.
        """
        try:
            with self._lock:
                return self._book.used(client)
        except self._book.error as error:
            raise lost(error) from error

    def remember(self, client: str, defense: str, memory: Any) -> Future[int]:
        """Write down what a defense remembers of a client; return a future of when that is on the disk.

        It raises ``LedgerError`` if it cannot be written. Later calls win.
        """
        item = Memory(client, defense, json.dumps(memory))
        self._queue.put(item)
        return item.done

    def memory(self, client: str, defense: str) -> Any:
        """Return what a defense last remembered of a client; None if it did not.

        Raises:
            LedgerError: if the ledger cannot be read.
        """
        try:
            with self._lock:
                found = self._book.memory(client, defense)
        except self._book.error as error:
            raise lost(error) from error
        return None if found is None else json.loads(found)

    def alone(self) -> None:
        """Let no other process serve with this ledger: the state of a ``stateful`` defense is in this one's memory.

        Raises:
            MadError: if another one does.
        """
        with self._lock:
            self._book.alone()

    def close(self) -> None:
        """Commit what waits, and close the database."""
        self._queue.put(None)
        self._thread.join()
        self._book.close()

    def _work(self) -> None:
        going = True
        while going:
            some = [self._queue.get()]
            while len(some) < AT_ONCE and not self._queue.empty():
                some.append(self._queue.get())
            going = None not in some
            items = [each for each in some if each is not None and each.done.set_running_or_notify_cancel()]
            try:
                with self._lock:
                    found = self._committed(items) if items else []
            except Exception as error:
                for item in items:
                    item.done.set_exception(lost(error))
                continue
            for item, used in zip(items, found, strict=True):
                if isinstance(used, int):
                    item.done.set_result(used)
                else:
                    item.done.set_exception(used)

    def _committed(self, items: Sequence[Item]) -> Found:
        return self._book.commit(items)


def opened(place: Path | str | None) -> Book:
    """Return the database at a place."""
    if isinstance(place, str) and place.startswith(POSTGRES):
        try:
            from mad.serve.postgres import PostgresBook
        except ImportError as error:
            raise MadError("a ledger in PostgreSQL needs psycopg: pip install 'mad[postgres]'") from error
        return PostgresBook(place)
    from mad.serve.sqlite import SqliteBook

    return SqliteBook(None if place is None else Path(place))


def lost(error: Exception) -> LedgerError:
    """Return the error of a ledger that cannot be used now."""
    return LedgerError(f"the ledger of queries cannot be written now ({' '.join(str(error).split())})")
