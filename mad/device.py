"""The choice of devices, precision and threads."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mad.environment import SLOT
from mad.errors import MadError, check_number
from mad.progress import err

OLDER = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
"""The values of ONEDNN_MAX_CPU_ISA that keep oneDNN from a CPU's bfloat16 units."""


def choose(name: Any) -> torch.device:
    """Return the device of a name such as ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

    Jobs of one machine that ask for ``auto`` are distributed over its GPUs.

    Raises:
        MadError: if the machine does not have the device.
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
    """Let glibc reuse the memory of freed tensors instead of returning it to the system; called once per process.

    A training step frees and allocates tens of megabytes. By default the kernel clears each of those pages again, which
    takes a seventh of LeNet's training time on a CPU. Does nothing with other C libraries.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    tune = ctypes.CDLL(None).mallopt
    for context, value in ((mmap_threshold, 2**25), (trim_threshold, 2**31 - 1), (top_pad, 2**26)):
        tune(context, value)


def fast_bfloat16(device: torch.device) -> bool:
    """Return whether a device trains faster in bfloat16 than in float32.

    A CPU does if it has bfloat16 units (AVX512-BF16, which every CPU with AMX has) and oneDNN may use them: LeNet is
    then 1.5 times as fast, ``fast_resnet`` 1.7 times. Other CPUs emulate bfloat16 and are 2 to 12 times as slow. CPUs
    other than x86 were not measured; GPUs that support bfloat16 are assumed to be faster with it.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    told: Any = getattr(torch.cpu, "get_capabilities", dict)()  # depends on the version of torch
    units = told.get("avx512_bf16", False) or getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return device.type == "cpu" and bool(units) and torch.backends.mkldnn.is_available() and limit not in OLDER


@functools.cache
def warn_of_emulation(device: torch.device) -> None:
    """Warn on stderr, once per process, that bfloat16 may be slow on this device."""
    err.print(
        f"trainer.precision=bfloat16: this {device.type} has no units for it and may be ten times as slow; "
        "trainer.precision=fast takes it where it is faster",
        soft_wrap=True,
    )


def use_threads(count: Any) -> None:
    """Set the number of CPU threads. It affects the order of some sums, and so the last bits of results.

    Raises:
        MadError: if ``count`` is not a whole number of at least 1.
    """
    check_number("threads", count, 1, whole=True)
    torch.set_num_threads(count)


@contextmanager
def computing(threads: int) -> Iterator[None]:
    """Compute with some CPU threads, and with as many as before afterwards."""
    before = torch.get_num_threads()
    use_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
