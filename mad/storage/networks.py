"""The description of a network, for fingerprints: its class, layers and weights, and what its layers hold beside."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import FunctionType, MethodType
from typing import Any

from mad.errors import MadError
from mad.storage.reading import CHANGING, NOTHING, holding, names, telling

UNDER_WAY: ContextVar[frozenset[int]] = ContextVar("networks that are described now", default=frozenset())


def of_network(network: Any, describe: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the description of a network.

    What its layers hold beside weights, such as a temperature or a number of heads, is part of it where the network's
    text need not tell it.

    Args:
        network: the network.
        describe: describes what it holds.
    """
    if id(network) in UNDER_WAY.get():  # a layer that holds the network which it is part of
        return {"network": describe(type(network))}
    token = UNDER_WAY.set(UNDER_WAY.get() | {id(network)})
    try:
        found = {"network": describe(type(network)), "layers": repr(network), "weights": describe(network.state_dict())}
        held: dict[str, Any] = {}
        for name, value in beside(network):
            with contextlib.suppress(MadError, RuntimeError, TypeError):  # what cannot be described is left out
                held[name] = describe(value)
        return {**found, "held": held} if held else found
    finally:
        UNDER_WAY.reset(token)


def beside(network: Any) -> Iterator[tuple[str, Any]]:
    """Yield what the layers of a network hold beside weights and layers, by name. Left out are:

    - what torch's own layers tell in their text;
    - what calling a layer sets, and lists, dicts and sets if calling it may fill one: a cache, a counter.
    """
    from torch import nn

    usual = vars(nn.Module()).keys()
    for place, layer in network.named_modules():
        kind: Any = type(layer)
        ours = kind.__module__.partition(".")[0] == "torch"
        if ours and kind.extra_repr is not nn.Module.extra_repr:
            continue
        stored, fills = written(kind, nn.Module)
        values = {name: told(value) for name, value in vars(layer).items() if not (ours and name.startswith("_"))}
        for name, value in sorted(values.items()):
            if value is not NOTHING and name not in usual and name not in stored and not (fills and holding(value)):
                yield f"{place}.{name}".lstrip("."), value
        for name in sorted(layer._non_persistent_buffers_set - stored):
            yield f"{place}.{name}".lstrip("."), layer._buffers[name]


def told(value: Any) -> Any:
    """Return what tells a value that a layer holds: also a function or a dataclass; else ``NOTHING``."""
    if isinstance(value, MethodType):
        return value.__func__
    named = callable(value) and hasattr(value, "__qualname__")
    part = dataclasses.is_dataclass(value) or isinstance(value, functools.partial)
    return value if named or part else telling(value)


@functools.lru_cache(maxsize=1024)
def written(kind: type, base: type) -> tuple[frozenset[str], bool]:
    """Return which attributes calling a layer of a class sets, and whether it may fill a list, dict or set."""
    methods: dict[str, list[FunctionType]] = {}
    for each in kind.__mro__:
        for name, value in vars(each).items() if each not in (base, object) else ():
            found = getattr(value, "fget", value)  # of a property
            if isinstance(found, FunctionType):
                methods.setdefault(name, []).append(found)
    waiting, seen, stored, fills = ["forward", "__call__"], set[str](), set[str](), False
    while waiting:
        name = waiting.pop()
        for code in () if name in seen else [each.__code__ for each in methods.get(name, ())]:
            read = names(code, "LOAD_ATTR") | names(code, "LOAD_METHOD")
            waiting += read
            stored |= names(code, "STORE_ATTR")
            fills |= not read.isdisjoint(CHANGING)
        seen.add(name)
    return frozenset(stored), fills
