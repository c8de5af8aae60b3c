"""Where to compute."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from typing import Any

import torch

from mad.environment import SLOT
from mad.errors import MadError, check_number
from mad.progress import err

OLDER = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
"""The values of ONEDNN_MAX_CPU_ISA that keep oneDNN from a CPU's bfloat16 units."""


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
    for context, value in ((mmap_threshold, 2**25), (trim_threshold, 2**31 - 1), (top_pad, 2**26)):
        tune(context, value)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether a device trains faster in bfloat16 than in float32.

    A CPU does if it has units for it (AVX512-BF16, without which there is no AMX either) and oneDNN may use them:
    LeNet 1.5 times, ``fast_resnet`` 1.7 times as fast; others emulate it and are 2 to 12 times as slow. CPUs other than
    x86 were not measured, and GPUs that have it are taken on trust.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    told: Any = getattr(torch.cpu, "get_capabilities", dict)()  # versions of torch differ in whom they let ask
    units = told.get("avx512_bf16", False) or getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return device.type == "cpu" and bool(units) and torch.backends.mkldnn.is_available() and limit not in OLDER


@functools.cache
def warn_of_emulation(device: torch.device) -> None:
    """Say, once a process, that bfloat16 was asked for where it is slow or not known to be fast."""
    err.print(
        f"trainer.precision=bfloat16: this {device.type} has no units for it and may be ten times as slow; "
        "trainer.precision=fast takes it where it is faster",
        soft_wrap=True,
    )


def use_threads(count: Any) -> None:
    """Compute with this many CPU threads. Their number decides the order of some sums, and so the last bits.

    Raises:
        MadError: if it is no whole number of at least 1.
    """
    check_number("threads", count, 1, whole=True)
    torch.set_num_threads(count)
