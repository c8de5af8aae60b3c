"""The panel: its members are fixed, mad.panel runs them on a cell's theft, and mad-run prints their board."""

import dataclasses
import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from toys import cell

import mad
from mad import panels
from mad.cell import about
from mad.config import members
from mad.errors import MadError
from mad.figures import members as naming
from mad.panels import ALWAYS
from mad.training import extras

SMALL = (
    *("trainer.epochs=1", "trainer.min_steps=0", "knockoff.epochs=1", "knockoff.min_steps=0"),
    *("pool.size=300", "attack.budget=120", "architecture=mlp"),
)
FEW = [["recovery=none"], ["recovery=argmax"], ["knockoff.length=3"], ["attack=jbtr"], ["recovery=oracle_filter"]]


def test_the_members_of_version_5_do_not_change():
    """Boards of one version compare; another member is another version, to be named in conf and docs/panel.md."""
    found = members()
    assert len(found) == 36
    assert hashlib.sha256(json.dumps(found).encode()).hexdigest()[:12] == "f81367b610e0"


def test_every_member_has_a_name_of_its_own():
    rows = []
    for member in members():
        asked = mad.load("attack.budget=5000", *member)
        own = asked.knockoff.trainer
        trained = {f"knockoff_{name}": getattr(own, name) for name in ("epochs", "min_steps", "schedule")}
        rows.append(about(asked) | trained | {"knockoff_settings": extras(own), "budget": asked.attack.budget})
    found = naming.named(pd.DataFrame(rows))
    assert found.member.nunique() == 36
    assert not found.member.str.contains("[", regex=False).any()


def test_members_that_records_do_not_tell_apart_are_not_averaged():
    row = {"victim": "a", "architecture": "b", "pool": "c", "budget": 5, "attack": "knockoff", "recovery": "none"}
    rows = [row | {"comparison_group": group} for group in ("0123456789", "abcdefghij", "abcdefghij", "other")]
    rows[-1]["budget"] = 6
    assert naming.members(pd.DataFrame(rows)).tolist() == ["naive [01234567]", "naive", "naive", "naive"]


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(panels, "members", lambda: FEW)


def test_a_board_from_python(few, tmp_path):
    asked = mad.load(
        *SMALL, "defense=mad_argmax", "attack=activethief", "attack.rounds=2", "recovery=constant", "seed=5"
    )
    table = mad.panel(asked, tmp_path, seeds=(5, 6)).set_index("defense")
    assert sorted(table.index) == ["mad_argmax", "none"]
    ours = table.loc["mad_argmax"]
    assert (ours.members, ours.seeds, ours.strength) == (4, 2, asked.defense.epsilon)
    assert ours.informed_member == "oracle_filter"
    assert set(ours.by_member) == {"naive", "argmax", "jbtr", "3 epochs", "oracle_filter"}
    records = mad.records(tmp_path)
    assert set(records.budget) == {120}
    assert set(records.seed) == {5, 6}
    mine = records[(records.defense == "mad_argmax") & (records.recovery == "argmax")]
    assert ours.labels == pytest.approx(100 * mine.stolen_accuracy.mean())


