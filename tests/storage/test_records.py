"""docs/records.md explains every column that a record has, and no other; records become a table."""

import csv
import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from toys import CPU, Blobs, cell, composed_choices, victim

from mad import gradient_probe, schema
from mad.attacks.adaptive import KnockoffAdaptive
from mad.attacks.jbda import Jbda
from mad.attacks.online import Online
from mad.defenses.dp_sgd import DpSgd
from mad.errors import MadError
from mad.pipeline import run
from mad.storage import records
from mad.storage.store import Store

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DOCUMENT = (DOCS / "records.md").read_text()
ROWS = [
    [part.strip() for part in line.strip("|").split("|")] for line in DOCUMENT.splitlines() if line.startswith("| `")
]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The records of a toy cell of every part that adds columns."""
    store = Store(tmp_path_factory.mktemp("records"))
    cells = [
        cell(),
        cell(attack=Online(20), probe=True),
        cell(attack=Jbda(budget=40, seeds=20)),
        cell(attack=KnockoffAdaptive(20), pool=Classes()),
        cell(defense=DpSgd(noise_multiplier=1.0)),
        cell(victim=victim(dataset=Named())),
    ]
    made = [run(one, store, CPU)[0] for one in [*cells, *(each.reference for each in cells)]]
    return records.frame(made)


class Named(Blobs):
    """A data set whose classes have names."""

    names = ("a", "b", "c", "d")


class Classes(Blobs):
    """A pool with labels of its own."""

    def labels(self):
        return torch.arange(self.size) % self.classes


@cache
def plug_ins():
    """Return the columns of all shipped plug-ins' schemas, by their names."""
    from hydra.utils import get_class

    found = {column.name: column for column in gradient_probe.SCHEMA}
    for group in ("defense", "attack", "recovery"):
        for node in composed_choices(group).values():
            part = get_class(node._target_)
            own = getattr(part, "schema", ())
            found |= {
                column.name: column for column in (own if isinstance(own, tuple) else ())
            }  # a chain's are its parts'
    return found


def test_every_column_is_explained_and_no_other(real):
    explained = [re.fullmatch(r"`(\w+)`", row[0])[1] for row in ROWS]
    assert len(explained) == len(set(explained))
    assert set(real.columns) <= set(explained)
    assert set(explained) == {*schema.EVERY, *plug_ins()}


def test_each_is_of_the_type_that_is_said(real):
    known = schema.EVERY | plug_ins()
    for name, kind, *_ in ROWS:
        column = known[name.strip("`")]
        assert column.kind == kind
        if column.name not in real:  # of plug-ins that no cell here has
            continue
        for value in real[column.name][real[column.name].notna()]:
            value = value.item() if hasattr(value, "item") else value
            whole = kind == "whole number" and float(value).is_integer()  # beside an empty one it is a float
            assert whole or column.fits(value), (name, value)


def test_each_row_says_all(real):
    assert all(len(row) == 5 and row[1] in schema.KINDS and row[3] and row[4] for row in ROWS)


@pytest.mark.parametrize("section", schema.SECTIONS)
def test_the_document_has_the_schemas_tables(section):
    assert f"## {section}\n\n{schema.table(schema.SECTIONS[section])}\n" in DOCUMENT


