"""The lists of a record lie beside it, and are its own."""

from pathlib import Path

import pytest

from mad import schema
from mad.storage.files import DamagedError
from mad.storage.record_file import SERIES, read_record
from mad.storage.store import Store


def test_series_beside_another_record_are_noticed(tmp_path):
    path = Path("runs/toy/mad/knockoff/0123456789abcdef/record.json")
    plain = {"text": "x", "number": 0, "whole number": 0, "true or false": False}
    needed = {column.name: plain[column.kind] for column in schema.EVERY.values() if column.needed}
    needed |= dict(zip(("victim", "defense", "attack", "fingerprint"), path.parts[1:], strict=False))

    def made(value, force=False):
        return Store(tmp_path).record(path, lambda: needed | {"budget": value, "curve": [value]}, force=force)

    first = made(1)[0]
    series = (tmp_path / path).with_name(SERIES)
    former, (second, _) = series.read_bytes(), made(2, force=True)
    assert Store(tmp_path).find(path) == second
    series.write_bytes(former)  # whole, of the same cell, and not of this record
    assert Store(tmp_path).find(path) is None
    with pytest.raises(DamagedError, match="or another record's"):
        read_record(tmp_path / path)
    assert made(1) == (first, False)
    assert made(3) == (first, True)
