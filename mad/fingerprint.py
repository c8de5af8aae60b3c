"""What a thing is made of, and the name that follows from it.

A part of an experiment is a dataclass: its fields are its whole description. Fields with ``compare=False`` (paths,
devices) change no number and stay out, as does one whose metadata is ``ADDED`` while it has its default: it came to
the class later, and what was described before keeps its name. A class, also one that is named only as a factory, may
bump ``version`` when its algorithm changes its numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

ADDED = {"added": True}  # field(default=X, metadata=ADDED), where X does what was done before there was the field


def describe(thing: Any) -> Any:
    """Return the JSON-able description of a dataclass, a partial, a callable or a plain value.

    Raises:
        TypeError: for anything else, whose identity could not be told from its text.
    """
    if thing is None or isinstance(thing, (bool, int, str)):
        return thing
    if isinstance(thing, float):
        return int(thing) if thing.is_integer() else thing
    if isinstance(thing, Mapping):
        return {str(key): describe(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [describe(value) for value in thing]
    if isinstance(thing, functools.partial):
        given = {name: value for name, value in thing.keywords.items() if value is not None}  # None: as if not given
        return {"call": describe(thing.func), "args": describe(thing.args), **describe(given)}
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = {f.name: describe(getattr(thing, f.name)) for f in dataclasses.fields(thing) if f.compare}
        for f in dataclasses.fields(thing):
            if "added" in f.metadata and fields[f.name] == describe(f.default):
                del fields[f.name]
        held = contents(thing)
        fields |= {} if held is None else {"contents": describe(held)}
        return {"class": describe(type(thing)), "version": getattr(thing, "version", 1), **fields}
    if callable(thing) and hasattr(thing, "__qualname__"):
        version = None if dataclasses.is_dataclass(thing) else getattr(thing, "version", None)  # dataclasses say it apart
        return f"{thing.__module__}.{thing.__qualname__}" + (f" version {version}" if isinstance(version, int) else "")
    raise TypeError(f"cannot fingerprint {thing!r}: make it a dataclass, a partial or a plain value")


def contents(thing: Any) -> Any:
    """Return what stands for the data that a part holds, where its fields do not determine them; else None."""
    from mad.datasets.checked import contents  # imports torch

    return contents(thing)


def digest(description: Any) -> str:
    """Return the 16 hexadecimal digits that name a description."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def settings(thing: Any) -> str:
    """Return the fields of a dataclass that differ from their defaults, as ``name=value``.

    Fields without a default, a defense's dial and an attack's budget are not shown; a nested dataclass shows its
    ``name`` and its own such fields.
    """
    changed, apart = [], ("budget", getattr(thing, "dial", "epsilon"))
    for field in dataclasses.fields(thing):
        value = getattr(thing, field.name)
        missing = field.default is dataclasses.MISSING
        if field.name in apart or not field.compare or missing or describe(field.default) == describe(value):
            continue
        if dataclasses.is_dataclass(value):
            value = " ".join(filter(None, [getattr(value, "name", type(value).__name__), settings(value)]))
        elif callable(value):
            value = name_of(value)
        changed.append(f"{field.name}={value}")
    return " ".join(changed)


def name_of(factory: Any) -> str:
    """Return the lower-case name of an architecture's factory, and that of the model it makes, where it has many."""
    model = getattr(factory, "keywords", {}).get("name")
    return " ".join([getattr(factory, "func", factory).__name__.lower(), *([str(model)] if model else [])])
