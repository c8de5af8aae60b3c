"""A record is kept as it was written, or made again."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from toys import CPU, victim

from mad import schema
from mad.errors import MadError
from mad.storage import files, records
from mad.storage import store as stores
from mad.storage.record_file import SERIES
from mad.storage.store import Store

PATH = Path("runs/toy/mad/knockoff/0123456789abcdef/record.json")
PLAIN = {"text": "x", "number": 0, "whole number": 0, "true or false": False}
VALUES = st.none() | st.booleans() | st.integers(-(2**1023), 2**1023) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(), max_size=9)  # any code point, lone surrogates too


def content(value=1):
    """A record's smallest content."""
    return {
        **{column.name: PLAIN[column.kind] for column in schema.EVERY.values() if column.needed},
        **dict(zip(("victim", "defense", "attack", "fingerprint"), PATH.parts[1:], strict=False)),
        "v": value,
    }


def kept(value, uses=""):
    return {**content(value), "uses": uses, "series": ""}


def test_a_record_is_kept(tmp_path):
    made = []

    def make():
        made.append(1)
        return content(len(made))

    assert Store(tmp_path).record(PATH, make) == (kept(1), False)
    assert Store(tmp_path).record(PATH, make) == (kept(1), True)
    assert Store(tmp_path).find(PATH) == kept(1)
    (tmp_path / PATH).write_text('{"value": ')
    assert Store(tmp_path).find(PATH) is None
    assert Store(tmp_path).record(PATH, make) == (kept(2), False)


def test_force_makes_it_again_and_keeps_the_old_one_until_then(tmp_path):
    Store(tmp_path).record(PATH, content)

    def fail():
        assert Store(tmp_path).find(PATH) == kept(1)
        raise MadError("no")

    with pytest.raises(MadError, match="no"):
        Store(tmp_path).record(PATH, fail, force=True)
    assert Store(tmp_path).find(PATH) == kept(1)
    assert Store(tmp_path).record(PATH, lambda: content(2), force=True) == (kept(2), False)
    assert Store(tmp_path).find(PATH) == kept(2)


@pytest.mark.parametrize("at", range(0, 700, 31))
def test_one_bit_of_a_record_is_noticed(tmp_path, at):
    Store(tmp_path).record(PATH, content)
    file = tmp_path / PATH
    whole = bytearray(file.read_bytes())
    whole[at % len(whole)] ^= 1 << at % 8
    file.write_bytes(whole)
    assert Store(tmp_path).find(PATH) is None
    assert records.read(tmp_path).empty


def test_a_number_that_was_edited_is_noticed(tmp_path):
    Store(tmp_path).record(PATH, content)
    file = tmp_path / PATH
    file.write_text(file.read_text().replace('"v": 1', '"v": 2'))
    assert Store(tmp_path).find(PATH) is None


@pytest.mark.parametrize("index", [1, 2, 3, 4])
def test_a_record_in_anothers_folder_is_noticed(tmp_path, index):
    Store(tmp_path).record(PATH, content)
    parts = list(PATH.parts)
    parts[index] = "another"
    other = Path(*parts)
    (tmp_path / other).parent.mkdir(parents=True)
    (tmp_path / other).write_bytes((tmp_path / PATH).read_bytes())
    assert Store(tmp_path).find(other) is None
    assert len(records.read(tmp_path)) == 1


@pytest.mark.parametrize(
    "foreign", [{"more": {"a": 1}}, {"more": [1]}, {"strength_parameter": 1}, {"epsilon": "x"}, {"\x1b": 1}]
)
def test_a_record_of_more_than_plain_values_is_none(tmp_path, foreign):
    files.write(tmp_path / PATH, files.seal({**content(), **foreign}))
    assert Store(tmp_path).find(PATH) is None
    assert records.read(tmp_path).empty
    assert Store(tmp_path).record(PATH, content) == (kept(1), False)


