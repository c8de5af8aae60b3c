"""What a report says: points, headlines, commands, and its LaTeX and CSV."""

import io
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reporting import EVIL, MEMBERS, ROWS, TABLE, cell, example

from mad.errors import MadError
from mad.figures import board, board_views, pareto, tradeoff
from mad.report import contents, latex_csv, methods, tables
from mad.storage import records


def test_points_of_one_adversary_are_those_of_the_trade_off_figure():
    own = TABLE[TABLE.recovery == "argmax"]
    for name, points in tradeoff.curves(own).items():
        ours = example().points.query("adversary == 'argmax' and curve == @name")
        assert ours.stolen.tolist() == pytest.approx(points["stolen_accuracy", "mean"].tolist())
        deviation = points["stolen_accuracy", "std"].to_numpy(dtype=float)
        assert np.allclose((ours.high - ours.stolen).astype(float), deviation, equal_nan=True)
        told = [each.split() for each in ours.records[1:]]
        found = own[(own.defense == name.partition(" ")[0])].groupby("strength").fingerprint.agg(list)
        assert told == found.tolist()


def test_a_point_of_the_strongest_adversary_has_the_command_of_the_seeds_that_it_counts():
    made = [cell("none", 0.0, each, seed, 9 * seed + k) for k, each in enumerate(MEMBERS) for seed in range(3)]
    strongest = [cell("mad", 0.5, "bayes", seed, 50 + seed, stolen_accuracy=0.8) for seed in range(3)]
    near = [cell("mad", 0.5, "few", seed, 60 + seed, stolen_accuracy=0.7 + 0.1 * seed) for seed in range(2)]
    (theft,) = contents.read(records.frame([*made, *strongest, *near]))
    point = theft.points.query("adversary == @contents.STRONGEST").iloc[-1]
    assert (point.member, point.seeds, len(point.records.split())) == ("bayes", 2, 2)
    assert point.command.endswith("seed=0,1")


def test_the_headline_is_of_defenses_that_cost_little_and_of_the_strongest_adversary():
    cheap = [cell("mad", 0.05, each, seed, 8000 + 10 * seed + k) for seed in range(2) for k, each in enumerate(MEMBERS)]
    made = [
        *[
            cell(board.UNDONE, 0.0, each, seed, 7000 + 10 * seed + k)
            for seed in range(2)
            for k, each in enumerate(MEMBERS)
        ],
        *cheap,
    ]
    (theft,) = contents.read(records.frame([*ROWS[:27], *made]))
    first, second = contents.headline(theft)
    assert first == "Undefended, the stolen model reaches 95.0 % (bayes), where the victim has 90.0 %."
    assert "mad epsilon 0.05 leaves its strongest adversary least" in second
    assert "for 0.5 points" in second
    assert contents.headline(example())[1].startswith("Every defense here costs the API more than 1 point")


def test_the_headline_praises_no_defense_for_a_stolen_model_that_learned_nothing():
    made = [cell("none", 0.0, "none", 0, 1), cell("mad", 0.05, "none", 0, 2)]
    idle = cell("top_k", 0.05, "none", 0, 3, learned=False, stolen_accuracy=0.1)
    (theft,) = contents.read(records.frame([*made, idle]))
    assert "Of 1 defense that cost" in contents.headline(theft)[1]
    assert "mad epsilon 0.05 leaves its strongest adversary least" in contents.headline(theft)[1]
    (theft,) = contents.read(records.frame([made[0], idle]))
    assert len(contents.headline(theft)) == 1


def test_records_without_a_strength_are_in_the_report():
    bare = [{name: value for name, value in cell("argmax", 0.0, "none", 0, 1).items() if name != "strength"}]
    (theft,) = contents.read(records.frame(bare))
    assert theft.table.worst.tolist() == pytest.approx([80])
    assert latex_csv.latex([theft])


def test_undefended_records_with_and_without_a_strength_are_one_point_of_a_curve():
    rows = TABLE[TABLE.recovery == "argmax"].copy()
    rows.loc[(rows.defense == "none") & (rows.seed == rows.seed.min()), "strength"] = np.nan
    (theft,) = contents.read(rows)
    for _, points in theft.points.groupby("curve"):
        assert (points.defense == "none").tolist() == [True, *[False] * (len(points) - 1)]
        assert len(points.records.iloc[0].split()) == (rows.defense == "none").sum()


