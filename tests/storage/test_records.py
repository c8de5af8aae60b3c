"""docs/records.md explains every column that a record has, and no other."""

import csv
import re
from pathlib import Path

import pytest
import torch
from toys import CPU, Blobs, cell

from mad.attacks.adaptive import KnockoffAdaptive
from mad.attacks.jbda import Jbda
from mad.attacks.online import Online
from mad.defenses.dp_sgd import DpSgd
from mad.pipeline import run
from mad.storage import records
from mad.storage.store import Store

DOCS = Path(__file__).parents[2] / "docs"
ROWS = [
    [part.strip() for part in line.strip("|").split("|")]
    for line in (DOCS / "records.md").read_text().splitlines()
    if line.startswith("| `")
]
TYPES = {
    "text": str,
    "number": (int, float),
    "whole number": int,
    "true or false": bool,
}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The records of a toy cell of every part that adds columns."""
    store = Store(tmp_path_factory.mktemp("records"))
    cells = [
        cell(),
        cell(attack=Online(20)),
        cell(attack=Jbda(budget=40, seeds=20)),
        cell(attack=KnockoffAdaptive(20), pool=Classes()),
        cell(defense=DpSgd(noise_multiplier=1.0)),
    ]
    made = [run(one, store, CPU)[0] for one in [*cells, *(each.reference for each in cells)]]
    return records.frame(made)


class Classes(Blobs):
    """A pool with labels of its own."""

    def labels(self):
        return torch.arange(self.size) % self.classes


def test_every_column_is_explained_and_no_other(real):
    explained = [re.fullmatch(r"`(\w+)`", row[0])[1] for row in ROWS]
    assert len(explained) == len(set(explained))
    assert set(explained) == set(real.columns)


def test_each_is_of_the_type_that_is_said(real):
    for name, kind, *_ in ROWS:
        for value in real[name.strip("`")].dropna():
            value = value.item() if hasattr(value, "item") else value
            whole = kind == "whole number" and float(value).is_integer()
            assert whole or isinstance(value, TYPES[kind]), (name, value)


def test_each_row_says_all(real):
    assert all(len(row) == 5 and row[1] in TYPES and row[3] and row[4] for row in ROWS)


def test_the_committed_records_have_no_other_columns():
    with (DOCS / "reproduction" / "records.csv").open() as file:
        assert set(next(csv.reader(file))) <= {row[0].strip("`") for row in ROWS}
