"""Who may ask: keys, of which only hashes are kept, and each client's limits."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mad.errors import MadError, check_flag, check_name, check_number
from mad.storage.files import held, write

KEY = re.compile(r"mad-([0-9a-f]{12})-([\w-]{43})")
FAILURES = 5.0  # a second: wrong secrets of one client whose hash is computed; it takes some ten milliseconds
MAKE_ONE = "mad-serve add-client NAME clients=FILE makes one"


@dataclass(frozen=True)
class Client:
    """A client and its limits.

    Args:
        id: 12 hexadecimal digits, part of the key; no secret.
        name: what the owner calls it, unique; it stands in the audit log.
        hash: the argon2 hash of the key's secret.
        budget: queries in all, one an image; None for no limit.
        rate: requests a second; None for no limit.
        operator: whether the key also reads ``/metrics``.
    """

    id: str
    name: str
    hash: str
    budget: int | None = None
    rate: float | None = None
    operator: bool = False

    def __post_init__(self) -> None:
        check_name("a client's name", self.name)
        if not isinstance(self.id, str) or not re.fullmatch(r"[0-9a-f]{12}|anyone", self.id):
            raise MadError(f"client {self.name}: its id must be 12 hexadecimal digits")
        if not isinstance(self.hash, str):
            raise MadError(f"client {self.name}: its hash must be what mad-serve add-client wrote")
        if self.budget is not None:
            check_number("budget", self.budget, 0, whole=True)
        if self.rate is not None:
            check_number("rate", self.rate, 0.001, 1e6)
        check_flag("operator", self.operator)

    @property
    def label(self) -> str:
        """The name in metrics: a hash of the id."""
        return hashlib.sha256(self.id.encode()).hexdigest()[:12]


ANYONE = Client("anyone", "anyone", "", operator=True)  # where no keys are asked for


class Bucket:
    """At most ``rate`` turns a second, and as many at once, but at least one. Thread-safe."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self._most, self._clock = rate, max(1.0, rate), clock
        self._left, self._at, self._lock = self._most, clock(), threading.Lock()

    def take(self) -> float:
        """Take a turn and return 0, or return the seconds until there is one."""
        with self._lock:
            now = self._clock()
            self._left = min(self._most, self._left + (now - self._at) * self.rate)
            self._at = now
            if self._left < 1:
                return (1 - self._left) / self.rate
            self._left -= 1
            return 0.0


class Clients:
    """The clients of a file, which is read again when it changes. Thread-safe.

    Args:
        file: what ``add`` wrote; None if anyone may ask.
        tell: given a line, once, if a changed file cannot be read.

    Raises:
        MadError: if the file cannot be read, or argon2 is not installed.
    """

    def __init__(self, file: Path | None, tell: Callable[[str], object] = str) -> None:
        self._file, self._lock, self._stamp = file, threading.Lock(), (0, 0)
        self._tell, self._told = tell, ""
        self._known: dict[str, Client] = {}
        self._secret, self._seen = secrets.token_bytes(32), dict[str, tuple[str, bytes]]()
        self._failures: dict[str, Bucket] = {}
        self._verify = None if file is None else hasher()
        if file is not None:
            self._refresh()

    def of(self, header: str | None) -> Client | None:
        """Return the client of an ``Authorization`` header; None for nobody's.

        The secret of a key is hashed once; later its keyed digest is compared, in constant time.

        Raises:
            MadError: if too many wrong secrets came for this client: try again later.
        """
        if self._file is None:
            return ANYONE
        self._refresh()
        scheme, _, key = (header or "").partition(" ")
        parts = KEY.fullmatch(key.strip()) if scheme.lower() == "bearer" else None
        client = self._known.get(parts[1]) if parts else None
        if parts is None or client is None:
            return None
        digest = hmac.digest(self._secret, parts[2].encode(), "sha256")
        seen = self._seen.get(client.id)
        if seen is not None and seen[0] == client.hash and hmac.compare_digest(seen[1], digest):
            return client
        return client if self._right(client, parts[2], digest) else None

    def _right(self, client: Client, secret: str, digest: bytes) -> bool:
        """Return whether a secret is the client's, by its hash."""
        with self._lock:
            bucket = self._failures.setdefault(client.id, Bucket(FAILURES))
        if bucket.take():
            raise MadError("too many keys were tried for this client: wait a second")
        assert self._verify is not None
        from argon2.exceptions import Argon2Error, InvalidHashError

        try:
            self._verify.verify(client.hash, secret)
        except (Argon2Error, InvalidHashError):
            return False
        self._seen[client.id] = client.hash, digest
        return True

    def all(self) -> list[Client]:
        """Return all clients."""
        return [*self._known.values()] if self._file is not None else [ANYONE]

    def _refresh(self) -> None:
        """Read the file if it has changed; a file that cannot be read now leaves the clients as they are."""
        assert self._file is not None
        with self._lock:
            try:
                found = self._file.stat()
                stamp = (found.st_mtime_ns, found.st_size)
                if stamp != self._stamp:
                    self._known = {client.id: client for client in read(self._file)}
                    self._stamp = stamp
                self._told = ""
            except (MadError, OSError) as error:
                why = str(error) if isinstance(error, MadError) else f"{self._file}: {error.strerror}; {MAKE_ONE}"
                if self._stamp == (0, 0):
                    raise MadError(f"clients: {why}") from error
                if why != self._told:  # an owner who took a key out must know that it still opens
                    self._told = why
                    self._tell(f"the clients stay as they were: {why}")


