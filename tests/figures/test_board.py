"""The board: the strongest adversary of each defense, and what is not one."""

import numpy as np
import pandas as pd
import pytest
from test_figures import row

from mad.errors import MadError
from mad.figures import board
from mad.storage import records


def cells(defense, strength, member, stolen, group, **more):
    """One cell a seed; stolen accuracies by seed."""
    recovery = {"recovery": "none" if member == "naive" else member}
    return [
        row(
            defense,
            strength,
            seed,
            0.88,
            share,
            0.4,
            comparison_group=group * 16,
            **{**recovery, "recovery_knows": "", "nll": 0.1, **more},
        )
        for seed, share in enumerate(stolen)
    ]


ROWS = [
    *cells("none", 0.0, "naive", (0.80, 0.82, 0.84), "a"),
    *cells("none", 0.0, "argmax", (0.70, 0.72, 0.74), "b"),
    *cells("mad", 0.5, "naive", (0.60, 0.20, 0.40), "a"),
    *cells("mad", 0.5, "argmax", (0.50, 0.52, 0.54), "b"),
    *cells("mad", 0.5, "oracle_filter", (0.79, 0.79, 0.79), "c", recovery_knows="the victim's clean answers"),
    *cells("top_k", 1.0, "naive", (0.90, 0.10, 0.10), "a", strength_parameter="k"),
    *cells("top_k", 1.0, "argmax", (0.20, 0.20, 0.20), "b", strength_parameter="k"),
]
FRAME = records.frame(ROWS)


def test_the_worst_is_the_member_with_the_highest_mean_and_those_given_the_clean_answers_are_apart():
    ((title, table),) = board.boards(FRAME).items()
    assert "stolen with 50 queries from blobs" in title
    by = table.set_index("defense")
    assert by.loc["mad"].worst_member == "argmax"
    assert by.loc["mad"].worst == pytest.approx(52)  # not the luckiest run, which is naive's 60
    assert (by.loc["mad"].informed, by.loc["mad"].informed_member) == (pytest.approx(79), "oracle_filter")
    assert by.loc["none"].worst_member == "naive"
    assert (by.loc["none"].naive, by.loc["none"].labels) == (pytest.approx(82), pytest.approx(72))
    assert table.defense.tolist() == ["top_k", "mad", "none"]
    assert by.loc["mad"].members == 2
    assert by.loc["mad"].nll == pytest.approx(0.1)


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


def test_a_member_is_named_by_what_is_unlike_the_plain_theft():
    longer = cells("mad", 0.5, "naive", (0.7, 0.7, 0.7), "d", knockoff_epochs=54)
    plain = [{**each, "knockoff_epochs": 18} for each in ROWS]
    longer += cells("mad", 0.5, "naive", (0.7, 0.7, 0.7), "f", knockoff_epochs=18, knockoff_settings="mixup=0.2")
    frame = records.frame([*plain, *longer, *cells("mad", 0.5, "naive", (0.9, 0.9, 0.9), "e", attack="jbtop3")])
    names = board.members(frame)
    assert set(names) == {"naive", "argmax", "oracle_filter", "54 epochs", "mixup=0.2", "jbtop3"}


def test_files_are_written_and_one_adversary_makes_no_board(tmp_path):
    written = board.write_all(FRAME, tmp_path)
    assert [path.suffix for path in written] == [".md", ".csv", ".png"]
    text = (tmp_path / "figures" / "board.md").read_text()
    assert "| mad | epsilon 0.5 | 2 | 3 | 52.0 |" in text
    assert len(pd.read_csv(tmp_path / "figures" / "board-0.csv")) == 3
    with pytest.raises(MadError, match="experiment=panel"):
        board.write_all(FRAME[FRAME.recovery == "none"], tmp_path)
