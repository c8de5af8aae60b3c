"""What a thing is made of, and the name that follows from it.

A part of an experiment is a dataclass: its fields are its whole description. Fields with ``compare=False`` (paths,
devices) change no number and stay out, as does one whose metadata is ``ADDED`` while it has its default: it came to
the class later, and what was described before keeps its name. A class, also one that is named only as a factory, may
bump ``version`` when its algorithm changes its numbers. A class or function of this package that is moved or renamed
says in ``kind`` where it was when it was first described. Code outside this package is named by its source, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from mad.errors import MadError
from mad.storage.source import source

ADDED = {"added": True}  # field(default=X, metadata=ADDED), where X does what was done before there was the field
PLAIN = (bool, int, float, str, tuple, list, dict)
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def describe(thing: Any) -> Any:
    """Return the JSON-able description of a dataclass, a partial, a callable or a plain value.

    Raises:
        MadError: for anything else, whose identity could not be told from its text.
    """
    if thing is None or isinstance(thing, (bool, int, str)):
        return thing
    if isinstance(thing, float):
        return int(thing) if thing.is_integer() else thing if math.isfinite(thing) else str(thing)
    if isinstance(thing, Mapping):
        return {str(key): describe(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [describe(value) for value in thing]
    if isinstance(thing, functools.partial):
        ours = source(thing.func) is None  # here None is as if not given; elsewhere it may mean something
        given = {name: value for name, value in thing.keywords.items() if value is not None or not ours}
        return {"call": describe(thing.func), "args": describe(thing.args), **describe(given)}
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return described(thing)
    if callable(thing) and hasattr(thing, "__qualname__"):
        return named(thing)
    if type(thing).__module__.partition(".")[0] in ("torch", "numpy") and hasattr(thing, "dtype"):
        return numbers(thing)
    raise MadError(f"cannot fingerprint {thing!r}: make it a dataclass, a partial or a plain value")


def described(thing: Any) -> dict[str, Any]:
    """Return the description of a dataclass: its class, with the version, and its fields."""
    fields = {field.name: field for field in dataclasses.fields(thing)}
    if source(type(thing)) is not None:
        taken = inspect.signature(type(thing)).parameters.values()
        unknown = [each.name for each in taken if each.kind not in VARIADIC and each.name not in fields]
        if unknown:
            raise MadError(
                f"{type(thing).__qualname__} takes {', '.join(unknown)}, which its fingerprint would miss: "
                "make it a dataclass and each of them a field"
            )
    found = {name: describe(getattr(thing, name)) for name, field in fields.items() if field.compare}
    for name, field in fields.items():
        if "added" in field.metadata and found[name] == describe(field.default):
            del found[name]
    held = contents(thing)
    if held is None and source(type(thing)) is not None:
        held = read_by({name: getattr(thing, name) for name in fields}) or None
    found |= {} if held is None else {"contents": describe(held)}
    return {"class": describe(type(thing)), "version": getattr(thing, "version", 1), **found}


def read_by(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the checksums of the files that a part's fields name, by their field."""
    from mad.datasets.content import checksum_of, place

    found = {}
    for name, value in values.items():
        for number, each in enumerate(value if isinstance(value, (list, tuple)) else [value]):
            with contextlib.suppress(OSError, ValueError, MadError):
                if isinstance(each, (str, Path)) and (file := place(str(each))).is_file():
                    found[f"{name} {number}"] = checksum_of(file)
    return found


def named(thing: Any) -> Any:
    """Return the name of a class or function; outside this package with its source, and with what that leaves open."""
    version = None if dataclasses.is_dataclass(thing) else getattr(thing, "version", None)  # dataclasses say it apart
    module = "__main__" if thing.__module__ == "__mp_main__" else thing.__module__
    written, owner = source(thing), getattr(thing, "__self__", None)
    text = f"{module}.{thing.__qualname__}"
    text = text if written else getattr(thing, "__dict__", {}).get("kind", text)
    text += f" version {version}" if isinstance(version, int) else ""
    text += f" source {written}" if written else ""
    if owner is not None and not isinstance(owner, ModuleType):  # a method
        return {"call": text, "self": describe(owner)}
    values = taken_along(thing) if written else []
    return {"call": text, "values": describe(values)} if values else text


