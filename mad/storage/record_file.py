"""Reading one record: ``record.json``, and ``series.json`` in the same folder if it has curves or histograms."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mad.errors import MadError, check_name
from mad.schema import EVERY, FORMER, Record, fault
from mad.storage.files import DamagedError, below, seal, unseal, write

SERIES = "series.json"


def write_record(path: Path, record: Record) -> None:
    """Write a record: its lists to ``series.json`` beside it, with the checksum of all else, and then all else."""
    series = {name: value for name, value in record.items() if isinstance(value, list)}
    content = seal({name: value for name, value in record.items() if name not in series})
    if series:
        of = {"fingerprint": path.parent.name, "record": hashlib.sha256(content).hexdigest()}
        write(path.with_name(SERIES), seal(of | series))
    write(path, content)


def read_record(path: Path) -> Record | None:
    """Return the record at ``runs/VICTIM/DEFENSE/ATTACK/FINGERPRINT/record.json``, with its series; None if absent.

    Raises:
        DamagedError: if the file was changed, belongs in another folder, or holds values that no record can.
    """
    record = unseal(path)
    if record is None:
        return None
    record = {FORMER.get(name, name): value for name, value in record.items()}
    lists = [f"{name} is a list, which lies in {SERIES}" for name, value in record.items() if isinstance(value, list)]
    wrong = next(iter(lists), None) or fault(record) or misplaced(record, path)
    if wrong:
        raise DamagedError(path, wrong)
    named = str(record.get("series") or "").split()
    series = (unseal(path.with_name(SERIES)) or {}) if named else {}
    if named and series.get("record") != hashlib.sha256(path.read_bytes()).hexdigest():
        raise DamagedError(path, f"the {SERIES} beside it is missing, or another record's")
    return record | {name: series[name] for name in named}


def misplaced(record: Record, path: Path) -> str | None:
    """Return why a record does not belong at its path, or lacks needed columns; None if nothing is wrong."""
    belongs = dict(zip(("victim", "defense", "attack", "fingerprint"), path.parts[-5:-1], strict=True))
    if any(record.get(key) != part for key, part in belongs.items()):
        return "it is another's"
    wrong = [name for name, column in EVERY.items() if column.needed and record.get(name) is None]
    if wrong:
        return f"no record of this version: {wrong[0]} is {record.get(wrong[0])!r}"
    try:
        for key in ("pool", "comparison_group", "recovery"):  # the other names are names of its folders
            check_name(key, record[key])
    except MadError as error:
        return str(error)
    return None


def known_records(outputs: Path) -> list[Record]:
    """Return the records below an outputs folder; damaged ones are left out."""
    found = []
    for path in sorted((outputs / "runs").glob("*/*/*/*/record.json")):
        try:
            record = read_record(below(outputs, path.relative_to(outputs)))
        except MadError:
            continue
        if record is not None:
            found.append(record)
    return found
