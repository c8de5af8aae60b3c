"""Table 1 and the ledger: the paper's numbers beside ours."""

from functools import cache

import numpy as np
import pytest
from paper_rows import ALL, IDLE, KNOCKOFF, MAD, NAMES, curve_rows, paper_row, theft

from mad.figures import cells, ledger, measures, table1
from mad.storage import records


def test_a_thief_that_learned_nothing_is_marked_in_the_ledger_and_table_1(capfd):
    text = "accuracy that MAD leaves knockoff at a mean L1 of 0.95, %"
    line = claim(text, IDLE)
    assert line["our_mean"] == claim(text)["our_mean"] + " !" == "70.5 !"
    assert "learned nothing" in line["our_where"]
    for other in ("accuracy of the victim, %", "accuracy of knockoff's stolen model, no defense, %"):
        assert claim(other, IDLE) == claim(other)
    rows = [{**each, "learned": bool(each["seed"])} for each in KNOCKOFF if each["defense"] == "none"]
    assert claim("accuracy of the victim, %", rows)["our_mean"] == "99"
    found = table1.table1([theft(rows)])
    assert found.knockoff.tolist() == ["96.5 ± 0.7 !"]
    assert found["victim %"].tolist() == ["99.0 ± 0.0"]
    table1.show(found)
    assert "!: a stolen model learned nothing" in capfd.readouterr().out


def test_table_1_is_readable_at_80_columns(capfd):
    long = {"victim": "a_victim_of_some_length", "pool": "a_pool_with_a_name_of_some_length"}
    table1.show(table1.table1([theft([{**each, **long} for each in ALL])]))
    out = capfd.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "a_victim_of_some_length stolen with a_pool_with_a_name_of_some_length" in out
    assert "90.5 ± 0.7" in out


def test_table_1_is_of_undefended_victims():
    table = table1.table1([theft(ALL)])
    (line,) = table.to_dict("records")
    assert (line["knockoff"], line["jbda"], line["victim %"]) == ("96.5 ± 0.7", "90.5 ± 0.7", "99.0 ± 0.0")
    assert table1.markdown(table).splitlines()[0].startswith("| victim | pool |")
    assert table1.table1([theft(curve_rows("mad", MAD))]).empty


@cache
def whole(idle=False):
    return ledger.ledger([theft(IDLE if idle else ALL)])


def claim(text, rows=None, victim="mnist"):
    """Return the ledger's only row of a claim about a victim."""
    found = whole(rows is IDLE) if rows is None or rows is IDLE else ledger.ledger([theft(rows)])
    (line,) = found[(found.claim == text) & (found.victim == victim)].to_dict("records")
    return line


def test_every_number_published_has_a_row_and_a_measure():
    stated = ledger.published()
    assert len(stated[stated.source == "Table 1"]) == 6 * (4 + 1)
    assert set(stated.measure) <= {"", *measures.MEASURES}
    assert set(measures.MEASURES) <= set(stated.measure)
    assert set(stated.experiment) <= set(NAMES)
    blank = ledger.ledger([])
    same = ["source", "claim", "victim", "published"]
    assert blank[same].to_numpy().tolist() == stated[same].to_numpy().tolist()
    assert (blank.filter(like="our_") == "").all(axis=None)


def test_a_number_is_of_the_pool_with_the_most_queries_that_has_it():
    many = [{**each, "pool": "clothes", "budget": 10**6, "stolen_accuracy": 0.5} for each in KNOCKOFF]
    found = ledger.ledger(cells.thefts(records.frame([*ALL, *many])))
    stated = found[(found.source == "Table 1") & (found.victim == "mnist") & found.claim.str.contains("knockoff")]
    assert (stated.our_pool.tolist(), stated.our_mean.tolist()) == (["clothes"], ["50"])
    moved = found[(found.our_victim == "mnist") & found.claim.str.contains("keeping top classes")]
    assert set(moved.our_pool) == {"blobs"}  # the other has no labels


def test_a_number_of_the_ledger_is_traceable():
    line = claim("accuracy that MAD leaves knockoff for less than a point of the API's, %")
    assert (line["published"], line["our_mean"], line["our_deviation"]) == ("69.8", "70.5", "0.71")
    assert (line["our_seeds"], line["our_where"], line["our_pool"]) == (2, "epsilon=0.95", "blobs")
    wanted = [each["fingerprint"] for each in KNOCKOFF if each["strength"] == 0.95]
    assert line["our_fingerprints"].split() == sorted(wanted)


