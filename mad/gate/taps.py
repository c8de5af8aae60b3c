"""Features of a network, taken while it answers: hooks keep small summaries of what its layers return."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mad import plugins

MAPS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.GroupNorm)  # channels first; batch norms are affine maps of these
TOKENS = (nn.LayerNorm, nn.MultiheadAttention)  # channels last
MOST = 6  # layers that are tapped, evenly spaced from the first to the last
CHUNK = 2**20  # numbers that are summarized at once
GRID = 3  # blocks along each side of the coarse picture of the deepest map that has as many
VARIED, BLOCKS = 16, 4  # images that a network is tried on, and their blocks along each side


class Hook:
    """A hook that calls a function; in a copy of the network it does nothing."""

    def __init__(self, call: Callable[..., None] | None) -> None:
        self.call = call

    def __call__(self, *given: Any) -> None:
        """Call the function with what torch gives to hooks."""
        if self.call is not None:
            self.call(*given)

    def __deepcopy__(self, memo: Any) -> Hook:
        return Hook(None)


class Taps:
    """The features that a network computes while it answers, of the last batch of each thread.

    Convolutions, normalizations and attention blocks are tapped, of a network without any its linear layers. Each map
    becomes the mean, root mean square and maximum of each channel, over places or tokens; the deepest map also a coarse
    picture. The input of the last linear layer and the logits come as they are. A layer that sees some of the images
    only, as in an ensemble that sends each image to one of its networks, has no features. A network whose parts
    cannot be hooked has none, either; it is never run here.

    Args:
        network: images (B, C, H, W) to logits (B, K), in eval mode. It is hooked for good.
        shape: (C, H, W) of its images.
        device: its device.
    """

    def __init__(self, network: nn.Module, shape: Sequence[int], device: torch.device) -> None:
        self._network, self._last = network, threading.local()
        self._layers, head = layers_of(network)
        self._grid: int | None = None
        self._features = False
        for number, layer in enumerate(self._layers):
            layer.register_forward_hook(Hook(lambda m, _, out, number=number: self._saw(number, m, out)))
        if head is not None:
            head.register_forward_pre_hook(Hook(lambda _, given: self._note("features", given[0] if given else None)))
        network.register_forward_pre_hook(Hook(self._begin))
        network.register_forward_hook(Hook(self._end))
        self.widths: list[int] = []  # of the summaries; 0 for one that there is not
        self.names: list[str] = []
        if self._layers or head is not None:
            self._try(torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).to(device))

    def __deepcopy__(self, memo: Any) -> Taps:
        """Return the same taps: a copy of a network is not tapped."""
        return self

    def _try(self, images: Tensor) -> None:
        """Find out which layers have summaries, and which one has the coarse picture."""
        self._grid = None
        with torch.no_grad():
            self._network(images)
        seen = dict(self._last.seen)
        sizes = {number: value for (kind, number), value in self._last.sizes.items() if kind == "size"}
        fine = [number for number, size in sizes.items() if min(size) > GRID]
        self._grid = max(fine, default=None)
        with torch.no_grad():
            self._network(images)
        seen = self._last.seen
        logits = self._last.logits
        usable = {key: value for key, value in seen.items() if value.dim() == 2 and len(value) == len(images)}
        apart = varied(images.shape[1:]).to(images)
        with torch.no_grad():
            self._network(apart)
        usable = {key: usable[key] for key, value in self._last.seen.items() if key in usable and len(value) == VARIED}
        order = [*(("layer", number) for number in range(len(self._layers))), ("grid", self._grid), ("features", None)]
        self._keys = [key for key in order if key in usable and usable[key].shape[1] > 0]
        self.widths = [usable[key].shape[1] for key in self._keys]
        self.names = [kind if number is None else f"{kind} {number}" for kind, number in self._keys]
        self._classes = logits.shape[1]
        self._clear()

    def _begin(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        self._last.images = None
        self._last.seen, self._last.sizes = {}, {}
        self._last.open = True

    def _end(self, _: nn.Module, given: tuple[Any, ...], logits: Any) -> None:
        self._last.open = False
        self._last.logits = logits.detach() if isinstance(logits, Tensor) else None
        self._last.images = weakref.ref(given[0]) if given and isinstance(given[0], Tensor) else None
        self._last.version = plugins.versions([given[0]]) if self._last.images is not None else None

    def _note(self, kind: str, value: Any, number: int | None = None) -> None:
        if getattr(self._last, "open", False) and isinstance(value, Tensor):
            self._last.seen[kind, number] = value.detach()

    @torch.no_grad()
    def _saw(self, number: int, layer: nn.Module, out: Any) -> None:
        """Summarize what a layer returned, at once: later layers may work in place."""
        out = out[0] if isinstance(out, tuple) else out
        if not getattr(self._last, "open", False) or not isinstance(out, Tensor) or out.dim() < 2:
            return
        maps = out.detach()
        if maps.dim() > 2 and not channels_first(layer, maps):
            maps = maps.movedim(-1, 1)
        if maps.dim() == 4:
            self._last.sizes["size", number] = maps.shape[2:]
            if number == self._grid:
                self._note("grid", F.adaptive_avg_pool2d(maps, GRID).flatten(1), number)
        self._note("layer", summary(maps), number)

    def _clear(self) -> None:
        self._last.images, self._last.seen, self._last.logits = None, {}, None

    @torch.no_grad()
    def __call__(self, images: Tensor, clean: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Return the summaries of images, each (B, D), and their logits (B, K).

        They are those that the network computed last in this thread, if it was for these very images, which have not
        been written to since; otherwise the network runs once more.

        Args:
            images: (B, C, H, W) in [0, 1].
            clean: the network's posteriors, whose logarithm stands for the logits of one without features.
        """
        if not self.widths:
            own = torch.softmax(self._network(images), dim=1) if clean is None else clean
            return [], own.clamp(min=1e-12).log()
        last = self._last
        seen = getattr(last, "images", None)
        if seen is None or seen() is not images or last.version != plugins.versions([images]):
            self._network(images)
        return [last.seen[key] for key in self._keys], last.logits


