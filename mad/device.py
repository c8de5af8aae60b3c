"""Where to compute."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
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


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors instead of returning it to the system: once a process, CPU only.

    A training step frees and takes tens of megabytes; by default the kernel clears each of those pages anew, a
    seventh of LeNet's training time. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    tune = ctypes.CDLL(None).mallopt
    for setting, value in ((mmap_threshold, 2**25), (trim_threshold, 2**31 - 1), (top_pad, 2**26)):
        tune(setting, value)


def use_threads(count: Any) -> None:
    """Compute with this many CPU threads. Their number decides the order of some sums, and so the last bits.

    Raises:
        MadError: if it is no whole number of at least 1.
    """
    number("threads", count, 1, whole=True)
    torch.set_num_threads(count)