@pytest.mark.parametrize(
    ("text", "victim", "value"),
    [
        ("accuracy of the victim, %", "mnist", 99),
        ("accuracy of jbtop3's stolen model, no defense, %", "mnist", 90.5),
        ("points that MAD takes from jbtop3 for less than a point of the API's", "mnist", 50),
        ("points that MAD takes for 1 to 2 of the API's: of all attacks the least", "mnist", 26),
        ("points that MAD takes for 1 to 2 of the API's: of all attacks the most", "mnist", 50),
        ("accuracy that MAD leaves knockoff at a mean L1 of 0.95, %", "mnist", 70.5),
        ("MAD's L1 of 0.95 as a part of what random_noise takes for the same effect", "mnist", 0.95 / 90),
        ("points that mad_argmax takes from knockoff at its strongest", "*", 21),
        ("accuracy of the API once random_noise holds knockoff below 70, %", "mnist", 99),
        ("points of the API's accuracy that MAD spends to hold knockoff below 70", "mnist", 99),
        ("points that mad_argmax at its strongest takes from the adversary who keeps top classes", "cifar10", 1),
        ("mean angular deviation at epsilon 0.95 to 0.99, degrees", "cifar10", 25.5),
        ("mean angular deviation at epsilon 2, degrees", "cifar10", 95.5),
        ("greatest angular deviation, degrees", "cifar10", 98),
        ("rise of the test loss at epsilon 2, from first to last query", "cifar10", 3),
        ("points more for the thief under mad_random than under mad_identity, epsilon 0.95", "cifar10", 5),
        ("accuracy of the best counter-move under MAD, %; which", "cifar10", 88.5),
        ("points that MAD still takes from the best counter-move", "cifar10", 8),
        ("best counter-move under MAD-argmax, as a part of the undefended theft", "cifar10", 94.5 / 96.5),
        ("points that knockoff loses on an undefended API by keeping top classes", "cifar10", 1),
        ("the thief's error over the victim's, for up to 2 points of the API's: most of all attacks", "mnist", 59.5),
    ],
)
def test_what_the_ledger_measures(text, victim, value):
    assert float(claim(text, victim=victim)["our_mean"]) == pytest.approx(value, rel=2e-3)


def test_a_cost_of_exactly_a_point_is_not_less_than_a_point():
    table = records.frame(KNOCKOFF).assign(victim_accuracy=0.938, defended_accuracy=0.938)
    for defended, best in ((0.928, "epsilon=0.5"), (0.9281, "epsilon=0.95")):  # 93.8 - 92.8 is less than 1 by rounding
        table.loc[table.strength == 0.95, "defended_accuracy"] = defended
        table.loc[table.strength == 1.1, "defended_accuracy"] = 0.5
        (one,) = cells.thefts(table)
        assert measures.cheapest(one, "knockoff", 1.0)[2] == best


def test_exactly_the_limit_is_not_below_it():
    levels = {0: 0.601, 1: 0.628, 2: 0.871}  # whose mean is less than 70 % by rounding
    table = records.frame([paper_row("mad", 0.95, seed, level) for seed, level in levels.items()])
    (one,) = cells.thefts(table)
    assert measures.below(one, "mad", 70) is None
    assert measures.below(one, "mad", 70.01)[1] == "epsilon=0.95"


def test_the_budget_ratio_interpolates_between_budgets():
    text = "queries for what MAD (epsilon 0.95) leaves of the whole budget, over the undefended theft's for as much"
    line = claim(text)
    # seed 0 has 0.7 left, just short of what 10 queries bring undefended; seed 1 has 0.71, theirs exactly
    first = 50 / np.exp(np.interp(70, [50, 70.5], np.log([5, 10])))
    second = 50 / np.exp(np.interp(71, [51, 72], np.log([5, 10])))
    assert float(line["our_mean"]) == pytest.approx((first + second) / 2, rel=1e-3)


def test_the_answers_entropy_is_taken_between_strengths():
    wider = [
        {**each, "answer_entropy": 3 * each["strength"]} for each in curve_rows("mad_argmax", {0.5: 0.8, 1.5: 0.6})
    ]
    text = "mean entropy of mad_argmax's answers at L1 1.0, bits"
    assert float(claim(text, [*KNOCKOFF, *wider])["our_mean"]) == pytest.approx(3)
    assert claim(text, [*KNOCKOFF, *wider[:2]])["our_mean"] == ""  # L1 1.0 lies beyond what was measured


def test_only_claims_of_the_text_are_joined_to_other_victims():
    found = whole()
    others = found[(found.source == "Table 1") & (found.victim != "mnist")]
    assert (others.our_mean == "").all()
    assert (others.our_victim == "").all()
    assert (found[(found.source == "Fig. 6")].our_victim == "mnist").all()


def test_most_of_all_attacks_takes_all_attacks():
    some = [each for each in ALL if each["attack"] != "jbself"]
    assert claim("points that MAD takes for 1 to 2 of the API's: of all attacks the most", some)["our_mean"] == ""
