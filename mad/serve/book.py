"""What a ledger writes down, and what its database must be able to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from mad.errors import BudgetExceededError

POSTGRES = ("postgresql://", "postgres://")  # how the address of a database begins


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


Item = Charge | Memory
Found = list[int | BudgetExceededError]


class Book(Protocol):
    """A database of a ledger. Its methods raise ``error`` if it cannot be used now; one thread at a time calls them.

    Attributes:
        error: the class of its errors.
        new: whether it was made just now.
    """

    error: type[Exception]
    new: bool

    def commit(self, items: Sequence[Item]) -> Found:
        """Write items in one transaction; return what ``settled`` found."""

    def used(self, client: str) -> int:
        """Return how many queries a client has used."""

    def memory(self, client: str, defense: str) -> str | None:
        """Return what a defense last remembered of a client."""

    def alone(self) -> None:
        """Take a lock that one process at a time can have, and keep it.

        Raises:
            MadError: if another process has it.
        """

    def close(self) -> None:
        """Close it."""


def settled(
    items: Sequence[Item], before: Mapping[str, int]
) -> tuple[Found, dict[str, int], dict[tuple[str, str], str]]:
    """Return what becomes of items in order: how many queries are used after each, 0 for a memory, or the refusal;
    the counts that changed, and the last memory of each client and defense.

    Args:
        items: charges and memories.
        before: how many queries the clients of the charges have used.
    """
    found: Found = []
    counts: dict[str, int] = {}
    memories: dict[tuple[str, str], str] = {}
    for item in items:
        if isinstance(item, Memory):
            memories[item.client, item.defense] = item.text
            found.append(0)
            continue
        used = counts.get(item.client, before[item.client])
        if item.budget is not None and used + item.queries > item.budget:
            left = max(0, item.budget - used)
            found.append(BudgetExceededError(f"{item.queries} queries asked for, {left} of {item.budget} left"))
            continue
        counts[item.client] = used + item.queries
        found.append(used + item.queries)
    return found, counts, memories


def charged(items: Sequence[Item]) -> list[str]:
    """Return the clients of charges, sorted, so that two processes that lock their rows do not wait for each other."""
    return sorted({item.client for item in items if isinstance(item, Charge)})
