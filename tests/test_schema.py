"""What a record's columns are called, and what they may hold."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import CPU, cell

from mad import schema
from mad.attacks import Stolen
from mad.attacks.knockoff_nets import KnockoffNets
from mad.defenses.mad import Mad
from mad.errors import MadError
from mad.pipeline import run
from mad.schema import Column, check, fault, merged
from mad.storage.store import Store

OWN = (Column("spent", "number", "", "what it cost"), Column("curve", "series", "", "how it went"))
SPENT = Column("spent", "number", "", "what it cost")


def test_two_parts_that_write_one_column_are_named():
    assert merged({"the run": {"a": 1}, "the API": {"b": 2}}) == {"a": 1, "b": 2}
    with pytest.raises(MadError, match=r"^the API and the run both write the column a: rename one$"):
        merged({"the run": {"a": 1}, "the API": {"b": 2, "a": 1}})


@dataclass
class Costly(Mad):
    """A defense that writes a column."""

    schema = (SPENT,)

    def columns(self, context):
        return {"spent": 1.0}


@dataclass(frozen=True)
class Costing(KnockoffNets):
    """An attack that writes one of the same name."""

    name = "costing"
    schema = (SPENT,)

    def run(self, api, pool, adversary):
        return Stolen(transfer=super().run(api, pool, adversary).transfer, columns={"spent": 2})


def test_a_defense_and_an_attack_that_write_one_column_are_refused(tmp_path):
    assert run(cell(attack=Costing(50)), Store(tmp_path), CPU)[0]["spent"] == 2
    assert run(cell(defense=Costly(0.5)), Store(tmp_path), CPU)[0]["spent"] == 1
    with pytest.raises(MadError, match="attack costing and defense mad both write the column spent"):
        run(cell(defense=Costly(0.5), attack=Costing(50)), Store(tmp_path), CPU)


WRONG = [
    ("number", "1"),
    ("number", True),
    ("number", [1.0]),
    ("whole number", 0.5),
    ("whole number", True),
    ("text", 1),
    ("true or false", 1),
    ("true or false", "yes"),
    ("series", 1),
    ("series", "1 2"),
    ("series", ["1"]),
]
RIGHT = [
    ("number", 1),
    ("number", 0.5),
    ("number", torch.tensor(0.5)),
    ("number", np.float64(2)),
    ("whole number", 3),
    ("whole number", torch.tensor(3)),
    ("text", ""),
    ("true or false", False),
    ("true or false", np.bool_(True)),
    ("series", []),
    ("series", [1, 0.5]),
]


@pytest.mark.parametrize(("kind", "value"), WRONG, ids=str)
def test_a_value_of_another_kind_is_refused(kind, value):
    with pytest.raises(MadError, match=r"^defense x cannot be recorded: it must be "):
        check({"it": value}, "defense x", [Column("it", kind, "", "a thing")])


@pytest.mark.parametrize(("kind", "value"), [*RIGHT, *((kind, None) for kind in schema.KINDS)], ids=str)
def test_values_of_its_kind_and_empty_ones_are_taken(kind, value):
    check({"it": value}, "defense x", [Column("it", kind, "", "a thing")])


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"spent": float("nan")}, "spent is NaN or infinite"),
        ({"curve": [0.5, float("inf")]}, "curve is NaN or infinite"),
        ({"spent": 10**400}, "spent has too many digits"),
        ({"curve": (1, 2)}, "curve is tuple"),
        ({"curve": torch.zeros(3)}, "curve is Tensor"),
        ({"curve": [[1]]}, "curve is list"),
        ({"stolen_accuracy": 0.5}, "stolen_accuracy is a column of every record"),
        ({"uses": ""}, "uses is a column of every record"),
        ({"other": 1}, "'other' is not in its schema"),
    ],
    ids=str,
)
def test_what_no_record_can_hold_is_refused(columns, why):
    with pytest.raises(MadError, match=rf"^attack x cannot be recorded: {why}"):
        check(columns, "attack x", OWN)


def test_the_columns_of_every_record_are_checked_alike():
    check({"budget": 5, "learned": None, "epsilon": 0.5}, "the cell")
    for columns in ({"budget": 0.5}, {"learned": 1}, {"pool": 3}, {"epsilon": "much"}):
        with pytest.raises(MadError, match=r"^the cell cannot be recorded: "):
            check(columns, "the cell")
        assert fault(columns)


@pytest.mark.parametrize("how", [{"name": "a b"}, {"name": ""}, {"kind": "whole"}, {"kind": ""}])
def test_a_column_has_a_name_and_a_kind(how):
    with pytest.raises(MadError, match="a column has an identifier as name and a kind of text, number, "):
        Column(**{"name": "it", "kind": "number", "unit": "", "meaning": "a thing", **how})


def test_the_file_has_each_column_once_with_all_that_is_said_of_it():
    with Path(schema.__file__).with_name("columns.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [row["name"] for row in rows]
    assert len(names) == len(set(names)) == len(schema.EVERY) > 40
    assert all(row["section"] and row["meaning"] and row["writer"] and row["needed"] in ("yes", "") for row in rows)
    assert sum(column.needed for column in schema.EVERY.values()) == sum(row["needed"] == "yes" for row in rows) > 10
    assert not set(schema.FORMER) & set(names)
    assert set(schema.FORMER.values()) <= set(names)


def test_a_table_has_a_row_a_column():
    head, line, *rows = schema.table([SPENT, OWN[1]], writer="defense=x").splitlines()
    assert head.count("|") == line.count("|") == rows[0].count("|") == 6
    assert rows[0] == "| `spent` | number |  | what it cost | `defense=x` |"
    assert len(rows) == 2
