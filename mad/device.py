"""Where to compute."""

from __future__ import annotations

from typing import Any

import torch

from mad.errors import MadError


def choose(name: Any) -> torch.device:
    """Return the device of a name such as ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        MadError: if it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = ["cpu", *(["mps"] if torch.backends.mps.is_available() else [])]
    if torch.cuda.is_available():
        there += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if str(name) not in there:
        raise MadError(f"device={name} is not there: choose from auto, {', '.join(there)}")
    return torch.device(str(name))
