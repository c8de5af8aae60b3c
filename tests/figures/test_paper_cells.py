"""Which records a series of the paper's figures has."""

import pytest
from paper_rows import ALL, FEWER, KNOCKOFF, TOP, curve_rows, theft

from mad.figures import cells, moves, plane
from mad.storage import records


def test_the_largest_budget_and_the_most_common_scene_are_drawn():
    small = curve_rows("mad", dict.fromkeys((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), 0.2), budget=20)  # more, but smaller
    rare = curve_rows("mad", {0.5: 0.1}, comparison_group="rare")
    slow = curve_rows("mad", {0.1: 0.1}, attack="jbda", knockoff_epochs=30) + curve_rows(
        "mad", {0.5: 0.4}, attack="jbda", comparison_group="jb"
    )
    found = theft([*KNOCKOFF, *small, *rare, *slow])
    assert found.cells().fingerprint.tolist() == theft(KNOCKOFF).cells().fingerprint.tolist()
    assert cells.curve(found.cells(), "mad")["stolen_accuracy"]["mean"].tolist() == pytest.approx(
        [96.5, 80.5, 70.5, 30.5]
    )
    assert set(found.cells("jbda").strength) == {0.5}
    assert "50 queries, 2 seeds" in cells.shown(found, found.cells())


@pytest.mark.parametrize("other", [{"knockoff_min_steps": 800}, {"knockoff_schedule": "constant"}])
def test_thieves_that_were_trained_otherwise_are_not_mixed(other):
    usual = {"knockoff_min_steps": 2400, "knockoff_schedule": "cooldown"}
    rows = [{**each, **usual} for each in ALL]
    mixed = [{**each, **usual, **other, "fingerprint": f"{each['fingerprint']} otherwise"} for each in FEWER + TOP]
    found, own = theft(mixed + rows), theft(rows)
    assert moves.by_budget(found).fingerprint.tolist() == moves.by_budget(own).fingerprint.tolist() != []
    labels = [each.cells(recovery="argmax").fingerprint.tolist() for each in (found, own)]
    assert labels[0] == labels[1] != []


def test_other_settings_of_a_defense_are_other_series():
    exact = curve_rows("mad", {0.5: 0.1}, defense_settings="solver=exact", comparison_group="")
    rows = theft([*KNOCKOFF, *exact]).rows
    assert set(cells.under(rows, "mad").defense_settings) == {""}
    assert set(cells.under(rows[rows.defense_settings != ""], "mad").defense_settings) == {"solver=exact"}


def test_a_curve_starts_undefended_and_has_the_seeds_range():
    found = cells.curve(theft(KNOCKOFF).cells(), "mad")
    assert found.index.tolist() == [0, 0.5, 0.95, 1.1]
    assert found["stolen_accuracy"]["min"].tolist() == pytest.approx([96, 80, 70, 30])
    assert found["stolen_accuracy"]["max"].tolist() == pytest.approx([97, 81, 71, 31])
    assert cells.curve(theft(KNOCKOFF).cells(), "mad_argmax").empty


def test_a_victim_of_another_architecture_beside_it_changes_nothing():
    vgg = {"architecture": "vgg16_bn", "knockoff_architecture": "vgg16_bn", "comparison_group": "v"}
    others = [vgg | {"attack": "adaptive"}, vgg, {"victim_epochs": 30, "comparison_group": "w", "budget": 20}]
    found, alone = theft([*({**each, **other} for other in others for each in KNOCKOFF[:4]), *ALL]), theft(ALL)
    assert moves.moves(found).keys() == moves.moves(alone).keys()
    assert moves.by_budget(found).fingerprint.tolist() == moves.by_budget(alone).fingerprint.tolist()
    for recovery in ("none", "argmax"):
        kept = alone.cells(recovery=recovery).fingerprint.tolist()
        assert found.cells(recovery=recovery).fingerprint.tolist() == kept != []


PANEL = [
    {"knockoff_settings": "mixup=0.2", "comparison_group": "0"},
    {"knockoff_epochs": 18, "comparison_group": "1"},
    {"knockoff_schedule": "constant", "comparison_group": "2"},
]


