"""Descriptions of the parts of an experiment, and the fingerprints (hashes) that name their results.

A part of an experiment is a dataclass, and its fields are its whole description. Two kinds of fields are left out:

- fields with ``compare=False``, such as paths and devices, which change no number;
- fields with the metadata ``ADDED``, while they have their default. They were added to the class later, and older
  fingerprints must stay valid.

A class, or a factory function, bumps its ``version`` when a change of its algorithm changes its numbers. Where that is
so for some settings only, a property ``amended`` names the change for these, and is None for all others. A class or
function of this package that was moved or renamed gives its first path in ``kind``. The description of code outside
this package includes a hash of its source.
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
from mad.storage.networks import of_network
from mad.storage.reading import read_globals
from mad.storage.source import source

ADDED = {"added": True}  # field(default=X, metadata=ADDED), where X gives the behavior before the field
PLAIN = (bool, int, float, str, tuple, list, dict)
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def describe(thing: Any) -> Any:
    """Return a description, which JSON can hold, of a part of an experiment.

    A part is a dataclass, a partial, a callable, a network, a tensor or a plain value.

    Raises:
        MadError: for anything else, because its text need not identify it.
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
        ours = source(thing.func) is None  # here None means not given; elsewhere it may be a value
        given = {name: value for name, value in thing.keywords.items() if value is not None or not ours}
        return {"call": describe(thing.func), "args": describe(thing.args), **describe(given)}
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return described(thing)
    if callable(thing) and hasattr(thing, "__qualname__"):
        return named(thing)
    if type(thing).__module__.partition(".")[0] in ("torch", "numpy") and hasattr(thing, "dtype"):
        return numbers(thing)
    if hasattr(thing, "state_dict") and hasattr(thing, "named_modules"):  # a network
        return of_network(thing, describe)
    text = " ".join(repr(thing).split())[:200]
    raise MadError(f"cannot fingerprint {text}: make it a dataclass, a partial or a plain value")


def described(thing: Any) -> dict[str, Any]:
    """Return the description of a dataclass: its class, version, fields, and a checksum of its data if needed.

    Raises:
        MadError: if code outside this package takes an argument that is not a field.
    """
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
    amended = getattr(thing, "amended", None)
    found |= {} if amended is None else {"amended": amended}
    return {"class": describe(type(thing)), "version": getattr(thing, "version", 1), **found}


def read_by(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the checksum of each file that a field of a part names, by field name and position."""
    from mad.datasets.content import checksum_of, place

    found = {}
    for name, value in values.items():
        for number, each in enumerate(value if isinstance(value, (list, tuple)) else [value]):
            with contextlib.suppress(OSError, ValueError, MadError):
                if isinstance(each, (str, Path)) and (file := place(str(each))).is_file():
                    found[f"{name} {number}"] = checksum_of(file)
    return found


def named(thing: Any) -> Any:
    """Return the description of a class or function: its path, and its version if it has one.

    For code outside this package it also holds the hash of the source, the values that a class or function defined
    inside a function captures, and those that a function reads from modules.
    """
    version = None if dataclasses.is_dataclass(thing) else getattr(thing, "version", None)  # see described()
    module = "__main__" if thing.__module__ == "__mp_main__" else thing.__module__
    written, owner = source(thing), getattr(thing, "__self__", None)
    text = f"{module}.{thing.__qualname__}"
    text = text if written else getattr(thing, "__dict__", {}).get("kind", text)
    text += f" version {version}" if isinstance(version, int) else ""
    text += f" source {written}" if written else ""
    held = {}
    for name, value in read_globals(thing).items() if written else ():
        with contextlib.suppress(MadError, RuntimeError):  # an array of texts, a tensor without values
            held[name] = describe(value)
    rest = {"globals": held} if held else {}
    if owner is not None and not isinstance(owner, ModuleType):  # a method
        return {"call": text, "self": describe(owner), **rest}
    values = taken_along(thing) if written else []
    rest |= {"values": describe(values)} if values else {}
    return {"call": text, **rest} if rest else text


def numbers(values: Any) -> dict[str, Any]:
    """Return the type, shape and checksum of a tensor or an array.

    Raises:
        MadError: if an array holds values that no tensor can, such as objects.
    """
    import numpy as np
    import torch

    if isinstance(values, np.ndarray):  # torch takes no view that goes backwards, and no other order of bytes
        values = np.array(values, dtype=values.dtype.newbyteorder("="), order="C")
    try:
        held = torch.as_tensor(values).detach().cpu().contiguous()
    except TypeError as error:
        raise MadError(f"cannot fingerprint an array of {values.dtype}: make it numbers") from error
    content = hashlib.sha256(held.flatten().view(torch.uint8).numpy().data).hexdigest()
    return {"numbers": str(held.dtype), "shape": list(held.shape), "sha256": content}


def taken_along(thing: Any) -> list[Any]:
    """Return the values that a class or function defined inside a function captures: attributes, defaults, closures."""
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
                with contextlib.suppress(ValueError):  # an empty closure cell
                    values.append(cell.cell_contents)
    return [value for value in values if value is not thing]


def beside(function: FunctionType, thing: Any) -> bool:
    """Return whether a function was written in the file of ``thing``; methods generated by dataclasses were not."""
    return function.__code__.co_filename == inspect.getfile(thing)


def contents(thing: Any) -> Any:
    """Return what identifies the data of a part, such as a checksum; None if its fields do."""
    from mad.datasets.checked import contents  # imports torch

    return contents(thing)


def digest(description: Any) -> str:
    """Return the fingerprint of a description: 16 hexadecimal digits of its SHA-256."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def identity(part: Any) -> str:
    """Return a hash of a part that includes its fields with ``compare=False``, such as paths: a key for loaded data."""
    fields = dataclasses.fields(part) if dataclasses.is_dataclass(part) else ()
    places = {field.name: repr(getattr(part, field.name)) for field in fields if not field.compare}
    return digest([describe(part), places])


def settings(thing: Any) -> str:
    """Return the fields of a dataclass that differ from their defaults, as ``name=value``, joined by spaces.

    Fields without a default, a defense's strength parameter and an attack's budget are left out. A nested dataclass is
    shown by its ``name`` and its own changed fields. Code outside this package also shows a hash of its source, so that
    results from before and after an edit are not taken for two seeds of the same part.
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
        elif isinstance(value, (list, tuple)) and value and all(map(dataclasses.is_dataclass, value)):
            value = " + ".join(map(part_text, value))
        elif callable(value):
            written = source(getattr(value, "func", value))
            value = name_of(value) + (f" source={written[:8]}" if written else "")
        changed.append(f"{field.name}={value}")
    return " ".join(changed)


def part_text(part: Any) -> str:
    """Return a part of a list: its ``name``, its strength if that is not the default, and its changed fields."""
    strength = getattr(part, "strength_parameter", "")
    own = [field for field in dataclasses.fields(part) if field.name == strength]
    told = [f"{each.name}={getattr(part, each.name)}" for each in own if getattr(part, each.name) != each.default]
    return " ".join(filter(None, [getattr(part, "name", type(part).__name__), *told, settings(part)]))


def name_of(factory: Any) -> str:
    """Return the name of an architecture in lower case; for a library such as timm, also the name of the model."""
    model = getattr(factory, "keywords", {}).get("name")
    return " ".join([getattr(factory, "func", factory).__name__.lower(), *([str(model)] if model else [])])
