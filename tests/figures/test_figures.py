"""Records to data frames and figures: exactly the points that were measured."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from figure_rows import GROUP, LONG, ROWS, USUAL, row
from matplotlib.figure import Figure

from mad.errors import MadError
from mad.figures import drawing, groups, tradeoff
from mad.storage import records
from mad.storage.files import seal


def test_curves_are_means_and_deviations_in_percent():
    mad = tradeoff.curves(GROUP)["mad"]
    assert mad.index.tolist() == [0, 0.5, 1]
    assert mad["stolen_accuracy"]["mean"].tolist() == pytest.approx([82, 55, 30])
    assert mad["defended_accuracy"]["mean"].tolist() == pytest.approx([90, 87, 70])
    assert mad["l1_mean"]["mean"].tolist() == pytest.approx([0, 0.45, 0.9])
    assert mad["stolen_accuracy"]["std"][:0.5].tolist() == pytest.approx([np.std([80, 84], ddof=1), 50**0.5])
    assert np.isnan(mad["stolen_accuracy"]["std"][1])


def test_every_defense_and_setting_is_its_own_curve():
    scaled = row("random_noise", 0.5, 0, 0.8, 0.7, 0.4, defense_settings="scale=3")
    found = tradeoff.curves(records.frame([*ROWS, scaled]))
    assert set(found) == {"mad", "random_noise", "random_noise (scale=3)"}
    assert all(points.index[0] == 0 for points in found.values())
    assert len(found["random_noise"]) == 2


def test_the_undefended_alone_and_a_defense_alone_are_curves():
    assert len(tradeoff.curves(GROUP[GROUP.defense == "none"])["none"]) == 1
    assert tradeoff.curves(GROUP[GROUP.defense == "mad"])["mad"].index.tolist() == [0.5, 1]


def test_curves_do_not_touch_the_records():
    before = GROUP.copy()
    tradeoff.draw(GROUP)
    pd.testing.assert_frame_equal(GROUP, before)


@pytest.mark.parametrize(("side", "x"), [(0, "defended_accuracy"), (1, "l1_mean")])
def test_the_figure_shows_exactly_the_curves(side, x):
    figure = tradeoff.draw(GROUP)
    axes = figure.axes[side]
    drawn = {bars.get_label(): bars.lines[0].get_xydata() for bars in axes.containers}
    curves = tradeoff.curves(GROUP)
    assert set(drawn) == set(curves)
    for label, points in curves.items():
        expected = np.column_stack([points[x]["mean"], points["stolen_accuracy"]["mean"]])
        assert np.allclose(drawn[label], expected)
    texts = sorted(text.get_text() for text in axes.texts if text.get_text() != "chance")
    assert texts == ["0.5", "0.5", "1"]
    low, high = axes.get_xlim()
    assert all(low < at < high for points in drawn.values() for at in points[:, 0])


def test_a_thief_that_learned_nothing_is_crossed_out():
    rows = [{**each, "learned": each["strength"] != 1.0} for each in ROWS]
    figure = tradeoff.draw(records.frame(rows))
    for axes, x in zip(figure.axes, (70, 0.9), strict=True):
        (cross,) = [line for line in axes.lines if line.get_label() == drawing.LEARNED_NOTHING]
        assert np.allclose(cross.get_xydata(), [[x, 30]])
    assert drawing.LEARNED_NOTHING in [text.get_text() for text in figure.legends[0].get_texts()]
    older = [{**each, "learned": None} for each in ROWS]  # of records that do not say it beside such that do
    for table in (GROUP, records.frame(older), records.frame([*older[:3], *ROWS[3:]])):
        lines = [line.get_label() for line in tradeoff.draw(table).axes[0].lines]
        assert drawing.LEARNED_NOTHING not in lines


def test_a_strength_of_0_is_not_the_undefended_point():
    zero = row("other", None, 0, 0.5, 0.2, 0.3, strength_parameter="decimals", strength=0.0)
    found = tradeoff.curves(records.frame([*ROWS, zero]))["other"]
    assert found["stolen_accuracy"]["mean"].tolist() == pytest.approx([82, 20])


CHANGES = {
    "victim": "other",
    "architecture": "mlp",
    "victim_epochs": 30,
    "pool": "letters",
    "attack": "jbda",
    "attack_settings": "step=0.031 as_published=True",
    "budget": 20,
    "recovery": "argmax",
    "knockoff_architecture": "mlp",
    "knockoff_optimizer": "adam",
    "knockoff_learning_rate": 0.001,
    "knockoff_epochs": 12,
}


USUAL |= {"knockoff_learning_rate": 0.04, "knockoff_epochs": 6, "victim_epochs": 3}


@pytest.mark.parametrize("column", CHANGES)
def test_figures_of_other_scenes_have_other_names_and_titles(column):
    rows = [row("none", 0.0, 0, 0.9, 0.8, 0.0, **USUAL | change) for change in ({}, {column: CHANGES[column]})]
    names, titles = ([say(records.frame([each])) for each in rows] for say in (readable, tradeoff.title))
    assert len(set(names)) == len(set(titles)) == 2
    assert groups.differing(records.frame([rows[0], {**rows[1], "comparison_group": "other"}])) == [column]


def readable(table):
    """Return a figure's name without the digits that end it."""
    return groups.file_name(table.iloc[0]).rpartition("-")[0]


