"""One seed in, one independent seed per purpose out; the global generators are left as they were."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, purpose: str) -> int:
    """Return the 63-bit seed of one purpose ("victim", "pool order", ...); adding a purpose shifts no other."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "big") >> 1


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Draw from torch's global generator as if freshly seeded; restore it afterwards (weight initialisation)."""
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, purpose))
        yield


def generator(seed: int, purpose: str) -> torch.Generator:
    """Return a CPU generator seeded for one purpose."""
    return torch.Generator().manual_seed(derive(seed, purpose))
