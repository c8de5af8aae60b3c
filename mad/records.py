"""Every ``record.json`` to one data frame."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from mad.progress import err
from mad.store import Record, write

REQUIRED = (
    "victim",
    "pool",
    "defense",
    "epsilon",
    "attack",
    "scene",
    "seed",
    "fingerprint",
    "stolen_accuracy",
)
ORDER = ["victim", "pool", "attack", "recovery", "budget", "defense", "defense_settings", "epsilon", "seed"]


def read(outputs: Path) -> pd.DataFrame:
    """Return one row a record below ``outputs/runs``, sorted by what it is of; files that are no record are skipped."""
    rows = []
    for path in sorted((outputs / "runs").glob("*/*/*/*/record.json")):
        try:
            row = json.loads(path.read_text())
        except (ValueError, OSError):
            row = None
        if not isinstance(row, dict) or not all(key in row for key in REQUIRED):
            err.print(f"{path} is no record and was left out")
            continue
        rows.append(row)
    return frame(rows)


def frame(rows: Iterable[Record]) -> pd.DataFrame:
    """Return records as a data frame, one row each, with the undefended theft's accuracy beside them."""
    table = pd.DataFrame(list(rows))
    if table.empty:
        return table
    undefended = table[table.defense == "none"].set_index(["scene", "seed"]).stolen_accuracy.to_dict()
    keys = zip(table.scene, table.seed, strict=True)
    table["stolen_accuracy_undefended"] = [undefended.get(key) for key in keys]
    return table.sort_values([key for key in ORDER if key in table], kind="stable").reset_index(drop=True)


def write_csv(table: pd.DataFrame, outputs: Path) -> Path:
    """Write ``records.csv``; it can always be derived again."""
    path = outputs / "records.csv"
    write(path, table.to_csv(index=False).encode())
    return path
