"""The boards as files and in the terminal, and whose they are."""

import pandas as pd
import pytest
from board_cells import FRAME, ROWS, cells

from mad.errors import MadError
from mad.figures import board, board_views, pareto
from mad.report import contents
from mad.storage import records


def test_files_are_written_and_one_adversary_makes_no_board(tmp_path):
    two = [*ROWS, *cells("mad", 0.9, "naive", (0.1,) * 3, "a"), *cells("mad", 0.9, "argmax", (0.2,) * 3, "b")]
    written = list(board_views.write_all(records.frame(two), tmp_path))
    name = "board-toy-tiny-stolen-with-50-queries-from-blobs"
    names = [
        "board.md",
        "board-members.csv",
        "board-records.csv",
        *(f"{name}{end}" for end in (".csv", ".png", "-curves.png")),
    ]
    assert [path.name for path in written] == names
    text = (tmp_path / "figures" / "board.md").read_text()
    assert "| mad epsilon 0.5 | 52.0 | 50.7 to 60.0 | argmax | 52.0 |  | 40.0 | 52.0 | 79.0 |" in text
    lost = 100 * (ROWS[0]["victim_accuracy"] - 0.88)
    assert lost > 0.5
    assert f"| mad epsilon 0.5 | 88.0 | {lost:.1f} | 0.40 |" in text
    assert "-0.0" not in board_views.markdown("", board.boards(FRAME.assign(victim_accuracy=0.87996)).popitem()[1])
    assert len(pd.read_csv(tmp_path / "figures" / f"{name}.csv")) == 4
    with pytest.raises(MadError, match="experiment=panel"):
        list(board_views.write_all(FRAME[FRAME.recovery == "none"], tmp_path))


def test_the_records_behind_a_board_make_it_again(tmp_path):
    unique = [{**each, "fingerprint": f"{number:016x}", "overrides": "seed=0"} for number, each in enumerate(ROWS)]
    list(board_views.write_all(records.frame(unique), tmp_path))
    again = records.read(tmp_path, records.read_csv(tmp_path / "figures" / "board-records.csv"))
    list(board_views.write_all(again, tmp_path / "again"))
    for name in ("board.md", "board-members.csv", "board-records.csv"):
        assert (tmp_path / "figures" / name).read_text() == (tmp_path / "again" / "figures" / name).read_text()


def test_texts_of_any_characters_are_drawn_and_read_again(tmp_path):
    odd = {"defense_settings": "path=a|b\r\udcff", "overrides": "data=/\udcff"}
    rows = [each | (odd if each["defense"] == "mad" else {}) for each in ROWS]
    rows = [{**each, "fingerprint": f"{number:016x}"} for number, each in enumerate(rows)]
    list(board_views.write_all(records.frame(rows), tmp_path))
    text = (tmp_path / "figures" / "board.md").read_text()
    assert "\n| mad (path=a\\|b \\udcff) epsilon 0.5 | 52.0 |" in text
    again = records.read_csv(tmp_path / "figures" / "board-records.csv")
    assert len(again) == len(ROWS)
    assert {each["defense_settings"] for each in again} == {"", "path=a|b\r\\udcff"}


def test_dollar_signs_are_no_formula(tmp_path):
    odd = {"defense_settings": "x=$\\frac{a$", "recovery_settings": "y=$\\frac{b$"}
    rows = [*ROWS, *cells("mad", 0.9, "naive", (0.1,) * 3, "a"), *cells("mad", 0.9, "argmax", (0.2,) * 3, "b")]
    frame = records.frame([each | (odd if each["defense"] == "mad" else {}) for each in rows])
    assert any(path.name.endswith("-curves.png") for path in board_views.write_all(frame, tmp_path))
    assert pareto.write_all(frame, tmp_path / "figures")


def test_the_worst_case_curve_is_the_upper_edge_of_the_members_that_a_thief_can_be():
    two = [*ROWS, *cells("mad", 0.9, "naive", (0.1,) * 3, "a"), *cells("mad", 0.9, "argmax", (0.2,) * 3, "b")]
    ((title, table),) = board.boards(records.frame(two)).items()
    figure = board_views.curves(title, table)
    (worst,) = [line for line in figure.axes[0].get_lines() if line.get_label() == "worst member"]
    assert worst.get_ydata().tolist() == pytest.approx([82, 52, 20])
    assert board_views.curves(title, board.boards(FRAME)[title]) is None


@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_terminal_shows_what_fits(width):
    text = board_views.printed(FRAME, 2, width)
    assert max(map(len, text)) <= width
    assert any("argmax" in line and "52.0" in line for line in text)
    assert board_views.printed(FRAME, 4, width) == []