def numbers(values: Any) -> dict[str, Any]:
    """Return the type, shape and checksum of a tensor or an array.

    Raises:
        MadError: if it holds what no tensor does.
    """
    import torch

    try:
        held = torch.as_tensor(values).detach().cpu().contiguous()
    except TypeError as error:
        raise MadError(f"cannot fingerprint an array of {values.dtype}: make it numbers") from error
    content = hashlib.sha256(held.flatten().view(torch.uint8).numpy().data).hexdigest()
    return {"numbers": str(held.dtype), "shape": list(held.shape), "sha256": content}


def taken_along(thing: Any) -> list[Any]:
    """Return the values that a class or function made inside a function has from there."""
    if "<" not in thing.__qualname__:
        return []
    parts = vars(thing) if isinstance(thing, type) else {"it": thing}
    values = [each for name, each in parts.items() if isinstance(each, PLAIN) and not name.startswith("__")]
    with contextlib.suppress(TypeError, OSError):
        parts = {name: each for name, each in parts.items() if not inspect.isfunction(each) or beside(each, thing)}
    for each in parts.values():
        if inspect.isfunction(each):
            values += [*(each.__defaults__ or ()), *(each.__kwdefaults__ or {}).values()]
            for cell in each.__closure__ or ():
                with contextlib.suppress(ValueError):  # nothing is in it yet
                    values.append(cell.cell_contents)
    return [value for value in values if value is not thing]


def beside(function: FunctionType, thing: Any) -> bool:
    """Whether a function was written in the file of a class or function: those that dataclasses make were not."""
    return function.__code__.co_filename == inspect.getfile(thing)


def contents(thing: Any) -> Any:
    """Return what stands for the data that a part holds, where its fields do not determine them; else None."""
    from mad.datasets.checked import contents  # imports torch

    return contents(thing)


def digest(description: Any) -> str:
    """Return the 16 hexadecimal digits that name a description."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def identity(part: Any) -> str:
    """Return the name of a part of an experiment and of where it lies: paths matter to what can be loaded."""
    fields = dataclasses.fields(part) if dataclasses.is_dataclass(part) else ()
    places = {field.name: repr(getattr(part, field.name)) for field in fields if not field.compare}
    return digest([describe(part), places])


def settings(thing: Any) -> str:
    """Return the fields of a dataclass that differ from their defaults, as ``name=value``.

    Fields without a default, a defense's strength and an attack's budget are not shown; a nested dataclass shows its
    ``name`` and its own such fields. Code outside this package shows which it is: what it was before an edit must not
    look like a further seed of what it is now.
    """
    written = source(type(thing))
    changed, apart = (
        [f"source={written[:8]}"] if written else [],
        ("budget", getattr(thing, "strength_parameter", "epsilon")),
    )
    for field in dataclasses.fields(thing):
        value = getattr(thing, field.name)
        missing = field.default is dataclasses.MISSING
        if field.name in apart or not field.compare or missing or describe(field.default) == describe(value):
            continue
        if dataclasses.is_dataclass(value):
            value = " ".join(filter(None, [getattr(value, "name", type(value).__name__), settings(value)]))
        elif callable(value):
            written = source(getattr(value, "func", value))
            value = name_of(value) + (f" source={written[:8]}" if written else "")
        changed.append(f"{field.name}={value}")
    return " ".join(changed)


def name_of(factory: Any) -> str:
    """Return the lower-case name of an architecture's factory, and that of the model it makes, where it has many."""
    model = getattr(factory, "keywords", {}).get("name")
    return " ".join([getattr(factory, "func", factory).__name__.lower(), *([str(model)] if model else [])])
