"""Errors in code of others, such as plug-ins: whose they are, what happened and where, in one line."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from mad.errors import MadError
from mad.storage.source import INSTALLED, provided, top

KINDS = {"Defense": "defense", "Attack": "attack", "Recovery": "recovery"}  # the base classes of plug-ins with a name
LIBRARIES = ("hydra", "omegaconf", "hydra_plugins", "importlib")  # which call code of others
MOST, LONGEST = 200, 300  # characters of an error's text, of a plug-in's and of others


def said(error: BaseException) -> str | None:
    """Return what went wrong in a plug-in, where and in whose; None for an error that was raised outside plug-ins."""
    place = located(error)
    if place is None and not isinstance(error, SystemExit):
        return None
    at = "" if place is None else f" ({place})"
    whose = next(filter(None, map(owner, frames(error))), None)
    if whose is not None:
        return f"{whose} {deed(error)}{at}"
    return f"{place or 'a plug-in'} {deed(error)}"


@contextmanager
def staying() -> Iterator[None]:
    """Raise MadError for a plug-in's ``sys.exit()``, which would end the caller's program."""
    try:
        yield
    except SystemExit as error:
        raise MadError(str(said(error))) from error


def told(error: BaseException) -> str:
    """Return an error's text in one line; but for this package's own errors, with its kind or with whose it is."""
    text = " ".join(str(error).split())[:LONGEST]
    return text if isinstance(error, MadError) else said(error) or f"{type(error).__name__}: {text}"


def deed(error: BaseException) -> str:
    """Return what an error did: it ended the program, or was raised."""
    if isinstance(error, SystemExit):
        code = "" if error.code is None else repr(error.code)[:MOST]
        return f"ended the program with sys.exit({code}): let it raise an error instead"
    text = " ".join(str(error).split())[:MOST]
    return f"raised {type(error).__name__}{': ' * bool(text)}{text}"


def located(error: BaseException) -> str | None:
    """Return the last line of a plug-in's code in an error's traceback, such as ``flatten.py line 17``; else None."""
    found = frames(error)
    homes = {top(type(frame.f_locals["self"]).__module__) for frame, _ in found if owner((frame, 0))}
    for frame, line in reversed(found):
        if own(frame) or top(module_of(frame)) in homes:
            return f"{Path(frame.f_code.co_filename).name} line {line}"
    return None


def frames(error: BaseException) -> list[tuple[FrameType, int]]:
    """Return the frames of an error's traceback with their lines, the outermost first."""
    return list(traceback.walk_tb(error.__traceback__))


def module_of(frame: FrameType) -> str:
    """Return the name of the module whose code a frame runs."""
    return str(frame.f_globals.get("__name__") or "")


def own(frame: FrameType) -> bool:
    """Return whether a frame runs a file that is neither this package's, nor Python's, nor an installed library's."""
    module, file = module_of(frame), frame.f_code.co_filename
    if top(module) in LIBRARIES or not file.endswith(".py") or not INSTALLED.isdisjoint(Path(file).parts):
        return False
    return not provided(module)


def owner(found: tuple[FrameType, int]) -> str | None:
    """Return the plug-in and the method that a frame runs, such as ``defense flatten: perturb``; None for others."""
    frame, _ = found
    this: Any = frame.f_locals.get("self")
    kind = type(this)
    if provided(module_of(frame)) or provided(kind.__module__ or ""):
        return None
    bases = [base.__name__ for base in kind.__mro__ if provided(base.__module__)]
    what = next((KINDS[base] for base in bases if base in KINDS), None)
    return f"{what} {getattr(this, 'name', kind.__name__)}: {frame.f_code.co_name}" if what else None
