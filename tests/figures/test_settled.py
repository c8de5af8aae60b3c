"""Which records are of one defense, one victim and one theft, where their texts are the same."""

import pandas as pd
import pytest
from figure_rows import GROUP, ROWS, row

import mad
from mad.errors import MadError
from mad.figures import board, groups, pareto, table, tradeoff
from mad.storage import records, settled

ONE, TWO = "1" * 16, "2" * 16
ORIGIN = row("none", 0.0, 0, 0.9, 0.8, 0.0)


def noise(seed, stolen, **more):
    return row("random_noise", 50.0, seed, 0.8, stolen, 0.4, **{"strength_parameter": "scale", **more})


def stolen(rows):
    """Return the stolen accuracy of the last point of each curve, percent."""
    found = tradeoff.curves(records.frame(rows))
    return {name: round(float(points["stolen_accuracy", "mean"].iloc[-1]), 6) for name, points in found.items()}


def test_defenses_whose_texts_are_the_same_are_not_averaged():
    rows = [ORIGIN, *(noise(seed, at, defense_group=of) for seed in (0, 1) for at, of in ((0.9, ONE), (0.5, TWO)))]
    assert stolen(rows) == {"random_noise ([11111111])": 90, "random_noise ([22222222])": 50}
    frame = records.frame(rows)
    assert set(pareto.table(frame).defense) == {"none", "random_noise ([11111111])", "random_noise ([22222222])"}
    assert sum("random_noise [" in line for line in table.lines(frame, 100)) == 2
    (drawn,) = board.boards(frame, least=1).values()
    assert set(drawn.defense) == {"none", "random_noise ([11111111])", "random_noise ([22222222])"}


def test_texts_of_other_victims_and_parameters_need_no_digits():
    rows = [ORIGIN, noise(0, 0.9, defense_group=ONE), noise(0, 0.5, defense_group=TWO, victim="else")]
    rows.append(noise(0, 0.5, defense_group=TWO, strength_parameter="epsilon"))
    assert set(records.frame(rows).defense_settings) == {""}


def test_one_defense_has_one_text_and_older_records_have_theirs():
    told = noise(0, 0.9, defense_group=ONE, defense_settings="scale_of=one")
    rows = [ORIGIN, told, *(noise(seed, 0.6, defense_group=ONE) for seed in (1, 2))]
    assert stolen(rows) == {"random_noise": 70}
    assert stolen([*rows, noise(3, 0.3)]) == {"random_noise": 60}  # older: it has the text of the one that is known
    both = [*rows, noise(3, 0.3), noise(1, 0.5, defense_group=TWO)]
    ends = {"random_noise ([11111111])": 70, "random_noise ([22222222])": 50}
    assert stolen(both) == {"random_noise": 30, **ends}


def test_what_is_settled_is_settled_again_from_records_csv(tmp_path):
    rows = [ORIGIN, *(noise(seed, at, defense_group=of) for seed in (0, 1) for at, of in ((0.9, ONE), (0.5, TWO)))]
    rows = [{**each, "agreement": 0.5, "recovery": "none", "epsilon": None} for each in rows]
    frame = records.frame(rows)
    back = records.read_csv(records.write_csv(frame, tmp_path))
    again = records.frame([*back, noise(2, 0.5, defense_group=TWO)])
    assert set(again.defense_settings) == {"", "[11111111]", "[22222222]"}
    assert again.defense_settings.value_counts()["[22222222]"] == 3


def test_records_without_settings_are_drawn():
    found = stolen([*ROWS, {**noise(0, 0.9), "defense_settings": None}])
    assert set(found) == {"mad", "random_noise", "random_noise by scale"}
    bare = [{name: each[name] for name in each if name != "defense_settings"} for each in ROWS]
    assert set(stolen(bare)) == {"mad", "random_noise"}


def of_victims(*seeds):
    """Return an undefended record and one of MAD for each seed of the cell and of the victim (None: the cell's)."""
    found = []
    for seed, of in seeds:
        more = {"victim_seed": of}
        found.append(row("none", 0.0, seed, 0.9, 0.9 if of is None else 0.7, 0.0, **more))
        found.append(row("mad", 0.5, seed, 0.9, 0.6 if of is None else 0.2, 0.4, **more))
    return [{**each, "fingerprint": f"{number:016x}"} for number, each in enumerate(found)]