def test_a_member_that_does_not_go_with_the_victim_is_left_out(few, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(panels, "members", lambda: [*FEW[:2], ["attack=jbtr", "attack.k=10"]])
    asked = mad.load(*SMALL, "defense=none")
    assert set(mad.panel(asked, tmp_path).iloc[0].by_member) == {"naive", "argmax"}
    assert "the panel lacks attack=jbtr attack.k=10: attack.k must be below" in capfd.readouterr().err
    monkeypatch.setattr(panels, "members", lambda: [["recovery=none"], ["attack=jbtr"]])
    with pytest.raises(MadError, match="unknown victim"):
        mad.panel(dataclasses.replace(asked, overrides="victim=nowhere"), tmp_path)


@pytest.mark.parametrize(
    ("folder", "why"), [("web", "web holds images, but no folders of classes"), ("web/a", "web holds one class only")]
)
def test_nor_is_one_that_does_not_go_with_the_pool(folder, why, monkeypatch, tmp_path, capfd):
    """Which is seen when the member runs: its labels are read then."""
    (tmp_path / folder).mkdir(parents=True)
    for number in range(60):
        image = np.random.default_rng(number).integers(0, 256, (12, 12), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / folder / f"{number}.png")
    monkeypatch.setattr(panels, "members", lambda: [*FEW[:2], ["attack=adaptive"]])
    words = [word for word in SMALL if not word.startswith(("pool", "attack"))]
    asked = mad.load(*words, "pool=own", f"pool.path={tmp_path / 'web'}", "attack.budget=50", "defense=none")
    assert set(mad.panel(asked, tmp_path / "outputs").iloc[0].by_member) == {"naive", "argmax"}
    assert why in next(line for line in capfd.readouterr().err.splitlines() if "lacks attack=adaptive: " in line)


def test_what_was_run_before_is_loaded(few, tmp_path, fits):
    asked = mad.load(*SMALL, "defense=top_k")
    first = mad.panel(asked, tmp_path)
    assert fits
    fits.clear()
    assert mad.panel(asked, tmp_path).equals(first)
    assert fits == []


def test_further_seeds_are_run_for_members_near_the_strongest_only(few, tmp_path):
    asked = mad.load(*SMALL, "defense=mad_argmax", "defense.epsilon=2")
    whole = mad.panel(asked, tmp_path / "whole", seeds=(0, 1)).set_index("defense")
    board = mad.panel(asked, tmp_path / "near", seeds=(0, 1), within=0.0).set_index("defense")
    ran = mad.records(tmp_path / "near")
    for defense in ("none", "mad_argmax"):
        first = ran[(ran.defense == defense) & (ran.seed == 0) & (ran.recovery != "oracle_filter")]
        second = ran[(ran.defense == defense) & (ran.seed == 1)]
        near = first[first.stolen_accuracy >= first.stolen_accuracy.max()]
        usual = first[
            first.attack.eq("knockoff") & first.knockoff_epochs.eq(1) & first.recovery.isin(["none", "argmax"])
        ]
        assert len(first) == len(FEW) - 1
        assert {*second.comparison_group} == {*near.comparison_group, *usual.comparison_group}
    assert board.members.tolist() == whole.members.tolist()
    assert (
        mad.panel(asked, tmp_path / "whole", seeds=(0, 1), within=100.0).set_index("defense").worst.equals(whole.worst)
    )


def test_members_that_know_more_are_near_by_their_own_kind():
    ran = [
        (["recovery=none"], (), 10.0),
        (["recovery=argmax"], (), 12.0),
        (["attack=jbtr"], (), 30.0),
        (["attack=jbtop3"], (), 19.0),
        (["recovery=few"], ("the victim's data",), 90.0),
        (["recovery=bayes"], ("the defense",), 79.0),
        (["recovery=oracle_filter"], ("the victim's clean answers",), 99.0),
    ]
    assert [word for (word,) in panels.near(ran, 10.0)] == [
        "recovery=none",
        "recovery=argmax",
        "attack=jbtr",
        "recovery=few",
    ]


def test_a_member_exactly_as_far_from_the_strongest_is_near():
    stolen = 100 * 0.57  # 56.99999999999999
    ran = [(["attack=jbtr"], (), 67.0), (["attack=jbtop3"], (), stolen), (["attack=jbda"], (), 56.9)]
    assert [word for (word,) in panels.near(ran, 10.0)] == ["attack=jbtr", "attack=jbtop3"]


def test_a_cell_knows_its_folder_of_configs(monkeypatch, tmp_path):
    monkeypatch.setattr(panels, "members", lambda: ALWAYS)
    (tmp_path / "conf" / "defense").mkdir(parents=True)
    (tmp_path / "conf" / "defense" / "its.yaml").write_text("_target_: mad.defenses.top_k.TopK\nk: 2\n")
    monkeypatch.chdir(tmp_path)
    asked = mad.load(*SMALL, "defense=its", config_dir="conf")
    assert asked.fingerprint == mad.load(*SMALL, "defense=top_k", "defense.k=2").fingerprint
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert sorted(mad.panel(asked, "outputs").defense) == ["none", "top_k"]


@pytest.mark.parametrize("seeds", [(), 3, "12"])
def test_a_panel_without_a_seed_is_refused(tmp_path, seeds):
    with pytest.raises(MadError, match=r"^seeds must be the seeds to run, such as \(0, 1, 2\), got"):
        mad.panel(mad.load(), tmp_path, seeds=seeds)


def test_a_cell_of_objects_is_refused(tmp_path):
    with pytest.raises(MadError, match=r"made of overrides.*mad\.load"):
        mad.panel(cell(), tmp_path)
    with pytest.raises(MadError, match="within"):
        mad.panel(mad.load(*SMALL), tmp_path, within=-1)


def test_a_sweep_over_a_panel_prints_its_board(mad_run, tmp_path, monkeypatch):
    monkeypatch.setattr("mad.figures.board.PANEL", 2)
    code, out, _ = mad_run("-m", *SMALL, "recovery=none,argmax", "defense=top_k", "hydra/launcher=basic")
    assert code == 0
    assert "The board: digits (mlp, 1 epochs) stolen with 120 queries from letters" in out
    assert "worst member" in out
    drawn = {path.name for path in (tmp_path / "outputs" / "figures").iterdir()}
    name = "board-digits-mlp-1-epochs-stolen-with-120-queries-from-letters"
    assert {
        "board.md",
        "board-members.csv",
        "board-records.csv",
        *(f"{name}.{end}" for end in ("csv", "png", "pdf")),
    } == drawn
