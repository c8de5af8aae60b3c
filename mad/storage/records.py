"""Reading all records into one data frame, and writing it as ``records.csv``."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from mad.errors import MadError
from mad.progress import err
from mad.schema import Record
from mad.storage.files import below, write_alone
from mad.storage.record_file import read_record

ORDER = ["victim", "pool", "attack", "recovery", "budget", "defense", "defense_settings", "strength", "seed"]

EXACT = 2**53  # above it floats cannot hold every whole number


def read(outputs: Path) -> pd.DataFrame:
    """Return the records below ``outputs/runs``, one row each, sorted by ``ORDER``.

    Damaged records are left out, and a line on stderr names each.
    """
    rows = []
    for path in sorted((outputs / "runs").glob("*/*/*/*/record.json")):
        try:
            row = read_record(below(outputs, path.relative_to(outputs)))
        except MadError as error:
            err.print(f"{error}: it was left out", soft_wrap=True, markup=False)
            continue
        if row is not None:
            rows.append(row)
    return frame(rows)


def frame(rows: Iterable[Record]) -> pd.DataFrame:
    """Return records as a sorted data frame, one row each.

    The column ``stolen_accuracy_undefended`` is added: the stolen accuracy without a defense, from the record of the
    same comparison group and seed.
    """
    every = list(rows)
    names = dict.fromkeys(name for row in every for name in row)
    table = pd.DataFrame({name: column([row.get(name) for row in every]) for name in names})
    if table.empty:
        return table
    undefended = table[table.defense == "none"].set_index(["comparison_group", "seed"]).stolen_accuracy.to_dict()
    keys = zip(table.comparison_group, table.seed, strict=True)
    table["stolen_accuracy_undefended"] = [undefended.get(key) for key in keys]
    return table.sort_values([key for key in ORDER if key in table], kind="stable").reset_index(drop=True)


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
    """Write ``records.csv`` and return its path. Series are left out; characters that UTF-8 cannot hold are escaped."""
    series = [name for name in table if table[name].map(lambda value: isinstance(value, list)).any()]
    path, table = Path("records.csv"), table.drop(columns=series)
    text = table.to_csv(index=False)
    if "\r" in text:  # readers take it for the end of a line, and to_csv does not quote it by default
        text = table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
    return write_alone(outputs, path, path, text.encode(errors="backslashreplace"))
