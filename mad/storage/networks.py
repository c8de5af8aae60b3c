"""The description of a network, for fingerprints: its class, layers and weights, and what its layers hold beside."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple

from mad.errors import MadError
from mad.storage.reading import CHANGING, NOTHING, holding, names, telling
from mad.storage.source import provided

USED = ("forward", "__call__", "train", "eval", "to", "_apply")  # what using a network calls, besides its hooks
HOOKS = ("_forward_pre_hooks", "_forward_hooks")
BY_NAME = {"setattr", "__setattr__", "register_buffer"}  # set an attribute that a text names
DEVICES = ("cpu", "cuda", "mps")  # texts that say where a network computes: another machine says otherwise
VARYING = re.compile(r" *#.*|___torch_mangle_\d+\.|, device=[\w:]+")  # where the code lies, and what ran before it
UNDER_WAY: ContextVar[tuple[dict[int, str], ...]] = ContextVar("layers of networks that are described now", default=())


def of_network(network: Any, describe: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the description of a network.

    What its layers hold beside weights, such as a temperature or a number of heads, is part of it where the network's
    text need not tell it. Of a layer that another one of the same network holds, it is the place.

    Args:
        network: the network.
        describe: describes what it holds.
    """
    under_way = UNDER_WAY.get()
    for number, places in enumerate(under_way):
        if id(network) in places:
            return {"layer": places[id(network)], "of": number}
    token = UNDER_WAY.set((*under_way, {id(layer): place for place, layer in network.named_modules()}))
    try:
        found = {"network": describe(type(network)), "layers": repr(network), "weights": describe(network.state_dict())}
        held: dict[str, Any] = {}
        for name, value in beside(network):
            with contextlib.suppress(MadError, RuntimeError, TypeError, ValueError):  # what no description is made of
                held[name] = describe(value)
        return {**found, "held": held} if held else found
    finally:
        UNDER_WAY.reset(token)


def beside(network: Any) -> Iterator[tuple[str, Any]]:
    """Yield what the layers of a network hold beside weights and layers, by name. Left out are:

    - what torch's own layers tell in their text;
    - what calling a layer, or ``train()`` or ``to()``, sets, and lists, dicts and sets that it may fill: a cache.
    """
    from torch import fx, jit, nn

    usual = vars(nn.Module()).keys() | {"_compiled_call_impl"}
    layers = dict(network.named_modules())
    hooks = tuple(code for layer in layers.values() for code in hooked(layer))
    for place, layer in layers.items():
        if isinstance(layer, jit.ScriptModule):
            for name, value in scripted(layer):
                yield f"{place}.{name}".lstrip("."), value
            continue
        kind: Any = type(layer)
        ours = kind.__module__.partition(".")[0] == "torch"
        if ours and kind.extra_repr is not nn.Module.extra_repr:
            continue
        if isinstance(layer, fx.GraphModule):
            yield f"{place}.code".lstrip("."), layer.code
        changed = changed_by(kind, nn.Module, hooks)
        values = {name: told(value) for name, value in vars(layer).items() if not (ours and name.startswith("_"))}
        for name, value in sorted(values.items()):
            filled = holding(value) and (changed.any_filled or name in changed.filled)
            if value is not NOTHING and name not in usual and name not in changed.stored and not filled:
                yield f"{place}.{name}".lstrip("."), value
        for name in sorted(layer._non_persistent_buffers_set - changed.stored):
            yield f"{place}.{name}".lstrip("."), layer._buffers[name]


def scripted(layer: Any) -> Iterator[tuple[str, Any]]:
    """Yield the graph of a layer that TorchScript has compiled, its constants, and the values that it reads."""
    with contextlib.suppress(RuntimeError, AttributeError):  # a list of layers has none
        graph = VARYING.sub("", str(layer.inlined_graph))
        yield "graph", graph
        yield "constants", list(layer.code_with_constants[1].const_mapping.values())
        stored = layer.state_dict().keys()
        for name in sorted(set(re.findall(r'prim::GetAttr\[name="(\w+)"\]\(%self', graph)) - stored):
            yield name, told(getattr(layer, name))


def told(value: Any) -> Any:
    """Return what tells a value that a layer holds: also a function or a dataclass; else ``NOTHING``."""
    if isinstance(value, str) and value.partition(":")[0] in DEVICES:
        return NOTHING
    if isinstance(value, MethodType):
        return value.__func__
    if callable(value) and hasattr(value, "__qualname__"):
        if isinstance(value, FunctionType) and "<" in value.__qualname__ and not provided(value.__module__):
            positions: Any = getattr(value.__code__, "co_positions", tuple)()  # from Python 3.11 on
            column = max((each[3] or 0 for each in positions), default=0)
            return [value, value.__code__.co_firstlineno, column]  # others of its source may have its name
        return value if hasattr(value, "__module__") else value.__qualname__  # such as torch.Tensor.relu
    return value if dataclasses.is_dataclass(value) or isinstance(value, functools.partial) else telling(value)


class Changed(NamedTuple):
    """Which attributes using a layer sets, and which lists, dicts and sets it may fill: those named, or any."""

    stored: frozenset[str]
    filled: frozenset[str]
    any_filled: bool


@functools.lru_cache(maxsize=1024)
def changed_by(kind: type, base: type, hooks: tuple[CodeType, ...]) -> Changed:
    """Return what calling a layer of a class changes; ``base`` is not looked into, ``hooks`` are called, too."""
    methods: dict[str, list[CodeType]] = {}
    stored, filled, any_filled = set[str](), set[str](), False
    for each in kind.__mro__:
        for name, value in vars(each).items() if each not in (base, object) else ():
            methods.setdefault(name, []).extend(codes(value))
            stored |= {name} if isinstance(value, functools.cached_property) else set()
    waiting, seen, new = list(USED), set[str](), list(hooks)
    while waiting or new:
        for code in new:
            read = names(code, "LOAD_ATTR") | names(code, "LOAD_METHOD")
            waiting += read
            stored |= names(code, "STORE_ATTR")
            if BY_NAME & (read | names(code, "LOAD_GLOBAL")):
                stored |= {each for each in code.co_consts if isinstance(each, str)}
            if names(code, "STORE_SUBSCR") or names(code, "DELETE_SUBSCR"):
                filled |= read
            any_filled |= not read.isdisjoint(CHANGING)
        name = waiting.pop() if waiting else ""
        new = [] if name in seen else methods.get(name, [])
        seen.add(name)
    return Changed(frozenset(stored), frozenset(filled), any_filled)


def hooked(layer: Any) -> Iterator[CodeType]:
    """Yield the codes of the hooks that calling a layer calls."""
    for hooks in HOOKS:
        for each in vars(layer).get(hooks, {}).values():
            yield from codes(each)


def codes(value: Any) -> Iterator[CodeType]:
    """Yield the codes of a function, a method or a property, also within decorators."""
    if isinstance(value, FunctionType):
        yield value.__code__
    for name in ("__wrapped__", "__func__", "fget", "func"):
        inner = getattr(value, name, None)
        if isinstance(inner, (FunctionType, MethodType, staticmethod, functools._lru_cache_wrapper)):
            yield from codes(inner)
