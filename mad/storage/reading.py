"""The values that a function of an author reads from modules, which the source of the modules need not tell."""

from __future__ import annotations

import ast
import contextlib
import dis
import functools
import linecache
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from mad.errors import MadError
from mad.storage.source import MAIN, installed, provided, read, script, spec_of

PLAIN = (bool, int, float, str)
HOLDING = (list, dict, set, frozenset)
MOST = 10_000  # values in a list, dict or set: to describe more at every fingerprint takes long
NOTHING = object()
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
CHANGING = (
    *("append", "extend", "insert", "remove", "pop", "clear", "sort", "reverse"),
    *("update", "setdefault", "popitem", "add", "discard"),
)


def read_globals(thing: Any) -> dict[str, Any]:
    """Return the networks, tensors, arrays and plain values that a function reads from modules, by module and name.

    Of lists, dicts and sets it is what they hold of these. Functions that it reads there are followed, but not into
    this package, Python or an installed library. Left out are:

    - names that one of these functions sets itself, such as a model that is loaded at the first call;
    - what the source of the module sets to the same literal, since the hash of the source tells it;
    - absolute paths, and lists, dicts and sets that are large, or that one of these functions may fill: a cache.
    """
    followed = reached(thing)
    own = {(module_of(each), name) for each in followed for name in names(each.__code__, "STORE_GLOBAL")}
    filled = own | {(module_of(each), name) for each in followed for name in changed(each)}
    found = {}
    for function in followed:
        module = module_of(function)
        told = assigned(source_of(function))
        for name, each in used(function).items():
            value = telling(each)
            left = (module, name) in (filled if holding(each) else own)
            if not left and value is not NOTHING and told.get(name) != repr(value):
                found[f"{module}.{name}"] = value
    return dict(sorted(found.items()))


def untold(thing: Any) -> dict[str, str]:
    """Return the classes of objects that a function reads from modules and that nothing tells, by the objects' names.

    Such as a classifier of scikit-learn. Objects of Python's own classes, such as a logger, are left out, and functions
    and types of numpy.
    """
    import numpy as np

    return {
        name: type(value).__qualname__
        for function in reached(thing)
        for name, value in used(function).items()
        if telling(value) is NOTHING and not holding(value) and not callable(getattr(value, "__get__", None))
        if not isinstance(value, (type, ModuleType, str, tuple, np.ufunc, np.dtype)) and value is not None
        if not provided(type(value).__module__)
    }


def reached(thing: Any) -> dict[FunctionType, None]:
    """Return the functions of an author that a function is, and those that it reads from modules, in order."""
    followed = dict.fromkeys(functions(thing))
    waiting = list(followed)
    while waiting:
        values = used(waiting.pop()).values()
        new = [each for value in values for each in functions(value) if each not in followed]
        followed |= dict.fromkeys(new)
        waiting += new
    return followed


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


def telling(value: Any, within: bool = False) -> Any:
    """Return what tells a value: itself if it is a network, a tensor, an array or plain; else ``NOTHING``.

    A tuple is told if all that it holds is; of a list, a dict or a set it is what they hold of these, and of None.

    Args:
        value: the value.
        within: whether it lies in a list, a dict or a set.
    """
    if isinstance(value, PLAIN) or (value is None and within):
        return NOTHING if isinstance(value, str) and Path(value).is_absolute() else value
    if isinstance(value, tuple):
        parts = tuple(telling(each, within) for each in value)
        return NOTHING if any(each is NOTHING for each in parts) else parts
    if isinstance(value, HOLDING):
        return NOTHING if not within and not small(value) else held(value) or NOTHING
    if isinstance(value, (type, ModuleType)):
        return NOTHING
    numbers = type(value).__module__.partition(".")[0] in ("torch", "numpy") and hasattr(value, "dtype")
    network = callable(getattr(value, "state_dict", None)) and callable(getattr(value, "named_modules", None))
    return value if numbers or network else NOTHING


def held(value: Any) -> Any:
    """Return what a list, a dict or a set holds that tells; a set as a sorted list."""
    if isinstance(value, dict):
        parts = {key: telling(each, True) for key, each in value.items() if telling(key, True) is not NOTHING}
        return {key: each for key, each in parts.items() if each is not NOTHING}
    found = [each for each in (telling(each, True) for each in value) if each is not NOTHING]
    return found if isinstance(value, list) else sorted(found, key=repr)


def holding(value: Any) -> bool:
    """Return whether a value is a list, a dict or a set, or a tuple with one in it."""
    return isinstance(value, HOLDING) or (isinstance(value, tuple) and any(map(holding, value)))


def small(value: Any) -> bool:
    """Return whether a list, dict or set holds at most ``MOST`` values, with those within; one in itself has no end."""
    waiting, count = [value], 0
    while waiting and count <= MOST:
        each, count = waiting.pop(), count + 1
        waiting += each.values() if isinstance(each, dict) else each if isinstance(each, (tuple, *HOLDING)) else ()
    return count <= MOST


def changed(function: FunctionType) -> frozenset[str]:
    """Return the names of values that a function may fill; all that it reads if its source is not to be had."""
    code = function.__code__
    content = source_of(function) or "".join(linecache.getlines(code.co_filename)).encode()  # of a notebook's cell
    found = changes(content, code.co_firstlineno, code.co_name)
    return frozenset(used(function)) if found is None else found


@functools.lru_cache(maxsize=1024)
def changes(content: bytes, line: int, name: str) -> frozenset[str] | None:
    """Return the names that a function in a line of a source stores items in, or returns; None if it is not there."""
    nodes = []
    with contextlib.suppress(SyntaxError, ValueError):
        every: Any = (each for each in ast.walk(ast.parse(content)) if isinstance(each, FUNCTIONS))
        nodes = [each for each in every if [*getattr(each, "decorator_list", ()), each][0].lineno == line]
        nodes = [each for each in nodes if getattr(each, "name", "<lambda>") == name]
    found, aliases = set[str](), set[tuple[str, str]]()
    for each in (part for node in nodes for part in ast.walk(node)):
        if isinstance(each, ast.Subscript) and not isinstance(each.ctx, ast.Load):
            found.add(root(each))
        elif isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute) and each.func.attr in CHANGING:
            found.add(root(each.func))
        elif isinstance(each, ast.Return) and isinstance(each.value, ast.Name):
            found.add(each.value.id)
        elif isinstance(each, ast.Assign):
            aliases |= {(target.id, root(each.value)) for target in each.targets if isinstance(target, ast.Name)}
    found |= {name for alias, name in aliases if alias in found}
    return frozenset(found) if nodes else None


def root(node: Any) -> str:
    """Return the name that an expression such as ``name[0].append`` begins with; empty if it begins otherwise."""
    while isinstance(node, (ast.Subscript, ast.Attribute)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def source_of(function: FunctionType) -> bytes:
    """Return the source of a function's module; empty if there is none."""
    module = module_of(function)
    with contextlib.suppress(MadError, OSError):
        spec = None if module in MAIN else spec_of(module)
        return read(module, spec) if spec else script(function.__code__.co_filename)
    return b""


@functools.lru_cache(maxsize=256)
def assigned(content: bytes) -> dict[str, str]:
    """Return what a source sets to literals at its top, as texts by name; empty if it is no Python."""
    found: dict[str, str] = {}
    with contextlib.suppress(SyntaxError, ValueError):
        for node in ast.parse(content).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            with contextlib.suppress(ValueError, AttributeError):
                value = repr(telling(ast.literal_eval(node.value)))  # type: ignore[attr-defined]
                found |= {target.id: value for target in targets if isinstance(target, ast.Name)}
    return found
