"""Every ``record.json`` to one data frame."""

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

EXACT = 2**53  # above it a float leaves out whole numbers


def read(outputs: Path) -> pd.DataFrame:
    """Return one row a record below ``outputs/runs``, sorted by what it is of; what is damaged is left out."""
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
    """Return records as a data frame, one row each, with the undefended theft's accuracy beside them."""
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
    """Return a column of the type that pandas finds for it; of no type, where that could not hold a whole number."""
    large = any(isinstance(value, int) and abs(value) > EXACT for value in values)
    return pd.Series(values, dtype=object if large else None)


def write_csv(table: pd.DataFrame, outputs: Path) -> Path:
    """Write ``records.csv``, without series; what is no text in UTF-8 is shown by its escapes."""
    series = [name for name in table if table[name].map(lambda value: isinstance(value, list)).any()]
    path, table = Path("records.csv"), table.drop(columns=series)
    text = table.to_csv(index=False)
    if "\r" in text:  # which ends a line for who reads, and is not quoted by itself
        text = table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
    return write_alone(outputs, path, path, text.encode(errors="backslashreplace"))
