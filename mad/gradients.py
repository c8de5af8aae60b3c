"""Inner products of a network's gradients over all its layers, computed without the gradients (paper, eq. 4).

Let z be one image's logits and J (K x D) their Jacobian with respect to every parameter of the network. The gradient
of the log-likelihood of soft label q is J^T (q - p), so the paper's objective needs only this of the network:

    Theta = J J^T  (K x K):  H(q) = 2 - 2 cos(q - p, y - p) in the inner product <u, v> = u^T Theta v.

Theta is a sum over layers. Let delta_k (O x T) be the gradient of z_k with respect to a layer's output of O channels
at T places, and a (T x P) the inputs of its weights at each place; a bias is one more column of ones. The
gradient of z_k with respect to the weights is delta_k a, so the layer adds

    <delta_k a, delta_l a> = <delta_k (a a^T), delta_l>

and the side with fewer multiply-adds is computed: the left one for many places, the right one for few. For parameters
outside such layers, or used more than once, the Jacobian itself is computed.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.func import functional_call, vjp, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from mad.errors import MadError

RECORDING = threading.Lock()  # the hooks of one network may not change while it runs
IMAGES, FLOATS = 64, 2**25
"""At most how many images are taken at once (more are no faster), and about how many numbers are held for them."""


def theta(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits, and the inner products of their gradients with respect to every parameter of the model.

    Parameters count whether or not they require gradients. The answer does not depend on an outer ``no_grad``.

    Args:
        model: images to logits, in eval mode; its layers see each image by itself, along the first axis.
        images: floating point, (B, C, H, W).

    Returns:
        The logits (B, K), and Theta (B, K, K).

    Raises:
        MadError: if there are no images, or the model is in train mode, has batch norms without running statistics,
            or does not return (B, K).
    """
    if not len(images):
        raise MadError("gradients need at least one image, got none")
    if any(module.training for module in model.modules()):
        raise MadError("gradients need a model in eval mode, got one in train mode: call model.eval()")
    if any(isinstance(module, _BatchNorm) and module.running_mean is None for module in model.modules()):
        raise MadError("gradients need batch norms with running statistics, got track_running_stats=False")
    parts: list[tuple[Tensor, Tensor]] = []
    done, size, rest = 0, 1, set[str]()
    while done < len(images):
        logits, products, floats, rest = _chunk(model, images[done : done + size], rest)
        parts.append((logits, products))
        done += size
        size = max(1, min(IMAGES, FLOATS // floats))  # the first image shows how many floats one takes
    all_logits, all_products = zip(*parts, strict=True)
    return torch.cat(all_logits), torch.cat(all_products)


def _chunk(model: nn.Module, images: Tensor, rest: set[str]) -> tuple[Tensor, Tensor, int, set[str]]:
    """Return the logits, Theta, the number of floats per image, and the names of parameters without closed form.

    ``rest`` holds these names from the chunk before, since an axis may have the length of a later chunk by chance and
    must not be taken for the axis of images.
    """
    # New leaves: every parameter is included, and the model's requires_grad does not change.
    leaves = {name: value.detach().requires_grad_() for name, value in model.named_parameters()}
    with RECORDING, torch.enable_grad(), _recorded(model) as calls:
        logits = functional_call(model, leaves, (images.detach(),))
    if logits.dim() != 2 or len(logits) != len(images):
        raise MadError(f"the model must return logits ({len(images)}, K), got {tuple(logits.shape)}")
    nodes, uses = _graph(logits)
    once = {id(leaf) for name, leaf in leaves.items() if uses[id(leaf)] == 1 and name not in rest}
    closed = [call for call in calls if call.is_closed(len(images), calls, nodes, once)]
    covered = {id(leaf) for call in closed for leaf in call.leaves.values()}
    others = {name: leaf for name, leaf in leaves.items() if uses[id(leaf)] and id(leaf) not in covered}
    products, floats = _closed(logits, closed)
    if others:
        products += _rest(model, others, images)
        floats += logits.shape[1] * sum(value.numel() for value in others.values())
    return logits.detach(), products, floats, rest | others.keys()


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a layer in a forward pass."""

    layer: nn.Module
    leaves: Mapping[str, Tensor]
    taken: Tensor
    version: int
    numel: int
    edge: GradientEdge

    def is_closed(self, images: int, calls: Sequence[_Call], nodes: set[Node], once: set[int]) -> bool:
        """Return whether the layer's parameters are used in this call only, so that the closed form holds."""
        return (
            "weight" in self.leaves
            and self.leaves.keys() <= {"weight", "bias"}
            and all(id(leaf) in once for leaf in self.leaves.values())
            and sum(call.layer is self.layer for call in calls) == 1
            and self.edge.node in nodes
            and self.taken._version == self.version
            and self.taken.dim() > 1
            and len(self.taken) == images
        )


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[_Call]]:
    """Record the calls of layers that have a closed form; the model's own hooks run after the recording."""
    calls: list[_Call] = []
    thread = threading.get_ident()

    def note(layer: nn.Module, taken: tuple[Any, ...], output: Tensor) -> None:
        if thread != threading.get_ident():  # another thread runs the same network
            return
        if len(taken) == 1 and output.requires_grad:
            # The graph's edge, not the output: later layers may change the output in place.
            edge, numel = get_gradient_edge(output), taken[0].numel() + output.numel()
            leaves = dict(layer.named_parameters(recurse=False))
            calls.append(_Call(layer, leaves, taken[0], taken[0]._version, numel, edge))

    layers = [layer for layer in model.modules() if type(layer) in LAYERS]
    hooks = [layer.register_forward_hook(note, prepend=True) for layer in layers]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _graph(logits: Tensor) -> tuple[set[Node], Counter[int]]:
    """Return the nodes of the logits' autograd graph, and how often each leaf, by its id, is used."""
    waiting = [logits.grad_fn] if logits.grad_fn is not None else []
    nodes, uses = set(waiting), Counter[int]()
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None and hasattr(node, "variable"):
                uses[id(node.variable)] += 1
            elif node is not None and node not in nodes:
                nodes.add(node)
                waiting.append(node)
    return nodes, uses


@dataclass(frozen=True)
class _Rows:
    """A layer's rows for each delta_k: Theta's entries are <row_k, row_l>, or <row_k gram, row_l>."""

    row: Callable[[Tensor], Tensor]
    gram: Tensor | None
    held: int


def _closed(logits: Tensor, calls: Sequence[_Call]) -> tuple[Tensor, int]:
    """Return the sum over layers with closed forms in Theta, (B, K, K), and the number of floats per image."""
    images, classes = logits.shape
    layers = [LAYERS[type(call.layer)](call.layer, call.taken.detach(), classes) for call in calls]
    kept: list[Tensor] = []
    for k in range(classes if calls else 0):
        seed = torch.zeros_like(logits)
        seed[:, k] = 1
        deltas = torch.autograd.grad(logits, [call.edge for call in calls], seed, retain_graph=k < classes - 1)
        rows = [layer.row(delta) for layer, delta in zip(layers, deltas, strict=True)]
        kept = kept or [row.new_empty(images, classes, *row.shape[1:]) for row in rows]
        for whole, row in zip(kept, rows, strict=True):
            whole[:, k] = row
    products = logits.new_zeros(images, classes, classes)
    for layer, whole in zip(layers, kept, strict=True):
        products += _inner(whole, layer.gram)
    floats = sum(call.numel for call in calls) + sum(layer.held for layer in layers) + sum(x.numel() for x in kept)
    return products, max(1, floats // images)


def _inner(rows: Tensor, gram: Tensor | None) -> Tensor:
    """Return the inner products (B, K, K) of rows (B, K, ...), or of rows (B, K, g, O/g, T) given gram (B, g, T, T)."""
    left = rows
    if gram is not None:
        groups = rows.transpose(1, 2)
        left = (groups.flatten(2, 3) @ gram).view(groups.shape).transpose(1, 2)
    return left.flatten(2) @ rows.flatten(2).mT


def _linear(layer: nn.Linear, taken: Tensor, classes: int) -> _Rows:
    def places(delta: Tensor) -> Tensor:
        return delta.flatten(1, -2).mT.unsqueeze(1) if delta.dim() > 2 else delta[:, None, :, None]

    features = taken.flatten(1, -2) if taken.dim() > 2 else taken.unsqueeze(1)
    return _cheaper(features.unsqueeze(1), places, classes, layer.out_features, layer.bias is not None)


def _conv2d(layer: nn.Conv2d, taken: Tensor, classes: int) -> _Rows:
    def places(delta: Tensor) -> Tensor:
        return delta.flatten(2).unflatten(1, (layer.groups, -1))

    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    windows = F.pad(taken, layer._reversed_padding_repeated_twice, mode)
    for axis, size in enumerate(layer.kernel_size):
        reach = layer.dilation[axis] * (size - 1) + 1
        windows = windows.unfold(axis + 2, reach, layer.stride[axis])[..., :: layer.dilation[axis]]
    # (B, g, C/g, H, W, h, w): with channels last, the copy runs along memory.
    windows = windows.unflatten(1, (layer.groups, -1)).permute(0, 1, 3, 4, 5, 6, 2)
    features = windows.flatten(4).flatten(2, 3)
    return _cheaper(features, places, classes, layer.out_channels // layer.groups, layer.bias is not None)


def _batch_norm(layer: nn.BatchNorm2d, taken: Tensor, classes: int) -> _Rows:
    def row(delta: Tensor) -> Tensor:
        delta = delta.flatten(2) if delta.dim() > 2 else delta.unsqueeze(2)
        return torch.cat([(delta * features).sum(2), delta.sum(2)], dim=1)

    features = F.batch_norm(taken, layer.running_mean, layer.running_var, eps=layer.eps)
    features = features.flatten(2) if features.dim() > 2 else features.unsqueeze(2)
    return _Rows(row, None, features.numel())


def _cheaper(a: Tensor, places: Callable[[Tensor], Tensor], classes: int, outputs: int, bias: bool) -> _Rows:
    """Return which side of the module's equation takes fewer multiply-adds.

    Args:
        a: (B, g, T, P), the features of each of g groups.
        places: reshapes a delta_k to (B, g, O/g, T).
        classes: K.
        outputs: O/g.
        bias: whether the layer has one.
    """
    t, p = a.shape[2], a.shape[3] + bias
    left = classes * outputs * p * (t + classes)
    right = t * t * p + classes * outputs * t * (t + classes)
    if left <= right:
        features = F.pad(a, (0, 1), value=1.0) if bias else a
        return _Rows(lambda delta: places(delta) @ features, None, features.numel())
    gram = a @ a.mT
    return _Rows(places, gram.add_(1) if bias else gram, gram.numel())


def _rest(model: nn.Module, parameters: dict[str, Tensor], images: Tensor) -> Tensor:
    """Return J J^T (B, K, K) of parameters without closed form, from their Jacobian J."""
    parameters = {name: value.detach() for name, value in parameters.items()}
    others = {name: value.detach() for name, value in model.named_parameters() if name not in parameters}

    def rows(image: Tensor) -> list[Tensor]:
        def logits(values: dict[str, Tensor]) -> Tensor:
            return functional_call(model, {**others, **values}, (image.unsqueeze(0),)).squeeze(0)

        # Not jacrev: under its second vmap some backward passes fail, PReLU's among them.
        z, pull, *_ = vjp(logits, parameters)
        seeds = torch.eye(len(z), dtype=z.dtype, device=z.device)
        return [torch.cat([value.flatten() for value in pull(seed)[0].values()]) for seed in seeds]

    with RECORDING:  # functional_call puts its values into the network while it runs
        try:
            jacobian = torch.stack(vmap(rows)(images.detach()), dim=1)
        except RuntimeError:  # what the network does with an image depends on its pixels, as in an ensemble
            jacobian = torch.stack([torch.stack(rows(image)) for image in images.detach()])
    return jacobian @ jacobian.mT


LAYERS: dict[type[nn.Module], Callable[[Any, Tensor, int], _Rows]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
}
