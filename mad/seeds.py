"""Independent seeds, one per purpose, derived from a cell's seed; global generators keep their state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, purpose: str) -> int:
    """Return the 63-bit seed of a purpose such as "victim" or "pool order"; a new purpose changes no other seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "big") >> 1


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Seed torch's global generator for the block, such as for initial weights, and restore its state afterwards."""
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        with torch.random.fork_rng():
            torch.manual_seed(derive(seed, purpose))
            yield
        return
    state = torch.get_rng_state()  # torch's own functions take 200 times as long, over devices that are not there
    torch.default_generator.manual_seed(derive(seed, purpose))
    try:
        yield
    finally:
        torch.set_rng_state(state)


def generator(seed: int, purpose: str) -> torch.Generator:
    """Return a CPU generator seeded for one purpose."""
    return torch.Generator().manual_seed(derive(seed, purpose))