def test_few_adversaries_and_one_seed_are_warned_of():
    one = records.frame([cell("none", 0.0, "none", 0, 1), cell("mad", 0.2, "none", 0, 2, learned=False)])
    (theft,) = contents.read(one)
    text = " ".join(contents.warnings(theft))
    assert "One adversary: runs beside each other, not a panel" in text
    assert "Every row of the board: one seed, an anecdote." in text
    assert "learned nothing" in text
    assert theft.points.adversary.unique().tolist() == ["naive"]


def test_a_defense_that_only_met_the_informed_is_in_no_board():
    told = cell("rounding", 0.2, "oracle_filter", 0, 3)
    table = records.frame([cell("none", 0.0, "none", 0, 1), cell("mad", 0.2, "none", 0, 2), told])
    (theft,) = contents.read(table)
    assert set(theft.table.defense) == {"none", "mad"}
    assert contents.read(records.frame([told])) == []
    with pytest.raises(MadError, match="no theft"):
        latex_csv.csv([])


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["defense=mad seed=1", "seed=0 defense=mad"], "mad-run -m defense=mad seed=0,1"),
        (["defense=mad", "a=1 'grid=[]'"], "mad-run defense=mad seed=0; mad-run a=1 'grid=[]' seed=1"),
        (["", None], ""),
        (["'a=b  c' ++seed=0", "'a=b  c' seed=1"], "mad-run -m 'a=b  c' seed=0,1"),
        (["a='open seed=0"], "mad-run a='open seed=0 seed=0"),
        (list("abcde"), "mad-run a seed=0; mad-run b seed=1; mad-run c seed=2; and 2 more"),
    ],
)
def test_the_seeds_of_a_number_make_one_command(overrides, line):
    seeds = [int(found[1]) if (found := re.search(r"seed=(\d)", each or "")) else k for k, each in enumerate(overrides)]
    assert contents.command(pd.DataFrame({"overrides": overrides, "seed": seeds})) == line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a=/home/me/x/data seed=1", "a=…/data seed=1"),
        ("file:///srv/a/b", "…/b"),
        ("[/a/b,'/c/d']", "[…/b,'…/d']"),
        ("folder:/home/x/y", "folder:…/y"),
        ("a=/srv/b,c/d=e/f [/a/b(1)/c,/d/e]", "a=…/f […/c,…/e]"),
        ("run 'a=/home/Jane Doe/my data/x.csv' b=/c/d", "run 'a=…/x.csv' b=…/d"),
        ("'u=http://host/a b/c' and 'd/e f/g'", "'u=http://host/a b/c' and 'd/e f/g'"),
        ("http://host/a/b and/or 3 / 5, data/mnist", "http://host/a/b and/or 3 / 5, data/mnist"),
    ],
)
def test_absolute_paths_keep_their_last_part_only(text, shown):
    assert contents.without_folders(text) == shown


def test_every_method_says_what_it_is():
    for kind in methods.KINDS:
        found = methods.described(kind)
        assert [name for name, line in found.items() if not line.endswith(".")] == []
    assert "CVPR 2019" in methods.described("attack")["knockoff"]
    assert "PRADA" in methods.described("attack")["jbtop3"]
    foreign = records.frame([cell("mine", 0.0, "none", 0, 1)])
    assert ("defense", "mine", methods.ELSEWHERE) in methods.used(foreign)


def test_csv_holds_boards_and_points():
    found = {name: pd.read_csv(io.BytesIO(content)) for name, content in latex_csv.csv([example()]).items()}
    assert not found["boards"].map(lambda each: str(each).startswith("[")).any(axis=None)  # no list of Python's
    assert found["boards"].worst.tolist() == pytest.approx(example().table.worst.tolist(), abs=1e-4)
    assert len(found["points"]) == len(example().points)
    assert "/home" not in found["points"].command.str.cat()


