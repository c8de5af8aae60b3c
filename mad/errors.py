"""The package's errors, whose text is one line: what was expected, what was given and what to do."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class MadError(Exception):
    """An error in the user's input or data; its text is one line."""


RAISED = (Exception, SystemExit)  # what a plug-in may raise, sys.exit() too; Ctrl-C, a KeyboardInterrupt, is none of it


class SettingError(MadError):
    """A setting has a wrong value.

    Args:
        name: the setting, as the code that checks it calls it; the command line may have a longer key for it.
        what: what it must be, and what was given.
    """

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name} {what}")
        self.name, self.what = name, what

    def __reduce__(self) -> tuple[type[SettingError], tuple[str, str]]:  # from a process of its own
        return SettingError, (self.name, self.what)


class UnfitError(MadError):
    """An attack, a recovery or a training choice does not go with the victim, its data or the pool.

    The panel and other grids of adversaries leave such a cell out; asked for by itself, it is an error.
    """


class BudgetExceededError(MadError):
    """The black-box API refused a query because the budget is spent."""


def check_number(name: str, value: Any, low: float, high: float = math.inf, *, whole: bool = False) -> Any:
    """Return ``value`` if it is a finite number in [``low``, ``high``].

    Raises:
        MadError: if it is not a number, not whole where ``whole`` is asked for, or out of range.
    """
    kind = "a whole number" if whole else "a number"
    bounds = f"of at least {low:g}" if math.isinf(high) else f"in [{low:.15g}, {high if whole else f'{high:g}'}]"
    right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not right or not math.isfinite(value) or not low <= value <= high:
        written = whole and isinstance(value, float) and value.is_integer() and low <= value <= min(high, 1e15)
        hint = f": write it out, {int(value)}" if written else ""
        raise SettingError(name, f"must be {kind} {bounds}, got {value!r}{hint}")
    return value


def whole_numbers(name: str, text: str, low: float = 0) -> list[int]:
    """Return the whole numbers of at least ``low`` that a text lists, with commas between them.

    Raises:
        MadError: if a word of it is no such number.
    """
    try:
        return [check_number(name, int(word), low, whole=True) for word in text.split(",")]
    except ValueError as error:
        raise SettingError(name, f"must be whole numbers with commas between them, got {text!r}") from error


def check_kind(name: str, value: Any, kind: type, how: str = "") -> None:
    """Check that ``value`` is an object of a class.

    Args:
        name: what it is given for, for the error.
        value: the object.
        kind: the class.
        how: how to get one, for the error.

    Raises:
        MadError: if it is something else, such as the class itself.
    """
    if not isinstance(value, kind):
        hint = f", such as {how}" if how else ""
        raise MadError(f"{name} must be a {kind.__name__}{hint}; got {repr(value)[:80]}")


def check_flag(name: str, value: Any) -> None:
    """Check that ``value`` is a bool; a string such as ``"no"`` would count as true.

    Raises:
        MadError: if it is not.
    """
    if not isinstance(value, bool):
        raise SettingError(name, f"must be true or false, got {value!r}")


def check_there(name: str, folder: Path) -> Path:
    """Return an outputs folder that is to be read.

    Raises:
        MadError: if it is not there; to a reader, a mistyped one would look like one without records.
    """
    if not folder.is_dir():
        raise MadError(f"{name}: there is no folder {folder}; name the outputs folder of earlier runs")
    return folder


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Check that ``value`` is one of the choices.

    Raises:
        MadError: if it is not.
    """
    if value not in choices:
        raise SettingError(name, f"must be one of {', '.join(choices)}, got {value!r}")


def check_name(name: str, value: Any) -> None:
    """Check that ``value`` is a safe name of a folder: up to 64 letters, digits, ``_``, and ``. + -`` after the first.

    Letters may be of any alphabet; each then takes up to four of the 255 bytes that a folder's name may have.

    Raises:
        MadError: if it is not.
    """
    if not isinstance(value, str) or not re.fullmatch(r"\w[\w.+-]{0,63}", value):
        what = f"must be up to 64 letters, digits and any of _ . + - that name a folder, got {value!r}"
        raise SettingError(name, what)
    if len(value.encode()) > 255:
        what = f"must be up to 255 bytes, got {len(value.encode())}: {value!r}; choose a shorter name"
        raise SettingError(name, what)


def near(name: str, choices: Sequence[str], most: int = 1) -> str:
    """Return ``(did you mean ...?)`` with the choices that are most similar to a name; empty if there are none.

    Case is ignored, and so is the part of a choice before its last ``/``.
    """
    looks: dict[str, str] = {}
    for choice in choices:
        looks |= {choice.lower(): choice, choice.lower().rpartition("/")[2]: choice}
    found = list(dict.fromkeys(looks[each] for each in difflib.get_close_matches(name.lower(), looks, n=most)))
    return f" (did you mean {' or '.join(found)}?)" if found else ""
