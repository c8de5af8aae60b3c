"""Hashes of the source of plug-ins, so that an edit to a plug-in changes the fingerprints of its results.

The hash covers the module that defines the plug-in and all of the author's own modules that it imports, directly or
through others. Two kinds of code are left out:

- this package, whose classes bump their ``version`` instead, and torch, torchvision, timm and Python (the column
  ``torch`` of a record holds the version of torch);
- other installed libraries that a plug-in imports.

The hash does not notice other inputs, such as a data file or a module imported by a computed name.
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
MAIN = ("__main__", "__mp_main__")  # the script that was started, also in a multiprocessing child
READ: dict[str, tuple[ModuleSpec, bytes]] = {}  # source of loaded modules, as first read


def source(thing: Any) -> str | None:
    """Return a hash, 16 hexadecimal digits, of the source of a class or function; None if it is ``provided``.

    Raises:
        MadError: if it was not written in a file but in a notebook cell or at a prompt, or if its file cannot be read.
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
    """Return the top-level package of a module."""
    return module.partition(".")[0]


@functools.cache
def provided(module: str) -> bool:
    """Return whether a module belongs to ``PROVIDED`` or to Python's standard library; its source is not hashed."""
    name = top(module)
    if name in PROVIDED or name not in sys.stdlib_module_names:
        return name in PROVIDED
    spec = spec_of(name)  # a user's queue.py may hide Python's
    return not located(spec) or Path(str(spec and spec.origin)).is_relative_to(sysconfig.get_path("stdlib"))


def located(spec: ModuleSpec | None) -> bool:
    """Return whether a module is a file, not built in or frozen."""
    return spec is not None and spec.has_location and spec.origin is not None


def installed(spec: ModuleSpec) -> bool:
    """Return whether a module lies in a folder in which pip installs libraries."""
    return not INSTALLED.isdisjoint(Path(str(spec.origin)).parts)


def spec_of(module: str) -> ModuleSpec | None:
    """Return the import spec of a module without importing it; None if there is no such module."""
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
    """Add to ``found`` the source of a module, of its parent packages and of the modules that it imports.

    Args:
        module: its name.
        home: the package of the plug-in; other installed packages are not followed.
        found: source by module name, extended in place.
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
    """Add to ``found`` the source of the modules that ``content`` imports; see ``follow``."""
    for name in imports(content, package):
        follow(name, home, found)


@functools.lru_cache(maxsize=1024)
def imports(content: bytes, package: str) -> tuple[str, ...]:
    """Return the names that a source imports anywhere in it; some may be functions or classes, not modules.

    Args:
        content: the source.
        package: the package that it belongs to, for relative imports.
    """

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
    except (SyntaxError, ValueError):  # written for another version of Python, so it cannot be imported here
        return ()


def read(module: str, spec: ModuleSpec) -> bytes:
    """Return a module's source. For a loaded module it is read once: an edit has no effect on the running code.

    Raises:
        MadError: if the source cannot be read.
    """
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
    """Return the source of the script in which a class or function was written, if it belongs to no module.

    Raises:
        MadError: if it was not written in a file.
    """
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
    """Return the source of a script, read once per process."""
    return Path(file).read_bytes()
