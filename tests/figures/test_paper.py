"""The paper's experiments, and what is drawn from their records: the right cells, the right numbers."""

import shlex
import subprocess
import sys
from functools import cache
from itertools import product

import hydra
import numpy as np
import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra
from matplotlib.figure import Figure
from test_figures import row
from toys import build, compose

from mad.cli import configs, grid
from mad.cli import figures as figures_command
from mad.cli.compose import PARTS, cell_of
from mad.figures import cells, drawing, ledger, measures, moves, online, paper, plane, table1
from mad.pipeline import Cell
from mad.storage import records

NAMES = sorted(file.stem for file in (configs.config_dir() / "experiment" / "paper").glob("*.yaml"))
LETTERS = ("knockoff", "jbda", "jbself", "jbtop3")


@pytest.fixture(scope="module")
def hydra_():
    """Hydra, started once: what composes a cell in the rest of a module."""
    GlobalHydra.instance().clear()
    configs.register_aliases()
    with hydra.initialize_config_dir(str(configs.config_dir()), version_base="1.3"):
        yield hydra
    GlobalHydra.instance().clear()


def jobs(name, *overrides):
    """Return the overrides of an experiment's cells."""
    config = hydra.compose("config", overrides=[f"experiment=paper/{name}"], return_hydra_config=True)
    assert config.hydra.mode.name == "MULTIRUN"
    return grid.jobs(config, list(overrides))


def test_there_is_an_experiment_a_figure():
    assert set(NAMES) == {"table1", *paper.FIGURES}


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_of_an_experiment_can_be_built(hydra_, name):
    found = jobs(name)
    assert len({tuple(job) for job in found}) == len(found) >= 4
    of_choice = {}  # the first and the last of the cells that make the same choices: to compose takes a while
    for job in found:
        of_choice.setdefault(tuple(word for word in job if "." not in word.partition("=")[0]), []).append(job)
    ends = [job for alike in of_choice.values() for job in (alike if len(alike) == 1 else (alike[0], alike[-1]))]
    made = []
    for job in ends:
        config = hydra.compose("config", overrides=[f"experiment=paper/{name}", *job])
        made.append(Cell(**{part: build(config[part]) for part in PARTS}, seed=config.seed))
    assert len({cell.fingerprint for cell in made}) == len(made)


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_fixes_no_victim_pool_seed_or_place(hydra_, name):
    text = (configs.config_dir() / "experiment" / "paper" / f"{name}.yaml").read_text()
    said = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    assert not any(word in said for word in ("victim", "pool", "seed", "outputs", "data_root"))
    assert text.startswith("# @package _global_\n")
    assert set(jobs(name, "victim=mnist")[0]) > {"victim=mnist"}


def test_the_budget_of_all_but_the_budget_figure_is_the_papers(hydra_):
    for name in NAMES:
        assert (name == "budget") == any("attack.budget" in word for job in jobs(name) for word in job)


def paper_row(defense, strength, seed, stolen, **more):
    """Return a made-up record of knockoff on MNIST: L1 as the strength, half a point lost at 0.95, all at 1.1, ..."""
    more = {"strength_parameter": "epsilon", **more}
    defended = {0.95: 0.985, 1.1: 0.0, 150.0: 0.5}.get(strength, 0.99)
    name = "-".join(map(str, (defense, strength, seed, *more.values())))
    columns = {
        "victim": "mnist",
        "victim_accuracy": 0.99,
        "architecture": "lenet",
        "attack_settings": "",
        "knockoff_architecture": "lenet",
        "knockoff_optimizer": "momentum",
        "knockoff_epochs": 6,
        "strength": strength,
        "fingerprint": name,
        "comparison_group": "-".join(
            map(str, (v for k, v in more.items() if k not in ("strength_parameter", "defense_settings", "test_loss")))
        ),
    }
    return row(defense, strength, seed, defended, stolen, strength, **(columns | more))


def curve_rows(defense, levels, seeds=(0, 1), **more):
    return [paper_row(defense, at, seed, level + 0.01 * seed, **more) for at, level in levels.items() for seed in seeds]