def test_the_document_is_what_the_script_writes():
    spec = importlib.util.spec_from_file_location("records_table", ROOT / "scripts" / "records_table.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.filled(DOCUMENT) == DOCUMENT
    assert {column.name: (column.kind, column.meaning) for column in script.of_plugins()} == {
        name: (column.kind, column.meaning) for name, column in plug_ins().items()
    }
    assert schema.table(script.of_plugins()) in DOCUMENT


def test_the_committed_records_have_no_other_columns():
    with (DOCS / "reproduction" / "records.csv").open() as file:
        names = {schema.FORMER.get(name, name) for name in next(csv.reader(file))}
    assert names <= {row[0].strip("`") for row in ROWS}


def test_records_are_read_back_from_their_table(real, tmp_path):
    path = records.write_csv(real, tmp_path)
    back = records.frame(records.read_csv(path))
    for name in real:
        held = [[None if each != each or each == "" else each for each in some.get(name, [])] for some in (real, back)]
        series = any(isinstance(each, list) for each in held[0])
        assert held[0] == held[1] or series or not any(held[0]), name
    marked = tmp_path / "marked.csv"  # as spreadsheets write it
    marked.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert records.read_csv(marked) == records.read_csv(path)
    (tmp_path / "outputs").mkdir()
    assert len(records.read(tmp_path / "outputs", 2 * records.read_csv(path))) == real.fingerprint.nunique()


def test_whole_numbers_with_gaps_are_read_back(real, tmp_path):
    every = real.to_dict("records")
    rows = [{name: each for name, each in row.items() if each == each and each is not None} for row in every]
    kinds = {name for name, column in schema.EVERY.items() if column.kind == "whole number" and not column.needed}
    numbers = {name: int(rows[0][name]) for name in kinds if name in rows[0]}
    first = {name: value for name, value in rows[0].items() if name not in numbers}
    path = records.write_csv(records.frame([first, *rows[1:]]), tmp_path)
    with path.open() as file:
        line = next(each for each in csv.DictReader(file) if each["fingerprint"] == rows[1]["fingerprint"])
    assert len(numbers) > 4
    assert {name: line[name] for name in numbers} == {name: str(int(rows[1][name])) for name in numbers}
    known = {row["fingerprint"]: row for row in records.read_csv(path)}
    assert not numbers.keys() & known[first["fingerprint"]].keys()
    assert {name: known[rows[1]["fingerprint"]][name] for name in numbers} == {
        name: int(rows[1][name]) for name in numbers
    }


@pytest.mark.parametrize(("text", "value"), [("True", True), ("TRUE", True), ("FALSE", False), ("yes", "yes")])
def test_a_truth_is_read_as_spreadsheets_write_it(text, value):
    assert records.parsed("learned", text) == value
    assert records.parsed("of_a_plug_in", "TRUE") == "TRUE"


@pytest.mark.parametrize(("text", "value"), [("3", 3), ("3.0", 3), ("", None), ("3.5", 3.5), ("x", "x")])
def test_a_whole_number_may_have_a_point_and_zeros(text, value):
    found = records.parsed("queries", text)
    assert (found, type(found)) == (value, type(value))
    assert (schema.fault({"queries": found}) is None) == (text in ("3", "3.0", ""))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text + "a," * 200, "record 13: more cells"),
        (lambda text: text.replace("stolen_accuracy,", "stolen,", 1), "record 1: no stolen_accuracy"),
        (lambda text: text.replace("\ntoy,", "\n,", 1), "record 1: no victim"),
        (lambda text: text + '"', "cannot be read"),
        (lambda text: text.replace("victim,", "\xff,", 1), "cannot be read"),
        (lambda text: text.partition("\n")[0], "holds no record"),
        (lambda _: "", "holds no record"),
    ],
)
def test_a_table_that_holds_no_records_is_refused_with_its_line(real, tmp_path, change, said):
    path = records.write_csv(real, tmp_path)
    path.write_bytes(change(path.read_text()).encode("latin-1", "replace"))
    with pytest.raises(MadError, match=said) as error:
        records.read_csv(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("stolen_accuracy", 42, r"stolen_accuracy must be in \[0, 1\], got 42"),
        ("l1_mean", -3, r"l1_mean must be in \[0, 2\], got -3"),
        ("budget", -5, "budget must be at least 1, got -5"),
        ("answer_entropy", -0.5, "answer_entropy must be at least 0"),
    ],
)
def test_a_number_that_cannot_be_is_no_record(real, tmp_path, name, value, said):
    table = real.assign(**{name: value})
    with pytest.raises(MadError, match=f"record 1: {said}"):
        records.read_csv(records.write_csv(table, tmp_path))
    rounded = real.assign(l1_mean=2 + 1e-6)
    assert len(records.read_csv(records.write_csv(rounded, tmp_path))) == len(real)


def test_a_file_of_somebody_elses_is_set_aside(real, tmp_path, capfd):
    mine = tmp_path / "records.csv"
    mine.write_text("my notes\n")
    for _ in range(2):  # the second time it is ours
        records.write_csv(real, tmp_path)
    assert (tmp_path / "records.csv.damaged").read_text() == "my notes\n"
    assert capfd.readouterr().err.count("it is no table of records") == 1
    assert len(records.read_csv(mine)) == len(real)
