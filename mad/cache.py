"""A cache in memory, which the cells of one process share; its results do not depend on the defense's epsilon."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
LIMIT = 512 * 2**20


class Cache:
    """A least-recently-used cache of up to ``limit`` bytes of tensors. Thread-safe."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()
        self.limit, self.bytes, self.pauses = limit, 0, 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Make ``CachedNetwork`` bypass the cache: hashing images does not pay if they are queried only once."""
        with self._lock:
            self.pauses += 1
        try:
            yield
        finally:
            with self._lock:
                self.pauses -= 1

    @property
    def on(self) -> bool:
        """Whether no ``paused`` block is open."""
        return not self.pauses

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the value of ``key``, or make and cache it. The caller must not change the value."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()  # outside the lock: at worst two threads make the same value
        size = weight(made)
        with self._lock:
            if key not in self._kept and size <= self.limit:
                self._kept[key] = made
                self.bytes += size
            while self.bytes > self.limit:
                self.bytes -= weight(self._kept.popitem(last=False)[1])
        return made


def weight(value: Any) -> int:
    """Return the bytes of a tensor or of a tuple of tensors; 0 for other values."""
    return sum(map(weight, value)) if isinstance(value, tuple) else getattr(value, "nbytes", 0)
