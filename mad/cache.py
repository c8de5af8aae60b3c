"""What the cells of one process share: results that depend on no epsilon, kept in its memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
LIMIT = 512 * 2**20


class Cache:
    """Keeps what was used last, up to ``limit`` bytes of tensors. Safe to call from many threads."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()
        self.limit, self.bytes, self.on = limit, 0, True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let networks run: images that are not asked about twice are not worth hashing."""
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what is kept under ``key``, or make and keep it; nobody may change what is returned."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()  # outside the lock: at worst two threads make the same
        size = weight(made)
        with self._lock:
            if key not in self._kept and size <= self.limit:
                self._kept[key] = made
                self.bytes += size
            while self.bytes > self.limit:
                self.bytes -= weight(self._kept.popitem(last=False)[1])
        return made


def weight(value: Any) -> int:
    """Return the bytes of a tensor, or of a tuple of tensors."""
    return sum(map(weight, value)) if isinstance(value, tuple) else getattr(value, "nbytes", 0)
