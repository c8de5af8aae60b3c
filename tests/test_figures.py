"""Records to data frames and figures: exactly the points that were measured."""

import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from mad import records
from mad.errors import MadError
from mad.figures import tradeoff
from mad.files import seal

BASE = {
    "victim": "toy",
    "architecture": "tiny",
    "pool": "blobs",
    "attack": "knockoff",
    "recovery": "none",
    "budget": 50,
    "queries": 50,
    "defense_settings": "",
    "scene": "0123456789abcdef",
    "chance": 0.1,
    "victim_accuracy": 0.9,
    "agreement": 0.5,
    **dict.fromkeys(("seconds_victim", "seconds_queries", "seconds_knockoff"), 1.0),
}


def row(defense, epsilon, seed, defended, stolen, l1, **more):
    return {
        **BASE,
        "defense": defense,
        "epsilon": epsilon,
        "dial": "epsilon",
        "strength": epsilon,
        "seed": seed,
        "defended_accuracy": defended,
        "stolen_accuracy": stolen,
        "l1_mean": l1,
        "fingerprint": f"{defense}-{epsilon}-{seed}-{len(more)}",
        **more,
    }


ROWS = [
    row("mad", 1.0, 0, 0.70, 0.30, 0.9),
    row("mad", 0.5, 0, 0.88, 0.60, 0.4),
    row("mad", 0.5, 1, 0.86, 0.50, 0.5),
    row("none", 0.0, 0, 0.90, 0.80, 0.0),
    row("none", 0.0, 1, 0.90, 0.84, 0.0),
    row("random_noise", 0.5, 0, 0.85, 0.75, 0.45),
]
SCENE = records.frame(ROWS)


def test_curves_are_means_and_deviations_in_percent():
    mad = tradeoff.curves(SCENE)["mad"]
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
    assert len(tradeoff.curves(SCENE[SCENE.defense == "none"])["none"]) == 1
    assert tradeoff.curves(SCENE[SCENE.defense == "mad"])["mad"].index.tolist() == [0.5, 1]


def test_curves_do_not_touch_the_records():
    before = SCENE.copy()
    tradeoff.draw(SCENE)
    pd.testing.assert_frame_equal(SCENE, before)


@pytest.mark.parametrize(("side", "x"), [(0, "defended_accuracy"), (1, "l1_mean")])
def test_the_figure_shows_exactly_the_curves(side, x):
    figure = tradeoff.draw(SCENE)
    axes = figure.axes[side]
    drawn = {bars.get_label(): bars.lines[0].get_xydata() for bars in axes.containers}
    curves = tradeoff.curves(SCENE)
    assert set(drawn) == set(curves)
    for label, points in curves.items():
        expected = np.column_stack([points[x]["mean"], points["stolen_accuracy"]["mean"]])
        assert np.allclose(drawn[label], expected)
    texts = sorted(text.get_text() for text in axes.texts if text.get_text() != "chance")
    assert texts == ["0.5", "0.5", "1"]
    low, high = axes.get_xlim()
    assert all(low < at < high for points in drawn.values() for at in points[:, 0])


def test_the_figure_marks_chance_ideal_and_undefended():
    left, right = tradeoff.draw(SCENE).axes
    marks = [{line.get_label(): line.get_xydata().tolist() for line in axes.lines} for axes in (left, right)]
    ideal = "ideal: no cost, chance for the thief"
    assert np.allclose([marks[0][ideal], marks[1][ideal]], [[[90, 10]], [[0, 10]]])
    assert np.allclose([marks[0]["undefended"], marks[1]["undefended"]], [[[90, 82]], [[0, 82]]])
    assert any(np.allclose(line.get_ydata(), 10) and len(line.get_ydata()) == 2 for line in left.lines)


