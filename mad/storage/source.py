"""The code of plug-ins: what their authors wrote belongs to the name of all that it makes.

Of this package a class bumps its ``version`` instead; torch, torchvision, timm and Python are named, whatever their
version (a record's column ``torch`` says one). Of anything else the source counts, with the source of each module of
the author's own that it imports, directly or through others; of further installed libraries it imports nothing does.
Whatever is read in another way (a file of numbers, a module imported by a computed name) is unknown here.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from mad.errors import MadError

PROVIDED = ("mad", "torch", "torchvision", "timm")
INSTALLED = {"site-packages", "dist-packages"}
MAIN = ("__main__", "__mp_main__")  # the script that was started, here and in a process that multiprocessing began
READ: dict[str, tuple[ModuleSpec, bytes]] = {}  # as it was when a loaded module's name was first asked for


def source(thing: Any) -> str | None:
    """Return the 16 hexadecimal digits that name the source of a class or function; None for what is provided.

    Raises:
        MadError: if it was not written in a file: in a notebook's cell, at a prompt.
    """
    if provided(thing.__module__ or "builtins"):
        return None
    found: dict[str, bytes] = {}
    for part in inspect.getmro(thing) if inspect.isclass(thing) else [thing]:
        if part.__module__ in MAIN or (part is thing and not located(spec_of(part.__module__))):
            content = found[f"__main__.{part.__qualname__}"] = written(part)
            follow_imports(content, "", "", found)
        else:
            follow(part.__module__, top(thing.__module__), found)
    hashes = [[name, hashlib.sha256(content).hexdigest()] for name, content in sorted(found.items())]
    return hashlib.sha256(repr(hashes).encode()).hexdigest()[:16]


def top(module: str) -> str:
    """Return the package that a module belongs to."""
    return module.partition(".")[0]


@functools.cache
def provided(module: str) -> bool:
    """Tell whether a module is of this package, a library that it is made with, or Python's own."""
    name = top(module)
    if name in PROVIDED or name not in sys.stdlib_module_names:
        return name in PROVIDED
    spec = spec_of(name)  # a user's queue.py may stand before Python's
    return not located(spec) or Path(str(spec and spec.origin)).is_relative_to(sysconfig.get_path("stdlib"))


def located(spec: ModuleSpec | None) -> bool:
    """Tell whether a module lies in a file."""
    return spec is not None and spec.has_location and spec.origin is not None


def installed(spec: ModuleSpec) -> bool:
    """Tell whether a module was put where pip puts libraries."""
    return not INSTALLED.isdisjoint(Path(str(spec.origin)).parts)


def spec_of(module: str) -> ModuleSpec | None:
    """Return where a module is, or None if there is none of that name; it is not imported."""
    spec = getattr(sys.modules.get(module), "__spec__", None)
    if spec is not None:
        return spec
    above, _, _ = module.rpartition(".")
    try:
        if not above:
            return importlib.util.find_spec(module)
        package = spec_of(above)
        places = package and package.submodule_search_locations
        return PathFinder.find_spec(module, places) if places else None
    except (ImportError, ValueError):
        return None


def follow(module: str, home: str, found: dict[str, bytes]) -> None:
    """Add the source of a module, of the packages it is in and of what it imports.

    Args:
        module: its name.
        home: the package that is asked about: of installed packages only this one is followed.
        found: source by module.
    """
    if module in found or not module or provided(module):
        return
    package = spec_of(top(module))
    if package is None or (top(module) != home and installed(package)):
        return
    follow(module.rpartition(".")[0], home, found)
    spec = spec_of(module)
    if spec is None or not located(spec) or (top(module) != home and installed(spec)):
        return
    found[module] = content = read(module, spec)
    if str(spec.origin).endswith(".py"):
        inside = spec.submodule_search_locations is not None
        follow_imports(content, module if inside else module.rpartition(".")[0], home, found)


def follow_imports(content: bytes, package: str, home: str, found: dict[str, bytes]) -> None:
    """Add what a source imports; see ``follow``."""
    for name in imports(content, package):
        follow(name, home, found)


@functools.lru_cache(maxsize=1024)
def imports(content: bytes, package: str) -> tuple[str, ...]:
    """Return the modules, and names that may be modules, that a source of a package imports anywhere in it."""

    def names() -> Iterator[str]:
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.Import):
                yield from (each.name for each in node.names)
            if isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
                base = ".".join(filter(None, [*above, node.module or ""]))
                yield base
                yield from (f"{base}.{each.name}".lstrip(".") for each in node.names)

    try:
        return tuple(dict.fromkeys(names()))
    except (SyntaxError, ValueError):  # of another Python, and imported nowhere
        return ()


def read(module: str, spec: ModuleSpec) -> bytes:
    """Return a module's source; of a loaded one, as it was at first, since an edit changes nothing until a reload."""
    known = READ.get(module)
    if known is not None and known[0] is spec:
        return known[1]
    try:
        content: bytes = spec.loader.get_data(str(spec.origin))  # type: ignore[union-attr]  # also from a zip file
    except (OSError, AttributeError) as error:
        raise MadError(f"the source of {module} cannot be read ({error}): what it makes can have no name") from error
    if module in sys.modules:
        READ[module] = spec, content
    return content


def written(thing: Any) -> bytes:
    """Return the file in which a class or function of no module of its own was written."""
    parts = vars(thing).values() if inspect.isclass(thing) else [thing]
    files = {part.__code__.co_filename for part in parts if inspect.isfunction(part)}
    main = sys.modules["__main__"]
    if hasattr(main, thing.__qualname__.partition(".")[0]):
        files.add(getattr(main, "__file__", None) or "")
    there = sorted(file for file in files if Path(file).is_file())
    if not there:
        raise MadError(
            f"{thing.__qualname__} was not written in a file, so its results can have no name: "
            "put it into a module (a .py file) and import it from there"
        )
    return b"".join(map(script, there))


@functools.cache
def script(file: str) -> bytes:
    """Return a script as it was when it was first asked for: an edit changes nothing in this process."""
    return Path(file).read_bytes()