MAD = {0.5: 0.8, 0.95: 0.7, 1.1: 0.3}
KNOCKOFF = [*curve_rows("none", {0.0: 0.96}), *curve_rows("mad", MAD)]


def theft(rows):
    (found,) = cells.thefts(records.frame(rows))
    return found


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


def jacobian(attack, undefended, levels):
    return [*curve_rows("none", {0.0: undefended}, attack=attack), *curve_rows("mad", levels, attack=attack)]


THREE = [each for name in LETTERS[1:] for each in jacobian(name, 0.9, {0.95: 0.4})]
NOISE = curve_rows(
    "random_noise", {50.0: 0.9, 100.0: 0.65, 150.0: 0.6}, strength_parameter="scale", comparison_group=""
)
DP = curve_rows("dp_sgd", {1.0: 0.9}, strength_parameter="noise_multiplier", comparison_group="")
TOP = [
    *curve_rows("none", {0.0: 0.95}, recovery="argmax"),
    *curve_rows("mad", {0.95: 0.88}, recovery="argmax"),
    *curve_rows("mad_argmax", {0.95: 0.94}, recovery="argmax"),
]
ARGMAX = curve_rows("mad_argmax", {0.95: 0.75})
ABLATED = [*curve_rows("mad_identity", {0.95: 0.85}), *curve_rows("mad_random", {0.95: 0.9})]
ADAM = [
    *curve_rows("none", {0.0: 0.97}, knockoff_optimizer="adam"),
    *curve_rows("mad", {0.95: 0.72}, knockoff_optimizer="adam"),
]
FEWER = [
    *curve_rows("none", {0.0: 0.5}, budget=5),
    *curve_rows("none", {0.0: 0.705}, budget=10, seeds=(0,)),
    *curve_rows("none", {0.0: 0.71}, budget=10, seeds=(1,)),
    *curve_rows("mad", {0.95: 0.4}, budget=5),
]


def study(strength, degree, losses, seed=0):
    counts = np.zeros(180, dtype=int)
    counts[[degree - 2, degree + 2]] = 5
    white = {"attack": "online", "knockoff_optimizer": "sgd", "knockoff_epochs": 1, "deviation_mean": degree + 0.5}
    series = {"deviation_histogram": counts.tolist(), "test_loss": losses, "test_loss_queries": [0, 25, 50]}
    if strength == 0.95:  # as records of earlier versions say it
        series = {name: " ".join(map(str, numbers)) for name, numbers in series.items()}
    settings = {"defense_settings": "surrogate=adversary"} if strength else {}
    more = white | settings | series | {"comparison_group": "white"}
    return paper_row("mad" if strength else "none", strength, seed, 0.5, **more)


WHITE = [
    study(0.0, 2, [2.3, 1, 0.5]),
    study(0.95, 20, [2.3, 1.2, 0.8]),
    study(0.99, 30, [2.3, 1.3, 1]),
    study(2.0, 95, [2, 3, 5]),
]
ALL = [*KNOCKOFF, *THREE, *NOISE, *DP, *TOP, *ARGMAX, *ABLATED, *ADAM, *FEWER, *WHITE]


@cache
def figure_of_all(name):
    """Return a figure of all records, which no test changes."""
    return paper.FIGURES[name]([theft(ALL)])


def drawn(figure, panel):
    """Return the points of each labelled curve of a panel."""
    return {bars.get_label(): bars.lines[0].get_xydata() for bars in figure.axes[panel].containers}


@pytest.mark.parametrize("name", paper.FIGURES)
def test_every_figure_is_drawn_if_its_cells_are_there_and_left_out_if_not(name):
    assert isinstance(figure_of_all(name), Figure)
    assert paper.FIGURES[name]([theft(KNOCKOFF[:2])]) is None


def test_figure_3_has_an_attack_a_series_thief_against_users():
    found = drawn(figure_of_all("fig3"), 0)
    assert set(found) == set(LETTERS)
    assert np.allclose(found["jbda"], [[90.5, 99], [40.5, 98.5]])
    assert np.allclose(found["knockoff"], [[96.5, 99], [80.5, 99], [70.5, 98.5], [30.5, 0]])


