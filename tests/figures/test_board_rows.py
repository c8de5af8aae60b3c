"""The board's rows where members share few seeds, learned nothing or train otherwise; and what its CSV keeps."""

import itertools

import numpy as np
import pandas as pd
import pytest
from board_cells import FRAME, ROWS, cells

from mad.figures import board, board_views
from mad.storage import records


def only(found):
    return board.named(records.frame(found))


@pytest.mark.parametrize("seeds", list(itertools.product((1, 2, 3), repeat=3)))
def test_the_worst_is_never_below_another_of_its_row(seeds):
    stolen = {"naive": (0.2, 0.3, 0.8), "few": (0.25, 0.9, 0.1), "own": (0.28, 0.1, 0.1)}
    more = {
        "naive": {},
        "few": {"recovery_knows": "the victim's data"},
        "own": {
            "recovery_knows": "the victim's data",
            "attack": "augmented",
            "attack_settings": "source=victim keep=seeds",
        },
    }
    found = board.row(
        only(
            [
                each
                for group, (name, count) in zip("abc", zip(stolen, seeds, strict=True), strict=True)
                for each in cells("mad", 0.5, name, stolen[name][:count], group, **more[name])
            ]
        )
    )
    assert found["worst"] >= max(found["unaided"], found["own"])


def test_without_a_shared_seed_the_costs_are_of_all_records():
    first = cells("mad", 0.5, "naive", (0.2,), "a", defended_accuracy=0.9)
    (other,) = cells("mad", 0.5, "argmax", (0.4,), "b", defended_accuracy=0.8)
    found = board.row(only([*first, {**other, "seed": 1}]))
    assert (found["worst"], found["worst_member"], found["seeds"]) == (pytest.approx(40), "argmax", 1)
    assert found["defended_accuracy"] == pytest.approx(0.85)


def test_a_stolen_model_that_learned_nothing_is_marked():
    broken = [{**each, "learned": not (each["defense"] == "mad" and each["seed"] == 0)} for each in ROWS]
    ((title, table),) = board.boards(records.frame(broken)).items()
    told = {at.defense: board_views.texts(at) for _, at in table.iterrows()}
    assert [told["mad"][name][-1] for name in board_views.SHARES if told["mad"][name]] == ["!"] * 6
    assert not any("!" in text for text in told["none"].values())
    assert board_views.FAILED in board_views.markdown(title, table)
    assert "!" not in board_views.markdown(title, board.boards(FRAME)[title])


def test_naive_is_the_thief_that_trains_as_it_does_by_default():
    longer = [{**each, "comparison_group": "0" * 16, "knockoff_min_steps": 9} for each in ROWS[:3]]
    said = [{**each, "overrides": "attack=knockoff knockoff.min_steps=9"} for each in 4 * longer]
    rows = [{**each, "overrides": "attack=knockoff", "knockoff_min_steps": 99} for each in ROWS]
    named = only([*said, *rows])
    assert set(named[named.knockoff_min_steps == 99].member) == {"naive", "argmax", "oracle_filter"}
    assert "naive" not in set(named[named.knockoff_min_steps == 9].member)


def test_the_records_behind_a_board_make_the_same_board_again(tmp_path):
    strength, share = 0.87654321, 0.123456789
    both = [
        *cells("mad", strength, "naive", (share, 0.2), "a", learned=True, auroc_pool=None),
        *cells("mad", strength, "argmax", (0.1, 0.1), "b", learned=False, auroc_pool=None),
    ]
    list(board_views.write_all(records.frame(both), tmp_path))
    again = records.frame(records.read_csv(tmp_path / "figures" / "board-records.csv"))
    assert again.strength.tolist() == [strength] * 4
    assert sorted(again.stolen_accuracy) == [0.1, 0.1, 0.123457, 0.2]
    third = records.frame([*cells("mad", strength, "naive", (0, 0, 0.3), "a")[2:]])
    (table,) = board.boards(pd.concat([again, third], ignore_index=True)).values()
    assert len(table) == 1
    assert table.unlearned[0] == ["argmax"]


@pytest.mark.parametrize("start", range(20))
def test_no_column_is_above_the_worst_whatever_seeds_the_members_ran_with(start):
    draw = np.random.default_rng(start)
    rows = []
    for place, group in enumerate("abcdefg"):
        knows = "the victim's data" if place % 2 else ""
        some = cells("mad", 0.5, f"m{place}", draw.uniform(0.7, 0.9, size=3), group, recovery_knows=knows)
        rows += [some[seed] for seed in draw.permutation(3)[: draw.integers(1, 4)]]
    found = board.row(only(rows))
    assert found["unaided"] <= found["worst"] + 1e-9


def test_what_one_record_of_a_member_says_it_knows_counts_for_all():
    """Records that were made before the column existed do not say it."""
    own = only(cells("mad", 0.5, "naive", (0.5, 0.5), "a") + cells("mad", 0.5, "few", (0.9, 0.9), "b"))
    own.loc[(own.member == "few") & (own.seed == 1), "recovery_knows"] = "the victim's data"
    own = board.named(own)
    found = board.board(own, board.honest(own)).iloc[0]
    assert (found.worst_member, found.knows, found.unaided_member) == ("few", "the victim's data", "naive")
    assert len(board.each_member(own)) == 2
