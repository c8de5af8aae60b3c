"""How fast each class's log-likelihood grows when all weights of a network move in one direction.

Let G (K x D) hold the gradients of one image's log-posteriors with respect to the D weights. The derivatives in a
direction z are the K numbers G z. G is never formed: forward-mode differentiation carries the derivative of every
layer's output along with the output, for a whole batch, at the cost of two to three further forward passes. A network
with a layer that torch cannot differentiate forward takes two backward passes a batch instead: G z is the derivative of
a^T G z with respect to a.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from mad import all_ones
from mad.all_ones import boxed
from mad.errors import MadError
from mad.gradients import RECORDING

ROUNDING = 1e-5  # derivatives of the logits that differ by less than this share of the largest one are equal
AT_ONCE = 64  # images whose graph is held at once where two backward passes are taken


class Directional(nn.Module):
    """A network that answers images (B, C, H, W) with the derivatives of its log-posteriors in a direction, (B, K).

    A row is exactly zero where the derivatives of all logits are equal but for rounding: there the direction changes
    no posterior.

    Args:
        network: images to logits (B, K), in eval mode. Its current weights count, also if they change later.
        sample: images (N, C, H, W) on the network's device, to find out how the network can be differentiated.
        direction: the direction, a tensor for each parameter by its name; None for all ones.

    Raises:
        MadError: if torch differentiates a layer of the network neither forward nor twice backward.
    """

    def __init__(self, network: nn.Module, sample: Tensor, direction: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.network = network.eval()
        self._names = [name for name, _ in network.named_parameters()]
        if direction is not None:  # buffers, so that it is kept and exported with the network
            for number, name in enumerate(self._names):
                self.register_buffer(f"z{number}", direction[name].detach().clone())
        self._given = direction is not None
        self.eval()
        self._boxed = set() if self._given else boxed(network)
        self._forward_mode = True
        try:
            with warnings.catch_warnings():  # the first jvp of a process loads what torch itself calls deprecated
                warnings.simplefilter("ignore", FutureWarning)
                self._choose(sample)
        except (NotImplementedError, RuntimeError):
            self._forward_mode, self._boxed = False, set()
            self._attempt(sample)

    def _choose(self, sample: Tensor) -> None:
        """Use the fast way for all ones only if it gives the same: layers' weights may be used in other ways, too."""
        names = self._boxed
        if names:
            fast, self._boxed = self(sample), set()
            plain = self(sample)
            same = torch.allclose(fast, plain, rtol=1e-3, atol=1e-3 * plain.abs().amax().item() + 1e-9)
            self._boxed = names if same else set()
        else:
            self(sample)

    def _attempt(self, sample: Tensor) -> None:
        try:
            self(sample)
        except (NotImplementedError, RuntimeError) as error:
            kind, reason = type(self.network).__name__, str(error).partition("\n")[0]
            raise MadError(f"{kind} has no second derivatives ({reason}): take another network") from error

    def forward(self, images: Tensor) -> Tensor:
        """Return the derivatives."""
        if self._forward_mode:
            return self._forward(images)
        return torch.cat([self._twice_backward(some) for some in images.split(AT_ONCE)])

    def _direction(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self._given:
            return {name: torch.ones_like(value) for name, value in weights.items()}
        return {name: getattr(self, f"z{number}") for number, name in enumerate(self._names)}

    def _forward(self, images: Tensor) -> Tensor:
        weights = {name: value.detach() for name, value in self.network.named_parameters()}

        def logits(values: dict[str, Tensor]) -> Tensor:
            return functional_call(self.network, values, (images.detach(),))

        with RECORDING, torch.no_grad():  # functional_call puts its values into the network while it runs
            if self._boxed:
                found, slope = all_ones.slope(self.network, weights, self._boxed, images.detach())
            else:
                found, slope, *_ = jvp(logits, (weights,), (self._direction(weights),))
            return of_log_posteriors(slope, torch.softmax(found, dim=1))

    def _twice_backward(self, images: Tensor) -> Tensor:
        weights = {name: value.detach().requires_grad_() for name, value in self.network.named_parameters()}
        direction = self._direction(weights)
        with RECORDING, torch.enable_grad():
            logits = functional_call(self.network, weights, (images.detach(),))
            share = torch.zeros_like(logits, requires_grad=True)
            rows = torch.autograd.grad(
                (logits * share).sum(), list(weights.values()), create_graph=True, materialize_grads=True
            )
            along = torch.stack(
                [(row * z).sum() for row, z in zip(rows, direction.values(), strict=True) if row.requires_grad]
            )
            (slope,) = torch.autograd.grad(along.sum(), share)
        return of_log_posteriors(slope, torch.softmax(logits.detach(), dim=1))


def of_log_posteriors(slope: Tensor, p: Tensor) -> Tensor:
    """Return the derivatives of log-posteriors (B, K) from those of the logits and the posteriors, (B, K) each.

    They are slope_k - <p, slope>; rows that are equal but for rounding become zero.
    """
    least, most = slope.aminmax(dim=1, keepdim=True)
    flat = most - least <= ROUNDING * torch.maximum(most.abs(), least.abs())
    return (slope - (p * slope).sum(dim=1, keepdim=True)).masked_fill(flat, 0.0)
