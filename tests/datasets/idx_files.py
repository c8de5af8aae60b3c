"""Idx files of random images and labels."""

import struct

import numpy as np

COUNTS = {"train": 30, "t10k": 20}


def idx(part, seed, count=None):
    """The bytes of one of MNIST's four files, with random content."""
    count, draw = count or COUNTS[part.split("-")[0]], np.random.default_rng(seed)
    if "labels" in part:
        return struct.pack(">II", 2049, count) + draw.integers(0, 10, count, dtype=np.uint8).tobytes()
    return struct.pack(">IIII", 2051, count, 28, 28) + draw.integers(0, 256, (count, 28, 28), dtype=np.uint8).tobytes()
