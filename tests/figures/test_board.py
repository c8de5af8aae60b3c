"""The board: the strongest adversary of each defense, and what is not one."""

import numpy as np
import pandas as pd
import pytest
from board_cells import FRAME, ROWS, cells

from mad.figures import board, board_views
from mad.figures import members as naming
from mad.storage import records


def test_the_worst_is_the_member_with_the_highest_mean_and_those_given_the_clean_answers_are_apart():
    ((title, table),) = board.boards(FRAME).items()
    assert "stolen with 50 queries from blobs" in title
    by = table.set_index("defense")
    assert by.loc["mad"].worst_member == "argmax"
    assert by.loc["mad"].worst == pytest.approx(52)  # not the luckiest run, which is naive's 60
    assert (by.loc["mad"].informed, by.loc["mad"].informed_member) == (pytest.approx(79), "oracle_filter")
    assert by.loc["none"].worst_member == "naive"
    few = records.frame([*ROWS, *cells("mad", 0.5, "few", (0.7, 0.7, 0.7), "d", recovery_knows="the victim's data")])
    mad = board.boards(few)[title].set_index("defense").loc["mad"]
    assert (mad.worst_member, mad.unaided_member, mad.unaided) == ("few", "argmax", pytest.approx(52))
    of_its_own = {"attack": "augmented", "attack_settings": "source=victim keep=seeds"}
    of_the_pool = {"attack": "augmented", "attack_settings": "keep=seeds"}
    others = [
        *cells("mad", 0.5, "few", (0.3, 0.3, 0.6), "e", recovery_knows="the victim's data", **of_its_own),
        *cells("none", 0.0, "few", (0.3, 0.3, 0.6), "f", **of_the_pool),
        *cells("top_k", 1.0, "few", (0.3,) * 3, "g", strength_parameter="k", recovery_knows=board.CLEAN, **of_its_own),
    ]
    images = board.boards(records.frame([*ROWS, *others]))[title].set_index("defense").own
    assert images["mad"] == pytest.approx(40)
    assert images.drop("mad").isna().all()
    assert (by.loc["none"].naive, by.loc["none"].labels) == (pytest.approx(82), pytest.approx(72))
    assert table.defense.tolist() == ["top_k", "mad", "none"]
    assert by.loc["mad"].members == 2
    assert by.loc["mad"].nll == pytest.approx(0.1)


def test_a_defense_that_met_fewer_members_is_not_ranked_above_those_that_met_all():
    few = records.frame([*ROWS, *cells("dcp", 0.5, "naive", (0.1, 0.1, 0.1), "a")])
    ((title, table),) = board.boards(few).items()
    assert table.defense.tolist() == ["top_k", "mad", "none", "dcp"]
    assert [board_views.texts(at)["members"] for _, at in table.iterrows()] == ["2", "2", "2", "1 of 2"]
    assert "| 1 of 2 |" in board_views.markdown(title, table)


def test_what_all_knockoffs_of_a_theft_do_names_no_member():
    """Those of CIFAR-10 crop and flip their images, so the naive thief's do, too."""
    cropped = [{**each, "knockoff_settings": "augment=crop_flip"} for each in ROWS]
    for group, settings in (("f", "augment=crop_flip mixup=0.2"), ("g", "augment=warp"), ("h", "")):
        cropped += cells("mad", 0.5, "naive", (0.7, 0.7, 0.7), group, knockoff_settings=settings)
    frame = records.frame(cropped)
    names = {"naive", "argmax", "oracle_filter", "mixup=0.2", "augment=warp", "no augment=crop_flip"}
    assert set(naming.members(frame)) == names
    (table,) = board.boards(frame).values()
    assert table.set_index("defense").loc["none"].naive == pytest.approx(82)


