"""Keeps what was loaded of a data set or pool for equal ones, while the files that their fields name do not change."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from mad.cache import Cache
from mad.datasets.content import place
from mad.errors import MadError

T = TypeVar("T")
ENTRIES = 1000  # of a folder, whose changes are noticed
KEPT = Cache()


def cached(part: Any, what: str, make: Callable[[], T]) -> T:
    """Return the result of ``make`` for a part and the key ``what``; it is cached in this process.

    Equal parts share results while the files that their fields name do not change. Results of a part with a method
    ``contents`` are not cached here.
    """
    if hasattr(part, "contents"):
        return make()
    fields = {"": part}
    if dataclasses.is_dataclass(part):
        fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    if not plain(list(fields.values())):
        return KEPT.get((id(part), what), lambda: (part, make()))[1]  # holds the part, to keep its id unique
    return KEPT.get((type(part), repr(fields), str(list(stamps(list(fields.values())))), what), make)


def plain(value: Any) -> bool:
    """Return whether a value is made of numbers, strings, paths and containers only, so that its repr identifies it."""
    if isinstance(value, (list, tuple, dict)):
        return all(map(plain, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, (bool, int, float, str, Path))


def stamps(value: Any) -> Iterator[tuple[int, ...]]:
    """Yield size, modification time and inode of the files and folders that a value names, and of folders' entries."""
    if isinstance(value, (list, tuple, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from stamps(one)
    elif isinstance(value, (str, Path)):
        with contextlib.suppress(OSError, ValueError, MadError):
            there = place(value)
            for file in [there, *(sorted(islice(there.iterdir(), ENTRIES)) if there.is_dir() else [])]:
                found = file.stat()
                yield (found.st_size, found.st_mtime_ns, found.st_ino)