@pytest.mark.parametrize("letter", ["v", "\u4e2d"])
def test_a_long_name_can_be_written_and_still_says_what_differs(letter, tmp_path):
    long = LONG | {"victim": letter * 64, "pool": letter * 64, "attack": letter * 64}
    names = set()
    for recovery in ("none", "argmax"):
        table = records.frame([row("none", 0.0, 0, 0.9, 0.8, 0.0, **long | {"recovery": recovery})])
        names.add(readable(table))
        assert len(groups.file_name(table.iloc[0]).encode()) <= groups.LONGEST
    assert len(names) == 2
    drawn = tradeoff.write_all(table.assign(victim="v" * 64, pool="p" * 64, attack="a" * 64), tmp_path / "figures")
    assert drawn[0].exists()


def test_the_figure_marks_chance_ideal_and_undefended():
    left, right = tradeoff.draw(GROUP).axes
    marks = [{line.get_label(): line.get_xydata().tolist() for line in axes.lines} for axes in (left, right)]
    ideal = "ideal: no cost, chance for the thief"
    assert np.allclose([marks[0][ideal], marks[1][ideal]], [[[90, 10]], [[0, 10]]])
    assert np.allclose([marks[0]["undefended"], marks[1]["undefended"]], [[[90, 82]], [[0, 82]]])
    assert any(np.allclose(line.get_ydata(), 10) and len(line.get_ydata()) == 2 for line in left.lines)


def test_the_ideal_is_at_the_mean_over_the_seeds_not_over_the_cells():
    rows = [each | {"victim_accuracy": 0.9 - 0.1 * each["seed"]} for each in ROWS]  # seed 0 has more cells
    left = tradeoff.draw(records.frame(rows)).axes[0]
    (star,) = [line for line in left.lines if str(line.get_label()).startswith("ideal")]
    assert star.get_xdata() == pytest.approx([85])


def test_the_title_says_what_was_stolen():
    title = tradeoff.title(GROUP)
    assert all(word in title for word in ("toy", "tiny", "knockoff", "50 queries", "blobs"))
    assert "argmax" in tradeoff.title(GROUP.assign(recovery="argmax"))
    few = GROUP.assign(recovery="few", recovery_settings="count=10", victim_validation=0.1, victim_epochs=3)
    assert "from blobs, recovery few (count=10); victim tiny, 3 epochs, 10% held out" in tradeoff.title(few)


def test_a_defense_without_epsilon_is_drawn(tmp_path):
    group = records.frame([*ROWS, row("free", None, 0, 0.8, 0.5, 0.3)])
    assert isinstance(tradeoff.draw(group), Figure)
    assert tradeoff.curves(group)["free"]["stolen_accuracy"]["mean"].tolist() == pytest.approx([82, 50])


def test_a_curve_starts_where_its_defense_is_weak():
    classes = [
        row("top_k", None, 0, 0.9, 0.7, l1, strength_parameter="k", strength=k)
        for k, l1 in ((1, 0.3), (2, 0.2), (5, 0.1))
    ]
    found = tradeoff.curves(records.frame([*ROWS, *classes]))
    assert found["top_k"].index.tolist() == [0, 5, 2, 1]
    assert found["mad"].index.tolist() == [0, 0.5, 1]