def test_the_interval_chooses_the_worst_anew_in_each_draw():
    scores = pd.DataFrame({"naive": [60.0, 20.0, 40.0], "argmax": [50.0, 52.0, 54.0]})
    found = board.worst(scores)
    draws = np.random.default_rng(0).integers(3, size=(board.DRAWS, 3))
    most = [max(scores.iloc[each].mean()) for each in draws]
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(most, [0.025, 0.975])))
    assert found["low"] <= found["worst"] <= found["high"]
    one = board.worst(scores[:1])
    assert (one["worst_member"], one["low"], one["high"]) == ("naive", None, None)


def test_only_seeds_that_all_members_share_count():
    fewer = FRAME[~((FRAME.defense == "mad") & (FRAME.recovery == "argmax") & (FRAME.seed == 0))]
    mad = board.boards(fewer)[next(iter(board.boards(fewer)))].set_index("defense").loc["mad"]
    assert mad.seeds == 2
    assert mad.naive == pytest.approx(30)
    other = fewer.assign(nll=[1.7 if seed == 0 else 0.1 for seed in fewer.seed])
    (table,) = board.boards(other).values()
    assert table.set_index("defense").loc["mad"].nll == pytest.approx(0.1)  # costs, too


@pytest.mark.parametrize(("stolen", "seeds"), [(0.10, 3), (0.45, 1)])
def test_a_member_with_fewer_seeds_takes_seeds_away_only_if_it_could_be_the_worst(stolen, seeds):
    rows = [each for each in ROWS if each["defense"] != "mad"]
    rows += cells("mad", 0.5, "naive", (0.41, 0.40, 0.40), "a")
    rows += cells("mad", 0.5, "argmax", (0.40, 0.55, 0.60), "b")  # the strongest, at least 40
    rows += cells("mad", 0.5, "constant", (stolen,), "k")  # one seed
    (table,) = board.boards(records.frame(rows)).values()
    mad = table.set_index("defense").loc["mad"]
    assert (mad.members, mad.seeds) == (3, seeds)
    assert mad.by_member["constant"] == pytest.approx(100 * stolen)
    assert mad.worst_member == ("argmax" if seeds == 3 else "constant")


def test_seconds_are_told_only_where_all_are_known():
    assert board.seconds(pd.DataFrame({"seed": [0, 0, 1], "seconds_queries": 1.0, "seconds_knockoff": 2.0})) == 6.0
    lacking = pd.DataFrame({"seed": [0, 1], "seconds_queries": [1.0, None], "seconds_knockoff": 2.0})
    assert np.isnan(board.seconds(lacking))
    assert np.isnan(board.seconds(pd.DataFrame({"seed": [0]})))


def test_the_pool_of_the_confidence_is_that_of_the_naive_thief():
    rows = [{**each, "auroc_pool": 0.9 if each["recovery"] == "none" else 0.4} for each in ROWS]
    for some in (rows, rows[::-1]):
        (table,) = board.boards(records.frame(some)).values()
        assert table.auroc_pool.tolist() == pytest.approx([0.9, 0.9, 0.9])


def test_the_largest_agreement_is_a_number_of_its_own():
    rows = [{**each, "agreement": 0.9 if each["recovery"] == "none" else 0.1} for each in ROWS]
    ((_, table),) = board.boards(records.frame(rows)).items()
    mad = table.set_index("defense").loc["mad"]
    assert (mad.worst_member, mad.agreement_member) == ("argmax", "naive")
    assert mad.agreement == pytest.approx(90)


def test_a_member_is_named_by_what_is_unlike_the_plain_theft():
    longer = cells("mad", 0.5, "naive", (0.7, 0.7, 0.7), "d", knockoff_epochs=54)
    plain = [{**each, "knockoff_epochs": 18} for each in ROWS]
    longer += cells("mad", 0.5, "naive", (0.7, 0.7, 0.7), "f", knockoff_epochs=18, knockoff_settings="mixup=0.2")
    frame = records.frame([*plain, *longer, *cells("mad", 0.5, "naive", (0.9, 0.9, 0.9), "e", attack="jbtop3")])
    names = naming.members(frame)
    assert set(names) == {"naive", "argmax", "oracle_filter", "54 epochs", "mixup=0.2", "jbtop3"}


