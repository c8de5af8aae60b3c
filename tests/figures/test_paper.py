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
from figure_rows import row
from hydra.core.global_hydra import GlobalHydra
from matplotlib.figure import Figure
from paper_rows import ALL, IDLE, KNOCKOFF, LETTERS, NAMES, WHITE, curve_rows, study, theft
from toys import build, compose

from mad.cli import configs, grid
from mad.cli import figures as figures_command
from mad.cli.compose import PARTS, cell_of
from mad.figures import cells, drawing, ledger, moves, online, paper, plane
from mad.pipeline import Cell
from mad.storage import records


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


@pytest.mark.parametrize("name", ["fig3", "fig4", "fig5", "fig8", "fig9", "budget"])
def test_a_thief_that_learned_nothing_is_crossed_out(name):
    for figure, crossed in ((figure_of_all(name), False), (paper.FIGURES[name]([theft(IDLE)]), True)):
        lines = [line for axes in figure.axes for line in axes.lines if line.get_label() == drawing.LEARNED_NOTHING]
        assert bool(lines) == crossed
        if crossed and name == "fig3":
            assert [70.5, 98.5] in np.concatenate([line.get_xydata() for line in lines]).round(6).tolist()


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