def test_figure_4_has_l1_above_accuracy_and_no_l1_of_what_moves_no_answer():
    figure = figure_of_all("fig4")
    above, below = drawn(figure, 0), drawn(figure, 1)
    assert np.allclose(above["random_noise"], [[96.5, 0], [90.5, 50], [65.5, 100], [60.5, 150]])
    assert np.allclose(below["mad"], [[96.5, 99], [80.5, 99], [70.5, 98.5], [30.5, 0]])
    assert set(below) - set(above) == {"dp_sgd"}
    assert "random_noise by scale, 50 to 150" in " ".join(figure.get_suptitle().split())


def test_figure_5_sets_the_recovered_beside_the_posteriors():
    found = drawn(figure_of_all("fig5"), 1)
    assert set(found) == {"mad", "mad_argmax", "mad, argmax", "mad_argmax, argmax"}
    assert np.allclose(found["mad, argmax"], [[95.5, 99], [88.5, 98.5]])


def test_figure_6_shows_shares_and_7_losses():
    figure = online.fig6([theft(WHITE)])
    lines = {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}
    seen = lines["epsilon 0.95"]
    assert seen[seen[:, 1] > 0].tolist() == [[17.5, 50], [22.5, 50]]
    assert lines["epsilon 2"][:, 1].sum() == pytest.approx(100)
    assert [line.get_xdata() for line in figure.axes[0].lines if line.get_marker() == "^"] == [20.5, 30.5, 95.5]
    losses = {line.get_label(): line.get_xydata().tolist() for line in online.fig7([theft(WHITE)]).axes[0].lines}
    assert losses["epsilon 2"] == [[0, 2], [25, 3], [50, 5]]
    assert set(losses) == {"undefended", "epsilon 0.95", "epsilon 0.99", "epsilon 2"}


def test_figure_9_has_every_counter_move():
    assert set(moves.moves(theft(ALL))) == {"none", "argmax", "opt: adam"}
    extra = [
        *curve_rows("mad", {0.95: 0.6}, attack_settings="queries_per_image=5"),
        *curve_rows("mad", {0.95: 0.6}, attack_settings="queries_per_image=5 augment=crop"),
        *curve_rows("mad", {0.95: 0.6}, knockoff_architecture="mlp"),
    ]
    found = moves.moves(theft([*ALL, *extra]))
    assert set(found) == {"none", "argmax", "opt: adam", "nquery", "nquery+aug", "arch: mlp"}
    points = drawn(figure_of_all("fig9"), 0)
    assert np.allclose(points["mad, epsilon 0.95"][:, 1], [70.5, 88.5, 72.5])
    assert np.allclose(points["undefended"][:, 1], [96.5, 95.5, 97.5])
    assert np.allclose(points["mad_argmax, epsilon 0.95"][:, 1], [75.5, 94.5])


def test_figure_9_compares_seeds_that_every_move_has():
    lone = curve_rows("mad", {0.95: 0.9}, seeds=(1,), knockoff_architecture="mlp")
    found = moves.moves(theft([*ALL, *lone]))
    assert {name: set(rows.seed) for name, rows in found.items()} == {name: {1} for name in found}
    other = curve_rows("mad", {0.95: 0.9}, seeds=(7,), knockoff_architecture="mlp")
    assert set(moves.moves(theft([*ALL, *other]))["none"].seed) == {0, 1}


def test_the_budget_figure_has_every_budget():
    found = drawn(figure_of_all("budget"), 0)
    assert np.allclose(found["undefended"], [[5, 50.5], [10, 71.25], [50, 96.5]])
    assert np.allclose(found["mad, epsilon 0.95"], [[5, 40.5], [50, 70.5]])


def test_each_victim_and_pool_has_its_panel():
    other = [{**each, "pool": "clothes", "fingerprint": each["fingerprint"] + "c"} for each in KNOCKOFF]
    figure = plane.fig3(cells.thefts(records.frame([*KNOCKOFF, *other])))
    assert [axes.get_title().splitlines()[0] for axes in figure.axes] == [
        "mnist stolen with blobs",
        "mnist stolen with clothes",
    ]


