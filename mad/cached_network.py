"""A network with cached logits: the same network runs only once on the same batch, which changes no result."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from mad.cache import Cache
from mad.storage.fingerprint import describe, digest


class CachedNetwork(nn.Module):
    """A frozen network, images (B, C, H, W) to logits (B, K), that runs once on each batch.

    The cache is bypassed when logits are not enough or depend on more than weights and pixels: in train mode, when
    gradients are recorded, when modules have hooks, and after weights were changed in place. It is also bypassed on
    accelerators, where a forward pass costs less than copying the batch to hash it.

    Args:
        network: the network, in eval mode.
        about: the architecture, which together with the weights determines the network's function; see ``describe``.
        cache: holds the logits.
    """

    def __init__(self, network: nn.Module, about: Any, cache: Cache) -> None:
        super().__init__()
        content = hashlib.sha256(digest(describe(about)).encode())
        for name, value in network.state_dict().items():
            content.update(f"{name} {value.dtype} {tuple(value.shape)} {value.stride()}".encode())
            content.update(pixels(value))
        self.network, self._name, self._cache = network, content.digest(), cache
        self._fresh = self._versions()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, K), from the cache if possible."""
        if not self._cache.on or images.device.type != "cpu" or torch.is_grad_enabled() or not self._frozen():
            return self.network(images)
        layout = (images.dtype, images.shape, images.stride())
        key = (self._name, layout, hashlib.sha256(pixels(images)).digest())
        return self._cache.get(key, lambda: self.network(images)).clone()

    def _frozen(self) -> bool:
        seen = any(net.training or net._forward_hooks or net._forward_pre_hooks for net in self.network.modules())
        return not seen and self._versions() == self._fresh

    def _versions(self) -> list[tuple[int, int]]:
        held = itertools.chain(self.network.parameters(), self.network.buffers())
        return [(value.data_ptr(), value._version) for value in held]


def pixels(values: Tensor) -> memoryview:
    """Return the bytes of a tensor, in row-major order; copies it only if it is not contiguous or not on the CPU."""
    return values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