def test_a_small_strength_is_none_of_0(tmp_path, monkeypatch):
    """Four decimals, or three, would make one of two strengths, and no defense of both."""
    pytest.importorskip("jinja2")
    for module in (board_views, pareto):  # the tables are looked at here; pictures take a while
        monkeypatch.setattr(module, "save", lambda figure, outputs, stem, area: stem)
    tiny = {0.2: 2e-05, 0.4: 0.0004}
    names = {"strength": (0.0, *tiny), "defense": ("none", "mad", "top_k"), "recovery": ("none", "argmax")}
    some = [each for each in ROWS if all(each[name] in kept for name, kept in names.items())]
    table = records.frame([{**each, "strength": tiny.get(each["strength"], 0.0)} for each in some])
    files = latex_csv.csv(contents.read(table)).values()
    written = [*board_views.write_all(table, tmp_path), *pareto.write_all(table, tmp_path / "figures")]
    files = [*files, *(each.read_bytes() for each in (tmp_path / "figures").glob("*.csv"))]
    assert len(files) > 5
    assert len(written) > 5
    for content in files:
        assert set(pd.read_csv(io.BytesIO(content)).strength) == {0.0, *tiny.values()}
    assert "mad & 2e-05 &" in latex_csv.latex(contents.read(table)).decode()


def test_latex_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MadError, match=r"^tables in LaTeX need Jinja2: pip install 'mad\[report\]'"):
        latex_csv.latex([example()])


def test_latex_is_escaped_and_has_rules():
    pytest.importorskip("jinja2")
    text = latex_csv.latex([example()]).decode()
    assert (
        text.count("\\begin{longtable}") == text.count("\\end{longtable}") == 2 + example().points.adversary.nunique()
    )
    assert "\\toprule" in text
    assert "mad\\_argmax" in text
    assert not re.search(r"(?<!\\)[_%#]", text.partition("\n")[2])
    assert EVIL not in text
    assert latex_csv.escaped(["a\\b_{~}…"]) == [r"a\textbackslash{}b\_\{\textasciitilde{}\}\ldots{}"]


def test_the_headline_leaves_out_who_met_fewer_adversaries():
    table = example().table.assign(defended_accuracy=example().table.victim_accuracy)
    real = table[table.defense != "none"].iloc[:1]
    few = real.assign(defense="few", worst=0.0, members=real.members - 1)
    told = contents.headline(replace(example(), table=pd.concat([real, few])))
    assert told[0].startswith("Of 1 defense that cost the API at most 1 point of accuracy and met ")
    assert f"{real.defense.iloc[0]} " in told[0]
    assert "few" not in told[0]


def test_the_headline_compares_seed_by_seed_and_is_what_the_board_says():
    """The victim of seed 0 is less accurate than the other's, and only its defense was run."""
    lower = {"victim_accuracy": 0.85, "defended_accuracy": 0.85}
    some = [
        cell("none", 0.0, "none", 0, 1, **lower),
        cell("none", 0.0, "none", 1, 2),
        cell("mad", 0.2, "none", 0, 3, **{**lower, "defended_accuracy": 0.845}),
    ]
    (theft,) = contents.read(records.frame(some))
    first, second = contents.headline(theft)
    assert first.endswith("where the victim has 87.5 %.")
    assert "for 0.5 points" in second
    lost = board_views.texts(theft.table[theft.table.defense == "mad"].iloc[0])["lost"]
    assert lost == "0.5"
    exact = [*some[:2], {**some[2], "defended_accuracy": 0.84}]  # one point, which floats round up
    assert "for 1.0 points" in contents.headline(contents.read(records.frame(exact))[0])[1]


def test_published_records_make_a_report_by_themselves():
    """Their table lacks columns that no board needs, such as the seconds of the victim's training."""
    panel = Path(__file__).parents[2] / "docs" / "bench" / "panel.csv"
    rows = [row for row in records.read_csv(panel) if (row["victim"], row["pool"]) == ("fashion_mnist", "kmnist_part")]
    (theft,) = contents.read(records.frame(rows))
    assert theft.seconds.seconds_victim.isna().all()
    assert theft.seconds.seconds_knockoff.notna().any()
    assert tables.seconds(theft).rows