@example([None] * 9, "\r", 0.5)
@example([None] * 9, "\ud800", 0.0)
@given(st.lists(VALUES | TEXTS, min_size=9, max_size=9), TEXTS, st.floats(0, 1))
def test_what_a_record_may_hold_comes_back_as_it_was(tmp_path_factory, values, text, number):
    folder = tmp_path_factory.mktemp("record")
    some = {f"c{place}": value for place, value in enumerate(values)}
    given_ = {
        **content(),
        **some,
        "defense_settings": text,
        "strength_parameter": text,
        "overrides": text,
        "stolen_accuracy": number,
    }
    assert schema.fault(given_) is None
    record, _ = Store(folder).record(PATH, lambda: given_)
    assert Store(folder).record(PATH, content) == (record, True)
    assert repr(record) == repr({**given_, "uses": "", "series": ""})
    table = records.read(folder)
    assert len(table) == 1
    back = pd.read_csv(records.write_csv(table, folder), dtype=str, keep_default_na=False, encoding="utf-8")
    for name, value in given_.items():
        written = back[name][0]
        if isinstance(value, str):
            assert written == value.encode(errors="backslashreplace").decode()
        elif isinstance(value, bool) or value is None:
            assert written == ("" if value is None else str(value))
        else:
            assert type(value)(written) == value


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ({"more": [[1]]}, "more is list"),
        ({"more": [1, float("nan")]}, "more is NaN"),
        ({"more": (1,)}, "more is tuple"),
        ({"more": torch.zeros(3)}, "more is Tensor"),
        ({"more": 10**5000}, "more has too many digits"),
        ({"sha256": "a"}, "'sha256' cannot be a column"),
        ({7: "a"}, "7 cannot be a column"),
        ({"victim": "another"}, "it is another's"),
        ({"comparison_group": "a b"}, "comparison_group must be"),
        ({"budget": "many"}, "budget must be whole number, got 'many'"),
        ({"budget": None}, "budget is None"),
        ({"learned": 1}, "learned must be true or false, got 1"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, column, said):
    with pytest.raises(MadError, match=said):
        Store(tmp_path).record(PATH, lambda: content() | column)
    assert list(tmp_path.rglob("*.json")) == []


def test_single_numbers_of_other_libraries_are_numbers(tmp_path):
    more = {"a": torch.tensor(0.5), "b": np.float32(2), "c": np.bool_(1)}
    found, _ = Store(tmp_path).record(PATH, lambda: content() | more)
    assert [found[name] for name in more] == [0.5, 2.0, True]
    assert Store(tmp_path).find(PATH) == found


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", "9" * 5000])
def test_a_record_of_no_number_is_damaged(tmp_path, text, capfd):
    Store(tmp_path).record(PATH, content)
    file = tmp_path / PATH
    file.write_text(file.read_text().replace('"v": 1', f'"v": {text}'))
    assert Store(tmp_path).find(PATH) is None
    assert Store(tmp_path).record(PATH, content) == (kept(1), False)