UNDEFENDED = pd.Series({10: 20.0, 100: 40.0, 1000: 80.0})


@pytest.mark.parametrize(("stolen", "budget"), [(20, 10), (30, 10**1.5), (60, 10**2.5), (5, 10), (99, 1000)])
def test_a_theft_is_worth_so_many_honest_answers(stolen, budget):
    assert board.equivalent(UNDEFENDED, stolen) == pytest.approx(budget)


def test_honest_answers_are_counted_by_the_naive_thefts_of_other_budgets():
    small = cells("none", 0.0, "naive", (0.4, 0.4, 0.4), "g", budget=5)
    ((title, table),) = board.boards(records.frame([*ROWS, *small])).items()
    assert "50 queries" in title
    by = table.set_index("defense").honest
    assert by["none"] == pytest.approx(50)
    assert by["mad"] == pytest.approx(5 * 10 ** ((52 - 40) / (82 - 40)))
    assert board.boards(FRAME)[title].honest.isna().all()


def marked(back, left):
    """A board with both defenses that test the panel."""
    few = {"recovery_knows": "the victim's data"}
    rows = [
        *ROWS,
        *cells("permuted", None, "naive", (0.02,) * 3, "a"),
        *cells("permuted", None, "few", (back,) * 3, "h", **few),
        *cells("random_answers", None, "naive", (left,) * 3, "a", chance=0.25),
        *cells("random_answers", None, "few", (0.7,) * 3, "h", chance=0.25, **few),
    ]
    ((_, table),) = board.boards(records.frame(rows)).items()
    return board.checks(table)


def test_a_panel_must_undo_what_is_trivial_and_learn_nothing_from_nothing():
    assert board.checks(board.boards(FRAME)[next(iter(board.boards(FRAME)))]) == []
    good = marked(0.8, 0.3)
    assert [each.split(": ")[-1] for each in good] == ["passed", "passed"]
    assert [each.split(": ")[-1] for each in marked(0.77, 0.36)] == ["FAILED", "FAILED"]
    assert good[0] == "permuted: 80.0 % comes back of 82.0 % undefended, at least 95% of it must: passed"
    assert good[1] == "random_answers: 30.0 % by members that know nothing else, at most 35 % may be: passed"


def test_each_member_is_listed_with_its_records():
    rows = board.each_member(FRAME).set_index(["defense", "member"])
    mad = rows.loc[("mad", "argmax")]
    assert (mad.seeds, mad.stolen, mad.stolen_deviation) == (3, pytest.approx(52), pytest.approx(2))
    assert mad.records.split() == FRAME[(FRAME.defense == "mad") & (FRAME.recovery == "argmax")].fingerprint.tolist()


def test_a_panel_without_members_that_know_nothing_is_not_judged_by_them():
    rows = [
        *cells("random_answers", 0.0, "few", (0.7, 0.7, 0.7), "d", recovery_knows="the victim's data"),
        *cells("mad", 0.5, "naive", (0.60, 0.20, 0.40), "a"),
        *cells("mad", 0.5, "argmax", (0.50, 0.52, 0.54), "b"),
    ]
    (table,) = board.boards(records.frame(rows)).values()
    assert board.checks(table) == []


def test_as_good_with_several_budgets_is_as_good_with_the_least_of_them():
    level = pd.Series({10: 20.0, 100: 40.0, 1000: 40.0, 10000: 40.0})
    assert board.equivalent(level, 40) == pytest.approx(100)
    assert board.equivalent(level, 30) == pytest.approx(10**1.5)
    assert board.equivalent(level, 41) == pytest.approx(10000)  # no budget is as good: at least the largest
