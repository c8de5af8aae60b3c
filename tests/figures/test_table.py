"""Records on the terminal: readable at 80 columns."""

import os
import re
import subprocess
import sys

import pytest
from figure_rows import LONG, USUAL, row

from mad.figures import table
from mad.storage import records


def lines(rows, width=80):
    return table.lines(records.frame([{**USUAL, **each} for each in rows]), width)


PAIR = [row("none", 0.0, 0, 0.9, 0.8, 0.0), row("mad", 0.5, 0, 0.9, 0.7, 0.5)]


def seeds(rows, count=3):
    return [
        {**each, "seed": seed, "stolen_accuracy": each["stolen_accuracy"] - seed / 100}
        for each in rows
        for seed in range(count)
    ]


def test_what_all_have_in_common_is_the_title():
    title, *rest = lines(PAIR)
    assert title.startswith("toy stolen by knockoff with 50 queries from blobs")
    assert [line.split() for line in rest if line.startswith(("none", "mad"))] == [
        ["none", "0", "90.0", "90.0", "0.000", "80.0", "50.0", "2"],
        ["mad", "0.5", "90.0", "90.0", "0.500", "70.0", "50.0", "2"],
    ]


@pytest.mark.parametrize("change", ["pool", "attack", "attack_settings", "recovery", "knockoff_architecture", "budget"])
def test_thefts_that_differ_in_more_than_the_defense_say_in_what(change):
    value = {"budget": 20}.get(change, "other")
    rows = [*PAIR, *({**each, "comparison_group": "other", change: value} for each in PAIR)]
    text = "\n".join(lines(rows))
    assert ("20 queries" if change == "budget" else "other") in text
    assert text.count("defense  epsilon") == 2
    assert [line.split()[0] for line in text.splitlines() if line.startswith(("none", "mad"))] == 2 * ["none", "mad"]
    if change in ("pool", "attack"):
        assert f"several {change}s" in text


def test_scenes_that_differ_in_no_column_are_told_apart():
    text = "\n".join(lines([*PAIR, *({**each, "comparison_group": "fedcba9876543210"} for each in PAIR)]))
    assert "group 012345" in text
    assert "group fedcba" in text


@pytest.mark.parametrize("width", [80, 100, 160])
def test_no_word_is_broken_and_no_line_too_long(width):
    names = ["n" * 64, "random_noise", "reverse_sigmoid", "mad_argmax"]
    rows = [
        row(
            name,
            0.25,
            seed,
            0.9,
            0.8,
            0.5,
            **LONG | more,
            strength_parameter=strength_parameter,
            defense_settings=settings,
            comparison_group=str(more),
        )
        for name in names
        for strength_parameter, settings in (
            ("noise_multiplier", ""),
            ("epsilon", "surrogate=trained architecture=resnet34 epochs=30"),
        )
        for more in ({}, {"attack": "jbda"}, {"pool": "q" * 64, "recovery": "none"}, {"knockoff_optimizer": "adam"})
        for seed in (0, 1, 2)
    ]
    found = lines(rows, width)
    assert max(map(len, found)) <= width
    text = "\n".join(found)
    words = {word for each in rows for word in f"{each['defense']} {each['defense_settings']} {each['pool']}".split()}
    assert words <= set(re.split(r"[\s,;]+", text))
    assert "noise_multiplier=0.25" in text
    assert "…" not in text


def test_a_wider_terminal_shows_more():
    rows = [{**each, "target_entropy": 1.5} for each in seeds(PAIR)]
    heads = [next(line for line in lines(rows, width) if line.startswith("defense")) for width in (60, 80, 100, 160)]
    shown = [set(re.split(r"\s\s+", head)) for head in heads]
    assert {"defense", "epsilon", "seeds", "defended %", "stolen %"} <= shown[0]
    assert shown[0] < shown[1] < shown[2] < shown[3]
    assert {"agreement %", "mean L1"} <= shown[1]
    assert {"target bits", "seconds", "victim %"} <= shown[3]
    assert all("records.csv" in lines(rows, width)[-1] for width in (60, 160))


def test_seeds_are_one_row_of_mean_and_deviation():
    found = lines([*seeds(PAIR[:1]), *seeds(PAIR[1:], 1)])
    (none,), (mad,) = ([line for line in found if line.startswith(name)] for name in ("none", "mad"))
    assert "79.0 ± 1.0" in none
    assert none.split()[2] == "3"
    assert mad.split()[2:4] == ["1", "90.0"]
    assert "±" not in mad
    assert any("one standard deviation" in line for line in found)
    assert not any("seed 0" in line for line in found)
    assert "seed 0" in " ".join(lines(PAIR))


@pytest.mark.parametrize("width", [40, 80, 160])
def test_a_thief_that_learned_nothing_is_marked(width):
    found = lines([PAIR[0], {**PAIR[1], "learned": False}], width)
    (none,), (mad,) = ([line for line in found if line.startswith(name)] for name in ("none", "mad"))
    assert "70.0 !" in mad
    assert "!" not in none
    assert "try a smaller knockoff.learning_rate" in " ".join(found)
    assert not any("!" in line for line in lines(PAIR, width))
    assert not any("!" in line for line in lines([{**each, "learned": None} for each in PAIR], width))
    one = lines([*seeds(PAIR, 2)[:3], {**seeds(PAIR, 2)[3], "learned": False}], 160)
    assert "69.5 ± 0.7 !" in next(line for line in one if line.startswith("mad"))


def test_queries_are_shown_where_they_are_not_the_budget():
    assert "queries  " not in "\n".join(lines(PAIR, 160))
    assert "      40  " in "\n".join(lines([{**each, "queries": 40} for each in PAIR], 160))


@pytest.mark.parametrize("columns", ["30", "300"])
def test_a_pipe_gets_80_columns_whatever_the_terminal(columns):
    script = "from mad.progress import out; print(out.width)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "COLUMNS": columns},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["80"]