def twin(**change):
    """Return the records of the board's theft, and those of another in which the thieves get half as much."""
    other = [{**each, "stolen_accuracy": each["stolen_accuracy"] / 2, **change} for each in ROWS]
    other = [{**each, "comparison_group": each["comparison_group"][0] + "f" * 15} for each in other]
    return records.frame([*ROWS, *other])


def test_victims_or_pools_of_the_same_names_have_boards_of_their_own():
    one, two = "1" * 16, "2" * 16
    title = "toy (tiny) stolen with 50 queries from blobs"
    frame = twin(theft_group=two)
    frame["theft_group"] = frame.theft_group.replace("", one)
    found = board.boards(frame)
    assert {name: at.worst.max() for name, at in found.items()} == {
        f"{title} [11111111]": pytest.approx(82),
        f"{title} [22222222]": pytest.approx(41),
    }
    assert {member for at in found.values() for member in at.worst_member} == {"naive", "argmax"}
    assert list(board.boards(frame[frame.theft_group == two])) == [title]


def test_older_records_are_on_the_board_of_the_only_theft_of_their_names():
    newer = cells("rounding", 0.5, "naive", (0.3,) * 3, "a", theft_group="1" * 16)
    ((title, table),) = board.boards(records.frame([*ROWS, *newer])).items()
    assert title == "toy (tiny) stolen with 50 queries from blobs"
    assert "rounding" in set(table.defense)


def test_no_board_takes_the_place_of_another_with_nearly_its_title(tmp_path):
    frame = twin(victim_validation=0.104)
    frame["victim_validation"] = frame.victim_validation.fillna(0.1)
    assert [title for title in board.boards(frame) if "10% held out" in title or "10.4% held out" in title] == [
        "toy (tiny, 10% held out) stolen with 50 queries from blobs",
        "toy (tiny, 10.4% held out) stolen with 50 queries from blobs",
    ]
    near = frame.assign(victim_validation=frame.victim_validation.replace(0.104, 0.1 + 1e-9))
    assert len(board.boards(near)) == 2
    names = ["Toy" if at == 0.104 else "toy" for at in frame.victim_validation]
    cased = frame.assign(victim_validation=None, victim=names)
    written = [path.name for path in board_views.write_all(cased, tmp_path)]
    assert len(set(written)) == len(written)
    assert len([name for name in written if name.startswith("board-toy-tiny-stolen") and name.endswith(".csv")]) == 2
    names = board_views.file_names([f"{'v' * 300} {end}" for end in "ab"])
    assert len(set(names.values())) == 2
    assert {len(name) for name in names.values()} == {board_views.LONGEST}


def test_each_strength_parameter_has_its_worst_case_curve():
    shares = {("epsilon", 0.5): 0.6, ("epsilon", 0.9): 0.5, ("scale", 1.0): 0.8, ("scale", 50.0): 0.1}
    noise = [
        each
        for (parameter, at), share in shares.items()
        for member, group in (("naive", "a"), ("argmax", "b"))
        for each in cells("random_noise", at, member, (share,) * 3, group, strength_parameter=parameter)
    ]
    ((title, table),) = board.boards(records.frame([*ROWS, *noise])).items()
    drawn = {}
    for axes in board_views.curves(title, table).axes:
        (line,) = [line for line in axes.get_lines() if line.get_label() == "worst member"]
        drawn[axes.get_title()] = line.get_ydata().tolist()
    assert drawn == {
        "random_noise, by epsilon": pytest.approx([82, 60, 50]),
        "random_noise, by scale": pytest.approx([82, 80, 10]),
    }


@pytest.mark.parametrize(("by_l1", "drawn"), [((0.2, 0.9), [82, 30, 50]), ((0.9, 0.2), [82, 50, 30])])
def test_a_worst_case_curve_goes_from_weak_to_strong_by_what_the_answers_are_moved(by_l1, drawn):
    shares = zip((1.0, 3.0), by_l1, (0.3, 0.5), strict=True)
    rows = [
        each
        for at, distance, share in shares
        for member, group in (("naive", "a"), ("argmax", "b"))
        for each in cells("top_j", at, member, (share,) * 3, group, strength_parameter="j", l1_mean=distance)
    ]
    frame = records.frame([*ROWS, *rows])
    ((title, table),) = board.boards(frame).items()
    (line,) = [
        each for each in board_views.curves(title, table).axes[0].get_lines() if each.get_label() == "worst member"
    ]
    assert line.get_ydata().tolist() == pytest.approx(drawn)
    (theft,) = contents.read(frame)
    points = theft.points.query("adversary == @contents.STRONGEST and curve == 'top_j'")
    assert points.stolen.tolist() == pytest.approx(drawn)
