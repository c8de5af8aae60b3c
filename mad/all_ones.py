"""The derivative of a network's logits when all its weights grow alike, faster than for any other direction.

If every weight of a convolution or a linear layer grows at rate 1, its output at a place grows by the sum of the inputs
there, the same for every channel, and by 1 for its bias: a box filter in place of a convolution. The rest is
forward-mode differentiation as in ``directional``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.autograd.forward_ad as forward_mode
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode


def boxed(network: nn.Module) -> set[str]:
    """Return the names of the parameters of layers with a box filter that share none with another layer."""
    owned = {prefix: dict(layer.named_parameters(recurse=False)) for prefix, layer in network.named_modules()}
    uses = Counter(id(value) for own in owned.values() for value in own.values())
    return {
        f"{prefix}.{name}".lstrip(".")
        for prefix, layer in network.named_modules()
        if plain(layer) and all(uses[id(value)] == 1 for value in owned[prefix].values())
        for name in owned[prefix]
    }


def plain(layer: nn.Module) -> bool:
    """Return whether a layer is linear, or a convolution of one group without dilation."""
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and layer.dilation == (1, 1) and not isinstance(layer.padding, str)
    return type(layer) is nn.Linear


def slope(network: nn.Module, weights: Mapping[str, Tensor], names: set[str], images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits and their derivative, (B, K) each.

    Args:
        network: images to logits.
        weights: all its parameters by name, detached.
        names: those of layers with a box filter; see ``boxed``.
        images: (B, C, H, W).
    """
    fixed = {id(value) for name, value in network.named_parameters() if name in names}
    with torch.no_grad(), forward_mode.dual_level():
        others = {
            name: forward_mode.make_dual(value, torch.ones_like(value))
            for name, value in weights.items()
            if name not in names
        }
        with Boxes(fixed):
            found = forward_mode.unpack_dual(functional_call(network, others, (images,)))
        # No layer may have made a derivative at all, such as in a network of no weights.
        return found.primal, torch.zeros_like(found.primal) if found.tangent is None else found.tangent


class Boxes(TorchFunctionMode):
    """Adds the derivatives of layers with a box filter, whose weights are those with the given ids."""

    def __init__(self, fixed: set[int]) -> None:
        super().__init__()
        self.fixed = fixed

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function; of a layer with a box filter, return its output with the derivative."""
        if function not in (F.linear, F.conv2d) or kwargs or id(args[1]) not in self.fixed:
            return function(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():
            x, moved = forward_mode.unpack_dual(args[0])
            output = function(x, *args[1:])
            if function is F.linear:
                gain = x.sum(dim=-1, keepdim=True)
            else:
                stride, padding = args[3], args[4]
                gain = box(x, args[1].shape[2:], stride, padding)
            if args[2] is not None:
                gain = gain + 1
            if moved is None:
                tangent = torch.empty_like(output).copy_(gain.expand_as(output))
            else:
                tangent = function(moved, args[1], None, *args[3:]).add_(gain)
            return forward_mode.make_dual(output, tangent)


def box(x: Tensor, size: torch.Size, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """Return the sum of all channels of x (B, C, H, W) over each window, (B, 1, h, w)."""
    total = F.pad(x.sum(dim=1, keepdim=True), (padding[1], padding[1], padding[0], padding[0]))
    rows = F.avg_pool2d(total, (size[0], 1), (stride[0], 1), divisor_override=1)
    return F.avg_pool2d(rows, (1, size[1]), (1, stride[1]), divisor_override=1)
