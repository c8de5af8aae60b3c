"""All defenses of a theft: their table, and which are beaten by no other."""

import itertools

import pandas as pd
import pytest
from figure_rows import GROUP, row

from mad.errors import MadError
from mad.figures import pareto
from mad.storage import records

WIDE = records.frame(
    [
        row("none", 0.0, 0, 0.90, 0.80, 0.0),
        row("none", 0.0, 1, 0.90, 0.84, 0.0),
        row("mad", 0.5, 0, 0.89, 0.60, 0.4),
        row("mad", 0.5, 1, 0.89, 0.50, 0.5),
        row("mad", 1.0, 0, 0.70, 0.30, 0.9),
        row("top_k", 1.0, 0, 0.90, 0.70, 0.3, strength_parameter="k"),
        row("random_noise", 0.5, 0, 0.88, 0.75, 0.45),
        row("argmax", float("nan"), 0, 0.90, 0.79, 0.2),
        row("dp_sgd", 1.0, 0, 0.86, 0.20, 0.0, strength_parameter="noise_multiplier"),
        row("mad_random", 0.5, 0, 0.90, 0.10, 0.4, learned=False),
    ]
)


def test_the_table_has_means_and_costs_in_points():
    rows = pareto.table(WIDE).set_index(["defense", "strength"])
    mad = rows.loc[("mad", 0.5)]
    assert (mad.seeds, round(mad.cost, 6), mad.stolen, mad.l1_mean) == (2, 1.0, 55.0, 0.45)
    assert mad.stolen_deviation == pytest.approx(50**0.5)
    assert rows.loc[("none", 0.0)].stolen == 82
    assert len(rows) == 8
    assert not rows.loc[("mad_random", 0.5)].learned


def test_a_defense_without_a_strength_has_its_cost():
    argmax = pareto.table(WIDE).set_index("defense").loc["argmax"]
    assert (round(argmax.cost, 6), argmax.stolen) == (0, 79)


def test_the_front_is_what_no_other_beats():
    rows = pareto.table(WIDE)
    told = rows[rows.learned]
    for (_, one), (_, other) in itertools.permutations(list(told.iterrows()), 2):
        if other.cost <= one.cost and other.stolen < one.stolen:
            assert not one.front, one.defense
    assert set(rows[rows.front].defense) == {"top_k", "mad", "dp_sgd"}
    assert not rows[~rows.learned].front.any()


def test_equal_points_do_not_beat_each_other():
    rows = pd.DataFrame({"cost": [0.0, 0.0, 1.0], "stolen": [50.0, 50.0, 50.0], "learned": True})
    assert pareto.front(rows, "cost") == [True, True, False]


def test_rounding_beats_nobody_and_saves_nobody():
    percent = 1.0000000000000009  # 100 * (0.99 - 0.98)
    rows = pd.DataFrame({"cost": [1.0, percent, 2.0], "stolen": [50.0, 50.0, 50.0], "learned": True})
    assert pareto.front(rows, "cost") == [True, True, False]
    rows = pd.DataFrame({"cost": [percent, 1.0], "stolen": [40.0, 50.0], "learned": True})
    assert pareto.front(rows, "cost") == [True, False]


def test_what_costs_exactly_the_most_that_is_drawn_is_drawn():
    rows = [
        row("none", 0.0, 0, 0.933, 0.80, 0.0, victim_accuracy=0.933),
        row("mad", 0.5, 0, 0.813, 0.60, 0.4, victim_accuracy=0.933),
        row("top_k", 1.0, 0, 0.933, 0.7, 0.3, victim_accuracy=0.933),
    ]
    assert pareto.table(records.frame(rows)).cost.max() > pareto.DEAREST  # by rounding
    assert "above 12" not in pareto.draw(records.frame(rows)).get_suptitle()


def test_the_figure_leaves_out_what_is_dear_and_says_so():
    figure = pareto.draw(WIDE)
    left, right = figure.axes
    said = figure.get_suptitle().replace("\n", " ")
    assert "1 of the points, above 12, in the table only" in said
    assert "no answer is moved by dp_sgd" in said
    drawn = [{each.get_label() for each in axes.containers} for axes in (left, right)]
    assert "dp_sgd" in drawn[0]
    assert "dp_sgd" not in drawn[1]
    assert left.get_xlim()[1] < 12


def test_figures_and_tables_are_written_for_thefts_with_two_defenses(tmp_path):
    other = pd.concat([WIDE, GROUP[GROUP.defense.isin(["none", "mad"])].assign(comparison_group="f" * 16)])
    written = pareto.write_all(other, tmp_path / "figures")
    assert len(written) == 1
    assert written[0].stat().st_size > 10_000
    assert len(pd.read_csv(written[0].with_suffix(".csv"))) == 8
    with pytest.raises(MadError, match="two defenses"):
        pareto.write_all(other[other.comparison_group == "f" * 16], tmp_path / "figures")


def test_what_is_not_drawn_is_compared_with_too():
    rows = [
        row("none", 0.0, 0, 0.90, 0.80, 0.0),
        row("mad", 0.5, 0, 0.90 - 2 * pareto.DEAREST / 100, 0.10, 0.2),
        row("random_noise", 0.5, 0, 0.90, 0.50, 0.5),
    ]
    left, right = pareto.draw(records.frame(rows)).axes
    steps = [{*line.get_xdata()} for axes in (left, right) for line in axes.lines if line.get_label() == "Pareto front"]
    assert steps == [{0.0}, {0.0}]  # random noise is on the left front, and beaten in L1
    front = [line.get_ydata().tolist() for line in left.lines if line.get_label() == "Pareto front"]
    assert front == [[50.0]]
