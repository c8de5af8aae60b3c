"""What an owner says about a server."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from mad.errors import MadError, check_flag, check_name, check_number
from mad.serve.book import POSTGRES


@dataclass(frozen=True)
class Settings:
    """Settings of a server; none changes an answer but ``shadow``.

    Args:
        host: the address to listen on. Any other than this machine's own needs ``clients``, or ``open``.
        port: of REST; 0 for a free one.
        grpc_port: of gRPC; 0 for a free one, None for no gRPC.
        name: of the model in addresses, ``/v2/models/NAME``; None for the victim's.
        clients: the file of the clients' keys; None for one client without a key.
        ledger: the queries that each client has used: a SQLite file, or for the servers of several machines a
            PostgreSQL database, ``postgresql://USER@HOST/NAME``; None for a file beside ``clients``.
        audit: the audit log; None for a file beside ``clients``.
        open: whether anybody may ask without a key from another machine.
        shadow: whether answers stay clean; what the defense would have answered is only measured.
        check: whether to compare answers with the benchmark's before a port is opened.
        refuse_flagged: whether a client that the defense holds for a thief is refused, with HTTP 429; else it gets the
            defense's answers, and is not told.
        max_images: the most images of a request.
        max_bytes: the most bytes of a request's body.
        waiting: the most images that wait for an answer; a request beyond them is refused with HTTP 503.
        timeout: seconds for a request's body to arrive, and again for its answer.
        linger: the most seconds that a request waits for others, to be answered with them.
        connections: the most connections at a time.
        audit_bytes: size of an audit log that is closed, and a new one begun.
        audit_files: how many closed ones are kept.

    Raises:
        MadError: if a setting is not of this kind.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int | None = 8081
    name: str | None = None
    clients: str | None = None
    ledger: str | None = None
    audit: str | None = None
    open: bool = False
    shadow: bool = False
    check: bool = False
    refuse_flagged: bool = False
    max_images: int = 256
    max_bytes: int = 64_000_000
    waiting: int = 4096
    timeout: float = 30.0
    linger: float = 0.0
    connections: int = 1024
    audit_bytes: int = 100_000_000
    audit_files: int = 10

    def __post_init__(self) -> None:
        if not isinstance(self.host, str) or not self.host or not self.host.isprintable():
            raise MadError(f"host must be an address such as 127.0.0.1 or 0.0.0.0, got {self.host!r}")
        check_number("port", self.port, 0, 65535, whole=True)
        if self.grpc_port is not None:
            check_number("grpc_port", self.grpc_port, 0, 65535, whole=True)
            if self.grpc_port == self.port != 0:
                raise MadError(f"grpc_port must be another port than port, got {self.port} for both")
        if self.name is not None:
            check_name("name", self.name)
        for each in ("clients", "ledger", "audit"):
            value = getattr(self, each)
            if value is not None and (not isinstance(value, str) or not value):
                raise MadError(f"{each} must be the path of a file, got {value!r}")
        if self.ledger is not None and "://" in self.ledger and not self.ledger.startswith(POSTGRES):
            raise MadError("ledger must be a file, or a database such as postgresql://USER@HOST/NAME")
        for each in ("open", "shadow", "check", "refuse_flagged"):
            check_flag(each, getattr(self, each))
        for each, least in (
            ("max_images", 1),
            ("max_bytes", 1000),
            ("waiting", 1),
            ("connections", 1),
            ("audit_bytes", 1000),
        ):
            check_number(each, getattr(self, each), least, whole=True)
        check_number("audit_files", self.audit_files, 1, whole=True)
        check_number("timeout", self.timeout, 0.01, 3600)
        check_number("linger", self.linger, 0, 10)
        if self.waiting < self.max_images:
            raise MadError(f"waiting must be at least max_images={self.max_images}, got {self.waiting}")
        if self.clients is None and not self.open and not loopback(self.host):
            raise MadError(
                f"host={self.host} can be reached from other machines: set clients=FILE, which mad-serve add-client "
                "makes, or open=true to let anybody ask"
            )

    def ledger_place(self) -> Path | str | None:
        """Return the ledger's file, or its address; None to count in memory."""
        return self.ledger if self.ledger is not None and "://" in self.ledger else self.beside(self.ledger, ".ledger")

    def beside(self, given: str | None, ending: str) -> Path | None:
        """Return a file's path: as given, or beside the clients' file; None without either."""
        if given is not None:
            return Path(given).expanduser()
        return None if self.clients is None else Path(self.clients).expanduser().with_suffix(ending)


def loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