def test_victims_of_other_seeds_are_not_averaged(tmp_path):
    frame = records.frame(of_victims((1, None), (2, None), (1, 7), (2, 7)))
    assert frame[frame.victim_seed == 7].stolen_accuracy_undefended.tolist() == [0.7] * 4
    assert frame[frame.victim_seed.isna()].stolen_accuracy_undefended.tolist() == [0.9] * 4
    boards = {title: each.set_index("defense").worst for title, each in board.boards(frame, least=1).items()}
    assert {title: each.to_dict() for title, each in boards.items()} == {
        "toy (tiny) stolen with 50 queries from blobs": pytest.approx({"mad": 60, "none": 90}),
        "toy (tiny, seed 7) stolen with 50 queries from blobs": pytest.approx({"mad": 20, "none": 70}),
    }
    text = table.lines(frame, 120)
    assert "victim's seed 7" in text
    assert sum("20.0 ± 0.0" in line for line in text) == sum("60.0 ± 0.0" in line for line in text) == 1
    written = tradeoff.write_all(frame, tmp_path / "figures")
    assert [path.stem.partition("-012345")[1:] for path in written] == [("-012345", ""), ("-012345", "-7")]
    with pytest.raises(MadError, match="differ in victim_seed"):
        mad.plot(frame)


def test_a_victim_that_all_seeds_share_is_one_also_where_its_seed_is_the_cells():
    frame = records.frame(of_victims((0, None), (1, 0), (2, 0)))
    assert frame.victim_seed.tolist() == [0] * 6
    assert groups.figure_groups(frame).nunique() == 1
    assert records.frame(of_victims((0, None), (1, None), (1, 0))).victim_seed.isna().sum() == 4


def test_older_records_join_the_theft_that_they_can_only_belong_to():
    def filled(*thefts):
        frame = pd.DataFrame(thefts, columns=["theft_group", "comparison_group"])
        return settled.thefts(frame.assign(victim="toy", pool="blobs")).theft_group.tolist()

    assert filled((None, "a"), ("", "b")) == ["", ""]
    assert filled((None, "a"), (ONE, "b")) == [ONE, ONE]
    assert filled((None, "a"), (None, "c"), (ONE, "b"), (TWO, "a")) == [TWO, TWO, ONE, TWO]
    assert filled((None, "a"), (ONE, "b"), (TWO, "c")) == ["", ONE, TWO]
    assert filled((None, "a"), (ONE, "a"), (TWO, "a")) == ["", ONE, TWO]


def test_what_no_column_tells_apart_is_said_once(capfd):
    twins = [{**ORIGIN, "fingerprint": name} for name in ("twin-a", "twin-b")]
    for _ in range(2):
        records.frame([*ROWS[:3], *twins[:1], *twins[:1]])
    assert "twin" not in capfd.readouterr().err
    for _ in range(2):
        records.frame([*twins, *twins])
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("records twin-a and twin-b of none, seed 0: no column tells them apart")


def test_a_frame_without_new_columns_is_as_it_was():
    assert set(GROUP) == {*ROWS[0], "stolen_accuracy_undefended"}


def test_an_older_undefended_record_has_the_victim_of_the_newer_ones_of_its_group_and_seed():
    older = [row("none", 0.0, seed, 0.9, 0.8, 0.0) for seed in (1, 2)]
    newer = [noise(seed, 0.5, theft_group=ONE, victim_seed=0) for seed in (1, 2)]
    frame = records.frame([*older, *newer])
    assert frame.stolen_accuracy_undefended.notna().all()
    assert groups.figure_groups(frame).nunique() == 1
    apart = records.frame([*older, *newer, noise(1, 0.4, theft_group=ONE, victim_seed=5)])
    lone = apart[(apart.defense == "none") & (apart.seed == 1)]
    assert lone.victim_seed.isna().all()  # it may be of either
