"""Lets ``from mad.defenses import Mad`` find a plug-in's class, so that a plug-in is one file and stands in no list."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any


def exports(package: str, path: list[str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's ``__getattr__`` and ``__dir__``: the public classes of all its modules.

    Modules are imported when a name that the package does not have is first asked for.

    Args:
        package: its name.
        path: its ``__path__``.
    """

    def modules() -> list[ModuleType]:
        return [importlib.import_module(f"{package}.{each.name}") for each in pkgutil.iter_modules(path)]

    def public(module: ModuleType) -> dict[str, Any]:
        classes = {name: each for name, each in vars(module).items() if isinstance(each, type) and name[0].isupper()}
        return {name: each for name, each in classes.items() if each.__module__ == module.__name__}

    def get(name: str) -> Any:
        if name[0].isupper():  # other names are Python's own, or those of modules, which it is about to import
            for module in modules():
                if name in public(module):
                    return vars(module)[name]
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def listed() -> list[str]:
        return sorted({name for module in modules() for name in public(module)})

    return get, listed