def test_the_title_says_what_was_stolen():
    title = tradeoff.title(SCENE)
    assert all(word in title for word in ("toy", "tiny", "knockoff", "50 queries", "blobs", "2 seeds"))
    assert "argmax" in tradeoff.title(SCENE.assign(recovery="argmax"))


def test_a_defense_without_epsilon_is_drawn(tmp_path):
    scene = records.frame([*ROWS, row("free", None, 0, 0.8, 0.5, 0.3)])
    assert isinstance(tradeoff.draw(scene), Figure)
    assert tradeoff.curves(scene)["free"]["stolen_accuracy"]["mean"].tolist() == pytest.approx([82, 50])


def test_a_curve_starts_where_its_defense_is_weak():
    classes = [row("top_k", None, 0, 0.9, 0.7, l1, dial="k", strength=k) for k, l1 in ((1, 0.3), (2, 0.2), (5, 0.1))]
    found = tradeoff.curves(records.frame([*ROWS, *classes]))
    assert found["top_k"].index.tolist() == [0, 5, 2, 1]
    assert found["mad"].index.tolist() == [0, 0.5, 1]


def test_two_dials_of_a_defense_are_two_curves():
    scaled = row("random_noise", None, 0, 0.8, 0.7, 0.4, dial="scale", strength=0.5)
    found = tradeoff.curves(records.frame([*ROWS, scaled]))
    assert found["random_noise"]["defended_accuracy"]["mean"].tolist() == pytest.approx([90, 85])
    assert found["random_noise by scale"]["defended_accuracy"]["mean"].tolist() == pytest.approx([90, 80])


def test_a_defense_that_moves_no_answer_has_no_l1_to_show():
    private = row("dp_sgd", None, 0, 0.8, 0.5, 0.0, dial="noise_multiplier", strength=1.0)
    left, right = tradeoff.draw(records.frame([*ROWS, private])).axes
    drawn = [{bars.get_label() for bars in axes.containers} for axes in (left, right)]
    assert drawn[0] - drawn[1] == {"dp_sgd"}


def test_every_scene_is_written_as_png_and_pdf(tmp_path):
    other = [{**each, "scene": "fedcba9876543210", "budget": 20} for each in ROWS]
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
    pd.testing.assert_frame_equal(table[SCENE.columns], SCENE)


def test_reading_skips_what_is_no_text(tmp_path):
    keep(tmp_path, b"", "foreign")
    next(tmp_path.rglob("record.json")).write_bytes(b"\xff\xfe\x00")
    assert records.read(tmp_path).empty


def test_nothing_to_read_is_an_empty_table(tmp_path):
    assert records.read(tmp_path).empty


def test_the_undefended_theft_stands_beside_its_seed():
    beside = SCENE.set_index("fingerprint").stolen_accuracy_undefended
    assert beside["mad-0.5-0-0"] == 0.80
    assert beside["mad-0.5-1-0"] == 0.84
    assert records.frame(ROWS[:1]).stolen_accuracy_undefended.isna().all()


def test_the_order_of_records_does_not_matter():
    pd.testing.assert_frame_equal(records.frame(ROWS[::-1])[SCENE.columns], SCENE)


def test_csv_comes_back(tmp_path):
    path = records.write_csv(SCENE, tmp_path)
    assert path == tmp_path / "records.csv"
    back = pd.read_csv(path, keep_default_na=False, dtype={"scene": str})
    pd.testing.assert_frame_equal(back, SCENE, check_dtype=False)


def test_names_that_lead_elsewhere_draw_nothing(tmp_path):
    (tmp_path / "outputs").mkdir()
    with pytest.raises(MadError, match="name of a figure"):
        tradeoff.write_all(records.frame([{**ROWS[0], "pool": "../../x"}]), tmp_path / "outputs" / "figures")
    (tmp_path / "outputs" / "figures").symlink_to(tmp_path)
    with pytest.raises(MadError, match="leads out"):
        tradeoff.write_all(records.frame(ROWS), tmp_path / "outputs" / "figures")
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