def test_a_victim_is_drawn_with_the_pool_of_the_most_records_and_the_table_has_all(tmp_path, capfd):
    other = [{**each, "pool": "clothes", "fingerprint": each["fingerprint"] + "c"} for each in KNOCKOFF[1:]]
    table = records.frame([*other, *KNOCKOFF])
    (drawn_,) = cells.foremost(cells.thefts(table))
    assert drawn_.pool == "blobs"
    paper.write_all(table, tmp_path)
    assert "mnist stolen with clothes: another pool has more records" in capfd.readouterr().err
    folder = tmp_path / "figures" / "paper"
    assert pd.read_csv(folder / "table1.csv").pool.tolist() == ["blobs", "clothes"]
    assert set(pd.read_csv(folder / "ledger.csv").our_pool.dropna()) == {"blobs"}


def test_a_victim_of_another_architecture_beside_it_changes_nothing():
    vgg = {"architecture": "vgg16_bn", "knockoff_architecture": "vgg16_bn", "comparison_group": "v"}
    others = [vgg | {"attack": "adaptive"}, vgg, {"victim_epochs": 30, "comparison_group": "w", "budget": 20}]
    found, alone = theft([*({**each, **other} for other in others for each in KNOCKOFF[:4]), *ALL]), theft(ALL)
    assert moves.moves(found).keys() == moves.moves(alone).keys()
    assert moves.by_budget(found).fingerprint.tolist() == moves.by_budget(alone).fingerprint.tolist()
    for recovery in ("none", "argmax"):
        kept = alone.cells(recovery=recovery).fingerprint.tolist()
        assert found.cells(recovery=recovery).fingerprint.tolist() == kept != []


def test_the_legend_covers_no_data_and_text_is_readable():
    for figure in map(figure_of_all, paper.FIGURES):
        assert all(axes.get_legend() is None for axes in figure.axes)
        sizes = [text.get_fontsize() for legend in figure.legends for text in legend.get_texts()]
        sizes += [label.get_fontsize() for axes in figure.axes for label in (axes.xaxis.label, axes.title)]
        sizes += [text.get_fontsize() for axes in figure.axes for text in axes.get_xticklabels()]
        assert min(sizes) >= 8


def test_titles_and_legends_fit_whatever_the_names():
    other = [{**each, "victim": "v" * 64, "pool": "p" * 64, "learned": False} for each in ALL]
    moved = curve_rows("mad", {0.95: 0.6}, knockoff_architecture="torchvision efficientnet_v2_large")
    both = cells.thefts(records.frame([*ALL, *moved, *other]))
    for draw in paper.FIGURES.values():
        figure = draw(both)
        figure.draw_without_rendering()
        for artist in (figure.texts[0], *figure.legends, *(axes.title for axes in figure.axes)):
            edges = artist.get_window_extent().transformed(figure.transFigure.inverted())
            assert -0.001 <= edges.x0 <= edges.x1 <= 1.001
            assert 0 <= edges.y0 <= edges.y1 <= 1
        assert min(axes.bbox.height for axes in figure.axes) > 1.5 * figure.dpi


def test_no_two_strengths_look_alike_and_points_lie_above_marks():
    rows = [study(at, 20, [2, 1, 1]) for at in np.linspace(0.1, 2, 20)]
    for draw in (online.fig6, online.fig7):
        lines = [line for line in draw([theft(rows)]).axes[0].lines if line.get_label().startswith("epsilon")]
        assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(lines) == 20
    swept = [curve_rows("mad", dict.fromkeys(np.linspace(0.1, 1, 9), 0.5), budget=budget) for budget in (5, 50)]
    found = moves.budget([theft([*KNOCKOFF, *swept[0], *swept[1]])]).axes[0].containers
    assert len({(bars.lines[0].get_color(), bars.lines[0].get_marker()) for bars in found}) == len(found) >= 9
    for axes in figure_of_all("fig4").axes:
        marks = [line for line in axes.lines if line.get_label().startswith(("ideal", "undefended"))]
        curves = [bars.lines[0].get_zorder() for bars in axes.containers]
        assert max(line.get_zorder() for line in marks) < min(curves)
    for axes in figure_of_all("fig9").axes:
        low, high = axes.get_xlim()
        assert all(low < x < high for bars in axes.containers for x in bars.lines[0].get_xdata())


