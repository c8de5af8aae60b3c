"""Where to compute."""

from __future__ import annotations

import os
from typing import Any

import torch

from mad.engines import SLOT
from mad.errors import MadError, number


def choose(name: Any) -> torch.device:
    """Return the device of a name such as ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

    The jobs that share a machine share out its GPUs among those that say ``auto``.

    Raises:
        MadError: if it is not there.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get(SLOT, 0)) % torch.cuda.device_count())
    there = ["cpu", *(["mps"] if torch.backends.mps.is_available() else [])]
    if torch.cuda.is_available():
        there += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if str(name) not in there:
        raise MadError(f"device={name} is not there: choose from auto, {', '.join(there)}")
    return torch.device(str(name))


def use_threads(count: Any) -> None:
    """Compute with this many CPU threads. Their number decides the order of some sums, and so the last bits.

    Raises:
        MadError: if it is no whole number of at least 1.
    """
    number("threads", count, 1, whole=True)
    torch.set_num_threads(count)