def test_two_dials_of_a_defense_are_two_curves():
    scaled = row("random_noise", None, 0, 0.8, 0.7, 0.4, strength_parameter="scale", strength=0.5)
    found = tradeoff.curves(records.frame([*ROWS, scaled]))
    assert found["random_noise"]["defended_accuracy"]["mean"].tolist() == pytest.approx([90, 85])
    assert found["random_noise by scale"]["defended_accuracy"]["mean"].tolist() == pytest.approx([90, 80])


def test_a_defense_that_moves_no_answer_has_no_l1_to_show():
    private = row("dp_sgd", None, 0, 0.8, 0.5, 0.0, strength_parameter="noise_multiplier", strength=1.0)
    left, right = tradeoff.draw(records.frame([*ROWS, private])).axes
    drawn = [{bars.get_label() for bars in axes.containers} for axes in (left, right)]
    assert drawn[0] - drawn[1] == {"dp_sgd"}


def test_every_scene_is_written_as_png_and_pdf(tmp_path):
    other = [{**each, "comparison_group": "fedcba9876543210", "budget": 20} for each in ROWS]
    written = tradeoff.write_all(records.frame([*ROWS, *other]), tmp_path / "figures")
    assert len(set(written)) == 2
    for file in written:
        assert file.read_bytes().startswith(b"\x89PNG")
        assert file.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert len(list((tmp_path / "figures").iterdir())) == 4


def keep(outputs, content, name, defense="mad"):
    path = outputs / "runs" / "toy" / defense / "knockoff" / name / "record.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)


def test_reading_skips_what_is_no_record(tmp_path, capfd):
    for each in ROWS:
        keep(tmp_path, seal(each), each["fingerprint"], each["defense"])
    foreign = [b"{", b"[1]", b'{"victim": "toy"}', b"", json.dumps(ROWS[0]).encode(), seal({"fingerprint": "foreign5"})]
    foreign.append(seal({**ROWS[0], "fingerprint": "foreign6", "more": [1]}))
    for index, content in enumerate(foreign):
        keep(tmp_path, content, f"foreign{index}")
    table = records.read(tmp_path)
    assert len(table) == len(ROWS)
    assert " ".join(capfd.readouterr().err.split()).count("was left out") == len(foreign)
    pd.testing.assert_frame_equal(table[GROUP.columns], GROUP)


def test_reading_skips_what_is_no_text(tmp_path):
    keep(tmp_path, b"", "foreign")
    next(tmp_path.rglob("record.json")).write_bytes(b"\xff\xfe\x00")
    assert records.read(tmp_path).empty


def test_nothing_to_read_is_an_empty_table(tmp_path):
    assert records.read(tmp_path).empty


def test_the_undefended_theft_stands_beside_its_seed():
    beside = GROUP.set_index("fingerprint").stolen_accuracy_undefended
    assert beside["mad-0.5-0-0"] == 0.80
    assert beside["mad-0.5-1-0"] == 0.84
    assert records.frame(ROWS[:1]).stolen_accuracy_undefended.isna().all()


def test_the_order_of_records_does_not_matter():
    pd.testing.assert_frame_equal(records.frame(ROWS[::-1])[GROUP.columns], GROUP)


def test_csv_comes_back(tmp_path):
    path = records.write_csv(GROUP, tmp_path)
    assert path == tmp_path / "records.csv"
    back = pd.read_csv(path, keep_default_na=False, dtype={"comparison_group": str})
    pd.testing.assert_frame_equal(back, GROUP, check_dtype=False)


def test_names_that_lead_elsewhere_lead_nowhere(tmp_path):
    (tmp_path / "outputs").mkdir()
    for name in ("../../x", "/x", "..", "$x$ {$"):
        (file,) = tradeoff.write_all(records.frame([{**ROWS[0], "pool": name}]), tmp_path / "outputs" / "figures")
        assert file.parent == tmp_path / "outputs" / "figures"
        assert file.exists()
    shutil.rmtree(tmp_path / "outputs" / "figures")
    (tmp_path / "outputs" / "figures").symlink_to(tmp_path)
    with pytest.raises(MadError, match="leads out"):
        tradeoff.write_all(records.frame(ROWS), tmp_path / "outputs" / "figures")
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