IDLE = [each if each["strength"] != 0.95 or each["seed"] else {**each, "learned": False} for each in ALL]


@pytest.mark.parametrize("name", ["fig3", "fig4", "fig5", "fig8", "fig9", "budget"])
def test_a_thief_that_learned_nothing_is_crossed_out(name):
    for figure, crossed in ((figure_of_all(name), False), (paper.FIGURES[name]([theft(IDLE)]), True)):
        lines = [line for axes in figure.axes for line in axes.lines if line.get_label() == drawing.LEARNED_NOTHING]
        assert bool(lines) == crossed
        if crossed and name == "fig3":
            assert [70.5, 98.5] in np.concatenate([line.get_xydata() for line in lines]).round(6).tolist()


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


def test_all_is_written_and_records_stay_as_they_are(tmp_path, capfd):
    table = records.frame(ALL)
    before = table.copy()
    written = paper.write_all(table, tmp_path)
    pd.testing.assert_frame_equal(table, before)
    folder = tmp_path / "figures" / "paper"
    assert {file.name for file in written} == {
        "ledger.csv",
        "table1.csv",
        "table1.md",
        *(f"{name}.png" for name in paper.FIGURES),
    }
    assert len(list(folder.iterdir())) == 3 + 2 * len(paper.FIGURES)
    assert "Table 1" in capfd.readouterr().out
    assert len(pd.read_csv(folder / "ledger.csv")) >= len(ledger.published())


def test_records_without_the_newer_columns_are_drawn(tmp_path):
    old = [{k: v for k, v in each.items() if k != "attack_settings"} for each in KNOCKOFF]
    assert len(paper.write_all(records.frame(old), tmp_path)) >= 4


@pytest.mark.slow
def test_an_experiment_runs_in_miniature_and_is_drawn(mad_run, tmp_path, monkeypatch, capfd):
    small = [
        "pool.size=60",
        "victim.epochs=1",
        "trainer.min_steps=0",
        "knockoff.epochs=1",
        "knockoff.min_steps=0",
        "device=cpu",
    ]
    few = ["attack.budget=20,60", "defense.epsilon=0.95", "hydra/launcher=basic"]
    code, _, err = mad_run("experiment=paper/budget", *few, *small)
    assert code == 0, err
    monkeypatch.setattr(sys, "argv", ["mad-figures", "paper", "--outputs", str(tmp_path / "outputs")])
    figures_command.main()
    printed = capfd.readouterr().out
    assert "budget.png" in printed
    assert "ledger.csv" in printed
    (found,) = cells.thefts(records.read(tmp_path / "outputs"))
    assert sorted(zip(moves.by_budget(found).defense, moves.by_budget(found).budget, strict=True)) == [
        *product(["mad", "none"], [20, 60])
    ]
    for words, made in zip(found.rows.overrides, found.rows.fingerprint, strict=True):
        assert cell_of(compose(*shlex.split(words))).fingerprint == made


def test_drawing_imports_no_torch():
    script = "import sys, mad.figures.paper; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


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


def test_victims_of_other_seeds_are_not_mixed_in_the_papers_figures():
    fixed = [{**each, "victim_seed": 7, "stolen_accuracy": 0.1} for each in KNOCKOFF]
    found = theft([*fixed, *KNOCKOFF])
    assert found.plain.stolen_accuracy.min() > 0.1
    assert set(found.same_victim.victim_seed) == {-1}


@pytest.mark.parametrize(("defense", "strength"), [("dp_sgd", 4.0), ("argmax", None)])
def test_records_of_defenses_without_an_epsilon_are_drawn_by_themselves(defense, strength, tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "save", lambda *_: None)
    alone = {
        **row(defense, None, 0, 0.9, 0.8, 0.0, knockoff_architecture="tiny"),
        "strength_parameter": "noise_multiplier",
        "strength": strength,
    }
    table = records.frame([{name: value for name, value in alone.items() if value is not None}])
    paper.write_all(table, tmp_path)  # it raises MadError if one of them fails
    assert (tmp_path / "figures" / "paper" / "ledger.csv").exists()
