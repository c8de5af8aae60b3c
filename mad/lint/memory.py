"""How much memory a defense holds."""

from __future__ import annotations

import sys
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor

LEFT_OUT = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)  # code, which does not grow


def held_bytes(thing: Any) -> int:
    """Return the bytes of an object's attributes and of all that they refer to; each tensor's storage counts once.

    Lists, dicts, sets and tensors that are attributes of its class count, too, since all its objects share them.
    """
    shared = [each for each in vars(type(thing)).values() if isinstance(each, (list, dict, set, Tensor))]
    waiting: list[Any] = [vars(thing), *shared]
    seen: dict[Any, Any] = {}
    total = 0
    while waiting:
        each = waiting.pop()
        storage = each.untyped_storage() if isinstance(each, Tensor) else None
        key = id(each) if storage is None else ("storage", storage.data_ptr())
        if key in seen or isinstance(each, LEFT_OUT):
            continue
        seen[key] = each  # held, so that no other object gets its id
        if storage is not None:
            total += storage.nbytes()
            continue
        total += each.nbytes if isinstance(each, np.ndarray) else sys.getsizeof(each, 0)
        if isinstance(each, dict):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, (list, tuple, set, frozenset)) or type(each).__name__ == "deque":
            waiting += each
        waiting += getattr(each, "__dict__", {}).values()
        waiting += [getattr(each, name, None) for name in slots(each)]
    return total


def slots(thing: Any) -> list[str]:
    """Return the names of an object's slots."""
    found: list[str] = []
    for kind in type(thing).__mro__:
        named = vars(kind).get("__slots__", ())
        found += [named] if isinstance(named, str) else list(named)
    return found