def read(file: Path) -> list[Client]:
    """Return the clients of a file.

    Raises:
        MadError: if it is no such file.
    """
    try:
        found: Any = json.loads(file.read_text())
        clients = [Client(**each) for each in found["clients"]]
    except (ValueError, KeyError, TypeError) as error:
        raise MadError(f"{file} is no file of clients ({error}): {MAKE_ONE}") from error
    except OSError as error:
        raise MadError(f"{file} cannot be read ({error.strerror}): {MAKE_ONE}") from error
    for part in ("id", "name"):
        if len({getattr(each, part) for each in clients}) < len(clients):
            raise MadError(f"{file} has two clients of one {part}: remove one")
    return clients


def add(file: Path, name: str, budget: int | None = None, rate: float | None = None, operator: bool = False) -> str:
    """Add a client to a file, which is made if there is none, and return its key. The key is kept nowhere.

    A file that is there keeps its owner and its permissions, so that a server of another user can go on reading it.

    Raises:
        MadError: if there is a client of this name, or if the file cannot be written.
    """
    file = file.resolve()  # not a link to it, which the server may know it by
    secret, number = secrets.token_urlsafe(32), secrets.token_hex(6)
    client = Client(number, name, hasher().hash(secret), budget, rate, operator)
    try:
        with held(file.with_name(f".{file.name}.lock")):
            clients = read(file) if file.exists() else []
            if any(each.name == name for each in clients):
                raise MadError(f"{file} has a client {name}: choose another name, or remove that one")
            before = file.stat() if file.exists() else None
            content = {"clients": [asdict(each) for each in (*clients, client)]}
            write(file, json.dumps(content, indent=2).encode())
            if before is not None:
                with contextlib.suppress(OSError):  # only root may give a file away
                    os.chown(file, before.st_uid, before.st_gid)
            os.chmod(file, 0o600 if before is None else stat.S_IMODE(before.st_mode))
    except (OSError, MadError) as error:
        problem = error if isinstance(error, OSError) else error.__cause__
        if isinstance(problem, OSError):
            raise MadError(f"{file} cannot be written ({problem.strerror}): name another, clients=FILE") from error
        raise
    return f"mad-{number}-{secret}"


def hasher() -> Any:
    """Return argon2's hasher, with the memory and passes that OWASP names for it.

    Raises:
        MadError: if it is not installed.
    """
    try:
        from argon2 import PasswordHasher
    except ImportError as error:
        raise MadError("keys need argon2-cffi: pip install 'mad[serve]'") from error
    return PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
