"""The columns of a record: their names, kinds, units, meanings and writers."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mad.errors import MadError

Record = dict[str, Any]
SEAL = "sha256"  # the key of a record's checksum
LARGEST = 2**1024  # bound of whole numbers: the range of floats, which every JSON reader supports
KINDS: dict[str, Any] = {
    "text": str,
    "number": (int, float),
    "whole number": int,
    "true or false": bool,
    "series": list,
}
COUNTED = ("bits", "nats", "queries", "seconds")  # units of numbers that are at least 0
ROUNDING = 1e-4  # how far rounding may take a number out of its range
FORMER = {"scene": "comparison_group", "dial": "strength_parameter"}  # names in records of earlier versions


@dataclass(frozen=True)
class Column:
    """A column of records.

    Args:
        name: its name in ``records.csv``; a Python identifier.
        kind: ``text``, ``number``, ``whole number``, ``true or false``; or ``series``, a list of numbers such as a
            curve or a histogram (None where there is none), which is stored in ``series.json`` and left out of tables.
        unit: unit and range, or empty.
        meaning: a one-line explanation.
        writer: the module or plug-in that writes it; a plug-in's own columns may leave it out.
        needed: whether every record must have a value; other columns may be empty.
    """

    name: str
    kind: str
    unit: str
    meaning: str
    writer: str = ""
    needed: bool = False

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.kind not in KINDS:
            raise MadError(f"a column has an identifier as name and a kind of {', '.join(KINDS)}, got {self}")

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest number that its unit allows; infinite where it names none."""
        if self.unit == "share":
            return 0.0, 1.0
        least, most = re.search(r"at least (\d+)$", self.unit), re.search(r"(-?\d+) to (\d+)$", self.unit)
        if most:
            return float(most[1]), float(most[2])
        return float(least[1]) if least else 0.0 if self.unit in COUNTED else -math.inf, math.inf

    def fits(self, value: Any) -> bool:
        """Return whether a value is of the column's kind, or None."""
        if value is None:
            return True
        if self.kind == "series":
            return isinstance(value, list) and all(isinstance(each, (int, float, type(None))) for each in value)
        return isinstance(value, KINDS[self.kind]) and (self.kind == "true or false") == isinstance(value, bool)


def sections() -> dict[str, list[Column]]:
    """Return the columns of every record, in the sections of ``docs/records.md``."""
    found: dict[str, list[Column]] = {}
    with Path(__file__).with_name("columns.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            section, needed = row.pop("section"), row.pop("needed") == "yes"
            found.setdefault(section, []).append(Column(**row, needed=needed))
    return found


SECTIONS = sections()
EVERY = {column.name: column for columns in SECTIONS.values() for column in columns}


def merged(parts: Mapping[str, Mapping[str, Any]]) -> Record:
    """Return the columns of all parts in one record.

    Raises:
        MadError: if two parts write the same column.
    """
    found: Record = {}
    wrote: dict[str, str] = {}
    for part, columns in parts.items():
        for name, value in columns.items():
            if name in found:
                raise MadError(f"{part} and {wrote[name]} both write the column {name}: rename one")
            found[name], wrote[name] = value, part
    return found


def check(columns: Mapping[str, Any], whose: str, own: Iterable[Column] | None = None) -> None:
    """Check the columns that a part writes, early, before more time is spent on the cell.

    Args:
        columns: the columns that the part writes.
        whose: names the part, for errors.
        own: a plug-in's ``schema``; None for the columns of every record.

    Raises:
        MadError: if a record cannot hold a value, or if the part must not write a column.
    """
    wrong = next((f"{name} is a column of every record" for name in columns if own is not None and name in EVERY), None)
    known = EVERY if own is None else {column.name: column for column in own}
    unknown = next((name for name in columns if name not in known), None)
    if unknown is not None and wrong is None:
        wrong = f"{unknown!r} is not in its schema: add Column({unknown!r}, kind, unit, meaning) there"
    wrong = wrong or fault(columns, known)
    if wrong:
        raise MadError(f"{whose} cannot be recorded: {wrong}")


def fault(columns: Mapping[Any, Any], known: Mapping[str, Column] = EVERY) -> str | None:
    """Return which columns a record cannot hold, as a text; None if it can hold all.

    The rule is the same for writing and for reading. Any string and any finite number is read back unchanged.
    """
    for name, value in ((name, number_of(value)) for name, value in columns.items()):
        if not isinstance(name, str) or not name.isprintable() or name == SEAL:
            return f"{name!r} cannot be a column"
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, float) and not math.isfinite(each):
                return f"{name} is NaN or infinite ({each}): check the victim and the trainer"
            if isinstance(each, int) and abs(each) >= LARGEST:
                return f"{name} has too many digits"
            if not isinstance(each, (bool, int, float, str, type(None))):
                return f"{name} is {type(each).__name__}, no number and no text"
        if name in known and not known[name].fits(value):
            return f"{name} must be {known[name].kind}, got {value!r}"
    return None


def out_of_range(record: Record) -> str | None:
    """Return which number of a record that was read, perhaps after somebody edited it, cannot be; None if all can."""
    for name, value in record.items():
        if name not in EVERY or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        low, high = EVERY[name].bounds
        if not low - ROUNDING <= value <= high + ROUNDING:
            return (
                f"{name} must be {f'in [{low:g}, {high:g}]' if high < math.inf else f'at least {low:g}'}, got {value!r}"
            )
    return None


def number_of(value: Any) -> Any:
    """Return the number in a 0-dimensional tensor or array; any other value unchanged."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def table(columns: Iterable[Column], writer: str = "") -> str:
    """Return columns as a table in Markdown."""
    head = ["| column | type | unit, range | meaning | written by |", "| --- | --- | --- | --- | --- |"]
    rows = (f"| `{at.name}` | {at.kind} | {at.unit} | {at.meaning} | `{at.writer or writer}` |" for at in columns)
    return "\n".join([*head, *rows])
