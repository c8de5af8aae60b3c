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
EVERY = 61  # of so many records, one is composed again


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


def test_the_words_of_a_record_make_its_fingerprint_again(published):
    of_files = published.overrides.str.contains("kmnist_part|pool=idx")  # whose contents are a part of the fingerprint
    some = published[~of_files][::EVERY]
    made = []
    for words in map(shlex.split, some.overrides):
        # experiment=cpu has precision=fast, which is bfloat16 only on CPUs with units for it, such as where these ran
        more = ["trainer.precision=bfloat16"] if "experiment=cpu" in words else []
        made.append(mad.load(*words, *more).fingerprint)
    assert made == some.fingerprint.tolist()
    assert published.fingerprint.is_unique


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
