"""A ledger in a PostgreSQL database, which the servers of several machines may share."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg.conninfo import conninfo_to_dict

from mad.errors import MadError
from mad.serve.book import Found, Item, charged, settled

PATIENCE = 5  # seconds to wait for the server, and for another process's commit
TABLES = """
    CREATE TABLE mad_used (client text PRIMARY KEY, queries bigint NOT NULL CHECK (queries >= 0));
    CREATE TABLE mad_memories (
        client text NOT NULL, defense text NOT NULL, memory text NOT NULL, PRIMARY KEY (client, defense)
    );
"""
START, ONLY = 7_046_001, 7_046_002  # keys of advisory locks: making the tables, and a server that must be the only one


class PostgresBook:
    """Counts and memories in two tables, ``mad_used`` and ``mad_memories``, which are made if there are none.

    Args:
        url: ``postgresql://USER@HOST/NAME``; the password may also come from PGPASSWORD or a file, as for psql.

    Raises:
        MadError: if the database cannot be used.
    """

    error: type[Exception] = psycopg.Error

    def __init__(self, url: str) -> None:
        self._url, self._alone = url, False
        try:
            known = conninfo_to_dict(url)
            self._named = f"{known.get('host') or 'localhost'}/{known.get('dbname') or ''}"  # without a password
            self._db = self._opened()
            with self._db.transaction():
                self._db.execute("SELECT pg_advisory_xact_lock(%s)", (START,))
                self.new = not self._there()
                if self.new:
                    self._db.execute(TABLES)
        except psycopg.Error as error:
            said = " ".join(str(error).split())
            raise MadError(f"the ledger in PostgreSQL cannot be used ({said}); see ledger=") from error

    def commit(self, items: Sequence[Item]) -> Found:
        """Write items in one transaction, which holds the rows of its clients."""
        db, clients = self._connected(), charged(items)
        with db.transaction(), db.cursor() as cursor:
            before: dict[str, int] = {}
            if clients:
                each = [(client,) for client in clients]
                cursor.executemany("INSERT INTO mad_used VALUES (%s, 0) ON CONFLICT DO NOTHING", each)
                held = "SELECT client, queries FROM mad_used WHERE client = ANY(%s) ORDER BY client FOR UPDATE"
                before = {str(client): int(queries) for client, queries in cursor.execute(held, (clients,)).fetchall()}
            found, counts, memories = settled(items, before)
            cursor.executemany(
                "UPDATE mad_used SET queries = %s WHERE client = %s",
                [(queries, client) for client, queries in counts.items()],
            )
            cursor.executemany(
                "INSERT INTO mad_memories VALUES (%s, %s, %s) "
                "ON CONFLICT (client, defense) DO UPDATE SET memory = excluded.memory",
                [(*whose, text) for whose, text in sorted(memories.items())],
            )
        return found

    def used(self, client: str) -> int:
        """Return how many queries a client has used."""
        row = self._connected().execute("SELECT queries FROM mad_used WHERE client = %s", (client,)).fetchone()
        return 0 if row is None else int(row[0])

    def memory(self, client: str, defense: str) -> str | None:
        """Return what a defense last remembered of a client."""
        asked = "SELECT memory FROM mad_memories WHERE client = %s AND defense = %s"
        row = self._connected().execute(asked, (client, defense)).fetchone()
        return None if row is None else str(row[0])

    def alone(self) -> None:
        """Take an advisory lock. It ends with the connection, and a new connection takes it again.

        Raises:
            MadError: if another server has it.
        """
        self._alone = True
        if not self._locked(self._connected()):
            raise MadError(
                f"another server with the ledger {self._named} is running, and this defense remembers queries in its "
                "own process: serve it once"
            )

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def _connected(self) -> psycopg.Connection[tuple[object, ...]]:
        """Return the connection, a new one if it was lost. Lost tables are not made anew: that restores budgets."""
        if self._db.closed or self._db.broken:
            self._db = self._opened()
            if not self._there() or (self._alone and not self._locked(self._db)):
                self._db.close()
                raise psycopg.DatabaseError("its tables are gone, or another server has taken it over")
        return self._db

    def _opened(self) -> psycopg.Connection[tuple[object, ...]]:
        db = psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=PATIENCE,
            application_name="mad-serve",
            tcp_user_timeout=1000 * PATIENCE,
        )
        db.execute(f"SET statement_timeout = '{PATIENCE}s'")
        return db

    def _there(self) -> bool:
        row = self._db.execute("SELECT to_regclass('mad_used')").fetchone()
        return row is not None and row[0] is not None

    @staticmethod
    def _locked(db: psycopg.Connection[tuple[object, ...]]) -> bool:
        row = db.execute("SELECT pg_try_advisory_lock(%s)", (ONLY,)).fetchone()
        return row is not None and bool(row[0])
