"""Reading all records into one data frame, and writing it as ``records.csv``."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from mad.errors import MadError
from mad.progress import err
from mad.schema import EVERY, SECTIONS, Record, fault, out_of_range
from mad.storage import settled
from mad.storage.files import DamagedError, below, set_aside, write_alone
from mad.storage.record_file import read_record

ORDER = ["victim", "pool", "attack", "recovery", "budget", "defense", "defense_settings", "strength", "seed"]

UNTIMED = [column.name for column in SECTIONS["Where and how long"]]  # no board or figure needs these
NEEDED = [column.name for column in EVERY.values() if column.needed and column.name not in UNTIMED]
NAMES = ("victim", "pool", "defense", "attack", "recovery", "comparison_group", "fingerprint")  # none is empty
FINGERPRINT = b"fingerprint"  # a column of every table of records
EXACT = 2**53  # above it floats cannot hold every whole number


def read(outputs: Path, others: Iterable[Record] = ()) -> pd.DataFrame:
    """Return the records below ``outputs/runs``, and ``others`` that are not there, one row each, sorted by ``ORDER``.

    Damaged records are left out, and a line on stderr names each.
    """
    rows = []
    for path in paths(outputs):
        try:
            row = read_record(below(outputs, path.relative_to(outputs)))
        except MadError as error:
            err.print(f"{error}: it was left out", soft_wrap=True, markup=False)
            continue
        if row is not None:
            rows.append(row)
    known = {row["fingerprint"]: row for row in [*others, *rows]}
    return frame(known.values())


def paths(outputs: Path) -> list[Path]:
    """Return where the records of an outputs folder lie, sorted; some may be damaged."""
    return sorted((outputs / "runs").glob("*/*/*/*/record.json"))


def read_csv(path: Path) -> list[Record]:
    """Return the records in a file such as ``records.csv``, which another machine may have written.

    Columns may be missing, but for those that every record must have; seconds and machine may be missing, too.

    Raises:
        MadError: if the file cannot be read, if it has no line, or if a line is no record.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a mark before it
            lines = list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MadError(f"{path} cannot be read as records.csv: {error}") from error
    if not lines:
        raise MadError(f"{path} holds no record; expected lines as mad-figures writes to records.csv")
    found = []
    for number, line in enumerate(lines, start=1):
        cells = {name: parsed(name, text) for name, text in line.items() if name is not None and text is not None}
        record = {name: value for name, value in cells.items() if value is not None}
        lacking = next((name for name in NEEDED if name not in record), None)
        lacking = lacking or next((name for name in NAMES if not record[name]), None)
        extra = "more cells than the head" if None in line else None
        wrong = extra or (f"no {lacking}" if lacking else fault(record) or out_of_range(record))
        if wrong:
            raise MadError(f"{path}, record {number}: {wrong}; expected lines as mad-figures writes to records.csv")
        found.append(record)
    return found


def parsed(name: str, text: str) -> Any:
    """Return the value that a cell of ``records.csv`` stands for; the text itself where it stands for no other kind."""
    kind = EVERY[name].kind if name in EVERY else None
    if not text or kind == "text":
        return text if kind == "text" else None
    if text in ("True", "False") and kind is None:
        return text == "True"
    if kind == "true or false" and text.lower() in ("true", "false"):  # spreadsheets write TRUE
        return text.lower() == "true"
    for number in (float,) if kind == "number" else (int, float):
        with suppress(ValueError):
            value = number(text)
            whole = kind == "whole number" and isinstance(value, float) and value.is_integer()
            return int(value) if whole else value  # where a column has gaps, some programs write 3 as 3.0
    return text


def frame(rows: Iterable[Record]) -> pd.DataFrame:
    """Return records as a sorted data frame, one row each.

    The column ``stolen_accuracy_undefended`` is added: the stolen accuracy without a defense, from the record of the
    same comparison group, victim and seed. ``mad.storage.settled`` says which records are of one defense and victim.
    """
    every = list(rows)
    names = dict.fromkeys(name for row in every for name in row)
    table = pd.DataFrame({name: column([row.get(name) for row in every]) for name in names})
    if table.empty:
        return table
    table = settled.settle(table)
    settled.warn(table)
    victims = table.get("victim_seed", table.seed)
    victims = victims.where(victims.notna(), table.seed)
    keys = pd.Series(list(zip(table.comparison_group, victims, table.seed, strict=True)), index=table.index)
    none = table.defense == "none"
    undefended = dict(zip(keys[none], table.stolen_accuracy[none], strict=True))
    table["stolen_accuracy_undefended"] = [undefended.get(key) for key in keys]
    sortable = pd.DataFrame({key: settled.encodable(table[key]) for key in ORDER if key in table})
    order = sortable.sort_values([str(key) for key in sortable.columns], kind="stable").index
    return table.loc[order].reset_index(drop=True)


def once(table: Any) -> pd.DataFrame:
    """Return a data frame of records with each of them once; it may be of several folders, or of a ``records.csv``.

    Raises:
        MadError: if it is something else, or lacks columns.
    """
    if not isinstance(table, pd.DataFrame):
        raise MadError(f"records are a data frame, such as mad.records(outputs), got {type(table).__name__}")
    lacking = [name for name in NEEDED if name not in table]
    if lacking:
        raise MadError(f"these are no records, which have a column {lacking[0]}: take rows of mad.records(outputs)")
    return settled.settle(settled.printable(table.drop_duplicates("fingerprint").reset_index(drop=True)))


def column(values: list[Any]) -> pd.Series[Any]:
    """Return values as a column, of the type that pandas infers, or of objects where that type could not hold them.

    Floats hold no whole number above ``EXACT``; pandas' texts, where pyarrow is installed, nothing but UTF-8.
    """
    large = any(isinstance(value, int) and abs(value) > EXACT for value in values)
    odd = any(isinstance(value, str) and not value.isascii() and not encodes(value) for value in values)
    return pd.Series(values, dtype=object if large or odd else None)


def encodes(text: str) -> bool:
    """Return whether a text can be written as UTF-8: a file's name may hold bytes that are none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def write_csv(table: pd.DataFrame, outputs: Path) -> Path:
    """Write ``records.csv`` and return its path. Series are left out; characters that UTF-8 cannot hold are escaped.

    Whole numbers are written as such, also in a column with gaps, which a data frame holds as floats. A file of that
    name that is no table of records is set aside.
    """
    series = [name for name in table if table[name].map(lambda value: isinstance(value, list)).any()]
    counts = [name for name in table.select_dtypes("float") if name in EVERY and EVERY[name].kind == "whole number"]
    path, table = Path("records.csv"), table.drop(columns=series).astype(dict.fromkeys(counts, "Int64"))
    text = settled.csv_of(table)
    there = below(outputs, path)
    if there.is_file() and FINGERPRINT not in there.read_bytes().partition(b"\n")[0]:
        set_aside(DamagedError(there, "it is no table of records"))
    return write_alone(outputs, path, path, text.encode(errors="backslashreplace"))