def varied(shape: Sequence[int]) -> Tensor:
    """Return images (N, C, H, W) of a few black and white blocks, of which a network with several ways sends some each.

    Args:
        shape: (C, H, W).
    """
    sides = [min(BLOCKS, side) for side in shape[1:]]
    blocks = torch.randint(2, (VARIED, shape[0], *sides), generator=torch.Generator().manual_seed(0)).float()
    return F.interpolate(blocks, list(shape[1:]))


def layers_of(network: nn.Module) -> tuple[list[nn.Module], nn.Module | None]:
    """Return the layers of a network that are tapped, and its last linear layer, if it has one."""
    parts = [part for part in network.modules() if part is not network]
    linear = [part for part in parts if isinstance(part, nn.Linear)]
    head = linear[-1] if linear else None
    found: list[nn.Module] = [part for part in parts if isinstance(part, (*MAPS, *TOKENS))]
    found = found or list(linear[:-1])
    if len(found) > MOST:
        found = [found[round(number * (len(found) - 1) / (MOST - 1))] for number in range(MOST)]
    return found, head


def channels_first(layer: nn.Module, maps: Tensor) -> bool:
    """Return whether a layer's maps are (B, C, ...), as those of ConvNeXt's layer norms over the channels."""
    if isinstance(layer, nn.LayerNorm):
        return maps.shape[1] == layer.normalized_shape[-1] != maps.shape[-1]
    return isinstance(layer, MAPS)


def summary(maps: Tensor) -> Tensor:
    """Return mean, root mean square and maximum of each channel of maps (B, C, ...): (B, 3 C); of (B, C) themselves."""
    if maps.dim() == 2:
        return maps
    parts = maps.split(max(1, CHUNK * len(maps) // max(1, maps.numel())))
    return torch.cat([summary_of(each) for each in parts])  # what lies in the processor's cache is read fast


def summary_of(maps: Tensor) -> Tensor:
    """Return the summary of a few maps (B, C, ...): (B, 3 C)."""
    places = maps.shape[2:]
    if maps.dim() == 4 and not maps.is_contiguous():  # channels last: pooling is the fastest reduction
        highest = F.max_pool2d(maps, list(places)).flatten(1)
        return torch.cat([maps.mean(dim=(2, 3)), maps.square().mean(dim=(2, 3)).sqrt(), highest], dim=1)
    flat = maps.flatten(2)
    return torch.cat([flat.mean(dim=2), flat.norm(dim=2) / places.numel() ** 0.5, flat.amax(dim=2)], dim=1)


def taps_of(network: nn.Module, shape: Sequence[int], device: torch.device) -> Taps:
    """Return the taps of a network, which is hooked only once."""
    found = network.__dict__.get("_taps")
    if found is None or found._network is not network:  # a copy holds the taps of its original
        found = Taps(network, shape, device)
        object.__setattr__(network, "_taps", found)
    return found
