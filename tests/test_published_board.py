"""Every number of docs/board.md comes from a line of docs/bench/panel.csv, which can be run again."""

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

import mad
from mad.figures import board, board_views
from mad.storage import records

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def published():
    return records.frame(records.read_csv(DOCS / "bench" / "panel.csv"))


def test_the_boards_are_those_of_the_published_records(published):
    text = (DOCS / "board.md").read_text()
    found = board.boards(published)
    assert found
    for title, table in found.items():
        lines = board_views.markdown(title, table).splitlines()[1:]
        assert len(lines) > 5
        assert [line for line in lines if line not in text] == []
    assert text.count("\n## ") == len(found)


@pytest.mark.parametrize(("name", "every"), [("panel", 61), ("defenses", 17), ("gate", 13), ("operating", 13)])
def test_the_words_of_a_record_make_its_fingerprint_again(name, every):
    table = pd.read_csv(DOCS / "bench" / f"{name}.csv")
    assert table.fingerprint.is_unique
    of_files = table.overrides.str.contains(
        "kmnist_part|pool=idx|data="
    )  # whose contents are a part of the fingerprint
    former = table.gate_version.eq(2) if "gate_version" in table else False  # measured by a former test of clients
    some = table[~of_files & ~former][::every]
    made = []
    for words in map(shlex.split, some.overrides):
        # experiment=cpu has precision=fast, which is bfloat16 only on CPUs with units for it, such as where these ran
        more = ["trainer.precision=bfloat16"] if "experiment=cpu" in words else []
        made.append(mad.load(*words, *more).fingerprint)
    assert len(made) > 5
    assert made == some.fingerprint.tolist()


@pytest.mark.parametrize(("defense", "strength"), [("ini", 1.0), ("edm", 1.0), ("nasty_teacher", 0.01)])
def test_what_stands_beside_the_authors_numbers_is_of_the_digits_three_seeds(defense, strength):
    table = pd.read_csv(DOCS / "bench" / "defenses.csv")
    digits = table[(table.victim == "digits") & (table.recovery == "none")]
    free, own = digits[digits.defense == "none"], digits[(digits.defense == defense) & (digits.strength == strength)]
    undefended, stolen = (100 * rows.groupby("seed").stolen_accuracy.first() for rows in (free, own))
    assert len(undefended) == len(stolen) == 3
    text = (DOCS / "methods.md").read_text().partition("## What their authors report")[2]
    (line,) = [line for line in text.splitlines() if line.startswith(f"| `{defense}`")]
    found = re.search(r"digits ([\d.]+)", line)[1]
    assert found == f"{undefended.mean() - stolen.mean() if 'less, digits' in line else stolen.mean():.1f}"