def test_other_members_of_a_panel_are_not_the_papers_knockoff():
    plain = [{**each, "comparison_group": "z"} for each in KNOCKOFF]  # no hash is after it
    others = [{**each, **change, "stolen_accuracy": 0.1} for change in PANEL for each in plain]
    recovered = [
        {**each, "recovery": recovery, "comparison_group": recovery}
        for recovery in ("argmax", "bayes")
        for each in plain
    ]
    mixed = [{**each, "knockoff_settings": "mixup=0.2", "comparison_group": "3"} for each in [*recovered] * 2]
    lower = [{**each, "budget": 20, "comparison_group": "4"} for each in [*others[: len(KNOCKOFF)], *plain]]
    found = theft([*others, *plain, *recovered, *mixed, *lower])
    assert set(found.plain.comparison_group) == {"z"}
    assert len(found.plain) == len(plain)
    assert set(found.cells(recovery="argmax").knockoff_settings) == {""}
    assert set(moves.by_budget(found).knockoff_settings) == {""}
    assert set(moves.by_budget(found).stolen_accuracy) == set(found.plain.stolen_accuracy) > {0.7}


def test_what_all_knockoffs_of_a_victim_add_is_their_recipe():
    cropped = [{**each, "knockoff_settings": "augment=crop_flip"} for each in [*KNOCKOFF, *TOP]]
    mixed = [{**each, "knockoff_settings": "augment=crop_flip mixup=0.2", "comparison_group": "0"} for each in KNOCKOFF]
    found = theft([*mixed, *cropped])
    assert (
        set(found.plain.knockoff_settings)
        == {"augment=crop_flip"}
        == set(found.cells(recovery="argmax").knockoff_settings)
    )


def test_figure_9_has_an_entry_for_each_settings_of_the_attack():
    settings = ["accounts=10", "queries_per_image=2", "queries_per_image=3", "queries_per_image=3 augment=crop"]
    extra = [each for at in settings for each in curve_rows("mad", {0.95: 0.6}, attack_settings=at)]
    found = moves.moves(theft([*KNOCKOFF, *extra]))
    assert set(found) == {"none", *settings[:3], "nquery+aug"}
    assert {name: set(rows.attack_settings) for name, rows in found.items()} == {
        **{name: {name} for name in settings[:3]},
        "nquery+aug": {settings[3]},
        "none": {""},
    }


def test_victims_of_the_same_names_are_thefts_of_their_own():
    one, two = "1" * 16, "2" * 16
    both = [{**each, "theft_group": of, "comparison_group": of} for of in (one, two) for each in KNOCKOFF]
    found = cells.thefts(records.frame(both[:-1]))
    assert [(each.victim, each.pool, set(each.rows.theft_group)) for each in found] == [
        ("mnist", "blobs [11111111]", {one}),
        ("mnist", "blobs [22222222]", {two}),
    ]
    assert [each.pool for each in cells.foremost(found)] == ["blobs [11111111]"]
    (alone,) = cells.thefts(records.frame([*KNOCKOFF, *both[: len(KNOCKOFF)]]))
    assert alone.pool == "blobs"
    wide = [{**each, "architecture": "mlp"} if each["theft_group"] == two else each for each in both]
    assert [each.pool for each in cells.thefts(records.frame(wide))] == ["blobs [lenet]", "blobs [mlp]"]


def test_records_without_the_name_of_a_network_are_drawn():
    table = records.frame([{**each, "theft_group": of} for of in ("1" * 16, "2" * 16) for each in KNOCKOFF])
    names = ["architecture", "knockoff_architecture"]
    for lacking in (table.drop(columns=names), table.assign(**dict.fromkeys(names, None))):
        found = cells.thefts(lacking)
        assert [each.pool for each in found] == ["blobs [11111111]", "blobs [22222222]"]
        assert set(found[0].plain.defense) == {"none", "mad"}
        assert plane.fig3(found) is not None


def test_victims_of_other_seeds_are_not_mixed_in_the_papers_figures():
    fixed = [{**each, "victim_seed": 7, "stolen_accuracy": 0.1} for each in KNOCKOFF]
    found = theft([*fixed, *KNOCKOFF])
    assert found.plain.stolen_accuracy.min() > 0.1
    assert set(found.same_victim.victim_seed) == {-1}