def test_what_failed_to_be_renewed_is_tried_again_and_the_old_one_stays(tmp_path):
    def fail():
        raise MadError("no")

    Store(tmp_path).record(PATH, content)
    store = Store(tmp_path, set())
    with pytest.raises(MadError, match="no"):
        store.record(PATH, fail)
    assert store.find(PATH) is None
    assert Store(tmp_path).find(PATH) == kept(1)
    assert store.record(PATH, lambda: content(2)) == (kept(2), False)
    assert store.record(PATH, fail) == (kept(2), True)
    assert store.find(PATH) == kept(2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_result_of_nothing_is_not_kept(tmp_path, value):
    with pytest.raises(MadError, match="NaN or infinite"):
        Store(tmp_path).record(PATH, lambda: content(value))
    assert list(tmp_path.rglob("*.json")) == []


def test_a_record_names_the_networks_it_used(tmp_path):
    def make():
        Store(tmp_path).victim(victim(), CPU)
        return content()

    record, _ = Store(tmp_path).record(PATH, make)
    (folder,) = (tmp_path / "victims").glob("*/*")
    assert record["uses"] == f"toy/{folder.name}"
    Store(tmp_path).victim(victim(seed=1), CPU)
    assert stores.USES.get() is None


def test_what_a_dead_process_left_is_cleared(tmp_path):
    left = tmp_path / PATH.parent / ".record.json.123.abcd.tmp"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    Store(tmp_path).record(PATH, content)
    assert [file.name for file in left.parent.iterdir()] == ["record.json"]
    assert list((tmp_path / files.LOCKS).iterdir()) == []


@pytest.mark.parametrize("where", ["runs", "runs/toy", str(PATH.parent), str(PATH), files.LOCKS])
def test_a_link_that_leads_out_is_refused(tmp_path, where):
    outputs, outside = tmp_path / "outputs", tmp_path / "outside"
    (outputs / where).parent.mkdir(parents=True)
    outside.mkdir()
    (outputs / where).symlink_to(outside / "new" if where.endswith("json") else outside)
    with pytest.raises(MadError, match="leads out of"):
        Store(outputs).record(PATH, content)
    assert list(outside.iterdir()) == []


def test_outputs_may_be_a_link_itself(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert Store(tmp_path / "link").record(PATH, content) == (kept(1), False)


def test_many_at_once_make_it_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return content()

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: Store(tmp_path).record(PATH, make), range(8)))
    assert len(made) == 1
    assert sorted(was_kept for _, was_kept in found) == [False] + [True] * 7


def test_a_failure_while_making_keeps_nothing(tmp_path):
    def fail():
        raise MadError("no")

    with pytest.raises(MadError, match="no"):
        Store(tmp_path).record(PATH, fail)
    assert Store(tmp_path).record(PATH, content) == (kept(1), False)


CURVE = [0.5, 1, 2**60, -0.25]


def test_series_lie_beside_a_record_and_in_no_table(tmp_path):
    made, _ = Store(tmp_path).record(PATH, lambda: content() | {"curve": CURVE, "counts": [3]})
    assert (made["series"], made["curve"]) == ("curve counts", CURVE)
    assert Store(tmp_path).find(PATH) == made
    assert not {"curve", "counts"} & set(json.loads((tmp_path / PATH).read_text()))
    table = records.read(tmp_path)
    assert table.curve[0] == CURVE
    written = pd.read_csv(records.write_csv(table, tmp_path))
    assert not {"curve", "counts"} & set(written)
    assert written.series[0] == "curve counts"


@pytest.mark.parametrize("damage", ["gone", "flipped", "another's"])
def test_a_record_without_its_series_is_made_again(tmp_path, damage, capfd):
    Store(tmp_path).record(PATH, lambda: content() | {"curve": CURVE})
    file = (tmp_path / PATH).with_name(SERIES)
    if damage == "gone":
        file.unlink()
    elif damage == "flipped":
        file.write_text(file.read_text().replace("0.25", "0.75"))
    else:
        files.write(file, files.seal({"fingerprint": PATH.parent.name, "other": CURVE}))
    assert Store(tmp_path).find(PATH) is None
    assert records.read(tmp_path).empty
    again, was_kept = Store(tmp_path).record(PATH, lambda: content(2) | {"curve": CURVE})
    assert (was_kept, again["v"]) == (False, 2)
    assert Store(tmp_path).find(PATH) == again


def test_names_of_earlier_versions_are_read(tmp_path):
    now = content() | {"uses": "", "series": ""}
    before = {{new: old for old, new in schema.FORMER.items()}.get(name, name): value for name, value in now.items()}
    assert {"scene", "dial"} <= set(before)
    files.write(tmp_path / PATH, files.seal(before))
    assert Store(tmp_path).find(PATH) == now
    assert records.read(tmp_path).comparison_group[0] == now["comparison_group"]
