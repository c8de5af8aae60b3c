"""Recipes of objects as JSON: import paths and arguments, from which the objects are made again without pickle.

A recipe names code to import and to call, so it is to be trusted like that code. It can name classes of networks,
dataclasses and functions that are not Python's or torch's own, and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from torch import nn

from mad.datasets import Split
from mad.errors import RAISED, MadError

MAIN = ("__main__", "__mp_main__")
REFUSED = ("builtins", "torch", "numpy", *sys.stdlib_module_names)  # their functions can do anything


@dataclass(frozen=True)
class Absent:
    """A data set that did not travel: its name, classes and shape, and the names of its classes if it has any."""

    name: str
    classes: int
    shape: tuple[int, int, int]
    names: Sequence[str] | None = field(default=None, compare=False)

    def train(self) -> Split:
        """Raise MadError: there are no images."""
        raise MadError(f"data set {self.name} is not part of what was exported: nothing can be trained on it")

    test = train

    def contents(self) -> None:
        """Return None: there are no images to hash."""


def absent(dataset: Any) -> Absent:
    """Return the name, classes and shape of a data set."""
    channels, height, width = (int(side) for side in dataset.shape)
    return Absent(str(dataset.name), int(dataset.classes), (channels, height, width))


def recipe_of(thing: Any, what: str) -> Any:
    """Return the recipe of a dataclass, a partial, a class, a function or a plain value, as JSON can hold it.

    Of a data set it keeps name, classes and shape only.

    Args:
        thing: the object.
        what: names it, for errors.

    Raises:
        MadError: if it has none: it is a lambda, local to a function or a script, or of another kind.
    """
    if thing is None or isinstance(thing, (bool, int, str)) or (isinstance(thing, float) and math.isfinite(thing)):
        return thing
    if isinstance(thing, (list, tuple)):
        values = [recipe_of(each, what) for each in thing]
        return values if isinstance(thing, list) else {"tuple": values}
    if isinstance(thing, dict) and all(isinstance(key, str) for key in thing):
        return {"dict": {key: recipe_of(value, what) for key, value in thing.items()}}
    if isinstance(thing, functools.partial):
        given = {name: recipe_of(value, what) for name, value in thing.keywords.items()}
        return {"partial": path_of(thing.func, what), "arguments": recipe_of(list(thing.args), what), "keywords": given}
    if all(hasattr(thing, name) for name in ("train", "test", "name", "classes", "shape")):
        found = absent(thing)
        return {"data": {"name": found.name, "classes": found.classes, "shape": list(found.shape)}}
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        taken = [field.name for field in dataclasses.fields(thing) if field.init]
        return {
            "new": path_of(type(thing), what),
            "fields": {name: recipe_of(getattr(thing, name), what) for name in taken},
        }
    if isinstance(thing, (type, FunctionType)):
        return {"import": path_of(thing, what)}
    raise MadError(f"{what} cannot be exported: it holds a {type(thing).__qualname__}, which no import path makes")


def path_of(thing: Any, what: str) -> str:
    """Return the import path ``module:name`` of a class or function.

    Raises:
        MadError: if importing it would not give it back.
    """
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", type(thing).__qualname__)
    if not module or module in MAIN or "<" in name:
        where = "the script that was started" if module in MAIN else "a function"
        raise MadError(f"{what} cannot be exported: {name} is written in {where}; put it at the top of a module")
    path = f"{module}:{name}"
    try:
        same = imported(path, what) is thing
    except MadError as error:
        raise MadError(f"{what} cannot be exported: {error}") from error
    if not same:
        raise MadError(f"{what} cannot be exported: importing {path} gives something else")
    return path


def imported(path: Any, what: str) -> Any:
    """Return what an import path names.

    Raises:
        MadError: if it cannot be imported, or is neither a network's class, nor a dataclass, nor a function.
    """
    module, _, name = str(path).partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except RAISED as error:  # whatever a module raises
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise MadError(
            f"{what} needs {path}, which cannot be imported ({why}): "
            "install what it is part of, or start where its file lies"
        ) from error
    own = getattr(found, "__module__", None) or module
    network = isinstance(found, type) and (issubclass(found, nn.Module) or dataclasses.is_dataclass(found))
    if not (network or isinstance(found, FunctionType)) or own.partition(".")[0] in REFUSED:
        raise MadError(f"{what} names {path}, which is no network's class, no dataclass and no function of a package")
    return found


def made(recipe: Any, what: str) -> Any:
    """Return the object that a recipe describes.

    Raises:
        MadError: if the recipe is not one, or if something that it names cannot be imported or made.
    """
    if isinstance(recipe, list):
        return [made(each, what) for each in recipe]
    if not isinstance(recipe, dict):
        return recipe
    try:
        if "tuple" in recipe:
            return tuple(made(each, what) for each in recipe["tuple"])
        if "dict" in recipe:
            return {name: made(each, what) for name, each in recipe["dict"].items()}
        if "items" in recipe:
            return {made(name, what): made(each, what) for name, each in recipe["items"]}
        if "data" in recipe:
            return absent(Absent(**recipe["data"]))
        if "import" in recipe:
            return imported(recipe["import"], what)
        if "partial" in recipe:
            given = {name: made(each, what) for name, each in recipe["keywords"].items()}
            return functools.partial(imported(recipe["partial"], what), *made(recipe["arguments"], what), **given)
        return imported(recipe["new"], what)(**{name: made(each, what) for name, each in recipe["fields"].items()})
    except MadError:
        raise
    except RAISED as error:  # whatever a constructor raises
        raise MadError(
            f"{what} cannot be made from its recipe ({type(error).__name__}: {' '.join(str(error).split())[:150]})"
        ) from error
