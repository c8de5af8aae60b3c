"""The values that a function of an author reads from modules, which the source of the modules need not tell."""

from __future__ import annotations

import ast
import contextlib
import dis
import functools
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from mad.errors import MadError
from mad.storage.source import MAIN, installed, provided, read, script, spec_of

PLAIN = (bool, int, float, str)


def read_globals(thing: Any) -> dict[str, Any]:
    """Return the networks, tensors, arrays and plain values that a function reads from modules, by module and name.

    Functions that it reads there are followed, but not into this package, Python or an installed library. Left out are:

    - names that one of these functions sets itself, such as a model that is loaded at the first call;
    - what the source of the module sets to the same literal, since the hash of the source tells it;
    - absolute paths, and what lists and dicts hold, which may be caches.
    """
    followed = dict.fromkeys(functions(thing))
    waiting = list(followed)
    while waiting:
        values = used(waiting.pop()).values()
        new = [each for value in values for each in functions(value) if each not in followed]
        followed |= dict.fromkeys(new)
        waiting += new
    own = {(module_of(each), name) for each in followed for name in names(each.__code__, "STORE_GLOBAL")}
    found = {}
    for function in followed:
        module = module_of(function)
        told = literals(function)
        for name, value in used(function).items():
            if (module, name) not in own and tells(value) and told.get(name) != repr(value):
                found[f"{module}.{name}"] = value
    return dict(sorted(found.items()))


def functions(thing: Any) -> Iterator[FunctionType]:
    """Yield the functions of a method, or of a function within its decorators, that an author wrote."""
    while isinstance(thing, (FunctionType, MethodType, functools._lru_cache_wrapper)):
        if isinstance(thing, FunctionType):
            name = module_of(thing)
            spec = None if name in MAIN else spec_of(name)
            if not provided(name) and not (spec and installed(spec)):
                yield thing
        thing = thing.__func__ if isinstance(thing, MethodType) else getattr(thing, "__wrapped__", None)


def module_of(function: FunctionType) -> str:
    """Return the module whose names a function reads; a decorator may give it the ``__module__`` of another."""
    name = str(function.__globals__.get("__name__"))
    return MAIN[0] if name in MAIN else name


def used(function: FunctionType) -> dict[str, Any]:
    """Return the values of its module that a function reads, by name."""
    held = function.__globals__
    return {name: held[name] for name in names(function.__code__, "LOAD_GLOBAL") if name in held and name[:2] != "__"}


@functools.lru_cache(maxsize=1024)
def names(code: CodeType, what: str) -> frozenset[str]:
    """Return the names that an instruction has anywhere in a code, also in functions within it."""
    found = {str(each.argval) for each in dis.get_instructions(code) if each.opname == what}
    return frozenset(found.union(*(names(each, what) for each in code.co_consts if isinstance(each, CodeType))))


def tells(value: Any) -> bool:
    """Return whether a value is a network, a tensor, an array or plain, and thus tells what it is."""
    if isinstance(value, PLAIN):
        return not (isinstance(value, str) and Path(value).is_absolute())
    if isinstance(value, tuple):
        return all(map(tells, value))
    if isinstance(value, (type, ModuleType)):
        return False
    numbers = type(value).__module__.partition(".")[0] in ("torch", "numpy") and hasattr(value, "dtype")
    return numbers or (callable(getattr(value, "state_dict", None)) and callable(getattr(value, "named_modules", None)))


def literals(function: FunctionType) -> dict[str, str]:
    """Return what the source of a function's module sets to literals at its top, as texts by name."""
    module, content = module_of(function), b""
    with contextlib.suppress(MadError, OSError):  # without a source they are values like others
        spec = None if module in MAIN else spec_of(module)
        content = read(module, spec) if spec else script(function.__code__.co_filename)
    return assigned(content)


@functools.lru_cache(maxsize=256)
def assigned(content: bytes) -> dict[str, str]:
    """Return what a source sets to literals at its top, as texts by name; empty if it is no Python."""
    found: dict[str, str] = {}
    with contextlib.suppress(SyntaxError, ValueError):
        for node in ast.parse(content).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            with contextlib.suppress(ValueError, AttributeError):
                value = repr(ast.literal_eval(node.value))  # type: ignore[attr-defined]
                found |= {target.id: value for target in targets if isinstance(target, ast.Name)}
    return found
