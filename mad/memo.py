"""What the cells of a sweep share: results that depend on no epsilon, kept in this process's memory.

A forward pass of the same network over the same batch gives the same bits, so remembering one changes no number.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mad.fingerprint import describe, digest

T = TypeVar("T")
LIMIT = 512 * 2**20


class Memo:
    """Keeps what was used last, up to ``limit`` bytes of tensors. Safe to call from many threads."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()
        self.limit, self.bytes = limit, 0

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


def identity(part: Any) -> str:
    """Return the name of a part of an experiment and of where it lies: paths matter to what can be loaded."""
    fields = dataclasses.fields(part) if dataclasses.is_dataclass(part) else ()
    places = {field.name: repr(getattr(part, field.name)) for field in fields if not field.compare}
    return digest([describe(part), places])


class Remembered(nn.Module):
    """A frozen network, images (B, C, H, W) to logits (B, K), that runs once over each batch.

    It stands aside, and the network runs, where an answer is more than a function of weights and pixels: in train
    mode, where gradients are recorded, where hooks want to see inside. It also does on accelerators, whose forward
    pass costs less than fetching the batch to hash it. Weights that were changed in place are noticed.

    Args:
        network: in eval mode.
        about: with the weights, what determines the network's function; see ``describe``.
        memo: where logits are kept.
    """

    def __init__(self, network: nn.Module, about: Any, memo: Memo) -> None:
        super().__init__()
        content = hashlib.sha256(digest(describe(about)).encode())
        for name, value in network.state_dict().items():
            content.update(f"{name} {value.dtype} {tuple(value.shape)} {value.stride()}".encode())
            content.update(pixels(value))
        self.network, self._name, self._memo = network, content.digest(), memo
        self._fresh = self._versions()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, computed now or before."""
        if images.device.type != "cpu" or torch.is_grad_enabled() or not self._frozen():
            return self.network(images)
        layout = (images.dtype, images.shape, images.stride())
        key = (self._name, layout, hashlib.sha256(pixels(images)).digest())
        return self._memo.get(key, lambda: self.network(images)).clone()

    def _frozen(self) -> bool:
        seen = any(net.training or net._forward_hooks or net._forward_pre_hooks for net in self.network.modules())
        return not seen and self._versions() == self._fresh

    def _versions(self) -> list[tuple[int, int]]:
        held = itertools.chain(self.network.parameters(), self.network.buffers())
        return [(value.data_ptr(), value._version) for value in held]


def pixels(values: Tensor) -> memoryview:
    """Return a tensor's bytes, in order; copied only where it is not contiguous."""
    return values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
