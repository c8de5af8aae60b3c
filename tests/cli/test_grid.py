"""An experiment's grid: lines of overrides, each swept over, times the command line's sweep; all in one launch."""

import json
import re
import shlex
from itertools import product
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from test_status import call

from mad.cli import configs, grid
from mad.errors import MadError

LINES = ["defense=none", "defense=mad,mad_argmax defense.epsilon=0.1,0.5", "defense=mad defense.epsilon=0.5,7"]


@pytest.fixture
def experiment(tmp_path):
    """Write an experiment of some lines; return the words that choose it."""

    def write(*lines, body="", name="curve"):
        folder = tmp_path / "my_conf" / "experiment" / "mine"
        folder.mkdir(parents=True, exist_ok=True)
        text = f"# @package _global_\ngrid: {json.dumps(lines)}\nhydra: {{mode: MULTIRUN}}\n{body}"
        (folder / f"{name}.yaml").write_text(text)
        return ["--config-dir", str(folder.parents[1]), f"experiment=mine/{name}"]

    return write


def jobs(lines, *overrides):
    """Return the jobs of a grid on the command line, as sets of words."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(configs.config_dir()), version_base="1.3"):
        config = hydra.compose("config", return_hydra_config=True)
        config.grid = lines
        return [set(job) - {grid.LAID_OUT} for job in grid.jobs(config, list(overrides))]


def test_each_line_is_swept_over_times_the_command_line():
    found = jobs(LINES, "seed=0,1", "victim=digits")
    seeds = [{f"seed={seed}", "victim=digits"} for seed in (0, 1)]
    slow = [{"defense=none"}]
    slow += [{f"defense={d}", f"defense.epsilon={e}"} for d, e in product(("mad", "mad_argmax"), ("0.1", "0.5"))]
    slow += [{"defense=mad", "defense.epsilon=7"}]  # at 0.5 it stands above
    assert found == [line | seed for line in slow for seed in seeds]


def test_without_a_grid_a_sweep_is_hydras():
    assert jobs([], "seed=0,1", "defense=mad,gate") == [
        {f"seed={seed}", f"defense={name}"} for seed, name in product((0, 1), ("mad", "gate"))
    ]
    assert len(jobs([], "seed=1,1")) == 1


def test_undefended_cells_are_launched_first_so_that_no_job_waits_for_its_reference():
    assert jobs(["recovery=none,argmax"], "defense=mad,none") == [
        {f"recovery={recovery}", f"defense={name}"} for name, recovery in product(("none", "mad"), ("none", "argmax"))
    ]


def test_the_command_line_wins_and_equal_cells_are_one():
    assert jobs(LINES[:2], "defense=mad", "defense.epsilon=0.2") == [{"defense=mad", "defense.epsilon=0.2"}]


def test_what_the_command_line_chooses_leaves_the_cells_that_choose_it():
    lines = [*LINES[1:], "defense=reverse_sigmoid defense.beta=0.1,0.2"]
    only = [{"defense=mad", f"defense.epsilon={value}"} for value in ("0.1", "0.5", "7")]
    assert jobs(lines, "defense=mad") == only
    assert jobs(lines, "defense=mad", "seed=0,1") == [each | {f"seed={seed}"} for each in only for seed in (0, 1)]
    two = jobs(lines, "defense=mad,reverse_sigmoid")
    assert two == [*only, *({"defense=reverse_sigmoid", f"defense.beta={value}"} for value in ("0.1", "0.2"))]
    assert jobs(["attack=knockoff,jbda defense=mad", "attack=jbself"], "attack=jbda") == [
        {"attack=jbda", "defense=mad"}
    ]


def test_another_choice_takes_the_place_of_a_lines_if_it_has_its_keys():
    assert jobs(["defense=mad defense.epsilon=0.1,0.5"], "defense=mad_random") == [
        {"defense=mad_random", f"defense.epsilon={value}"} for value in ("0.1", "0.5")
    ]
    assert jobs(["defense=none attack=jbda,jbself"], "defense=mad") == [
        {"defense=mad", f"attack={name}"} for name in ("jbda", "jbself")
    ]
    with pytest.raises(MadError, match=r"defense=top_k fits no line of the grid.*defense\.beta=0\.1"):
        jobs(["defense=reverse_sigmoid defense.beta=0.1"], "defense=top_k")


def test_a_sweep_has_one_outputs_folder():
    with pytest.raises(MadError, match="outputs cannot be swept over"):
        jobs([], "outputs=a,b")
    assert jobs([], "outputs=a", "seed=0,1") == [{"outputs=a", f"seed={seed}"} for seed in (0, 1)]


def test_a_line_may_choose_any_group():
    found = jobs(["attack=knockoff knockoff/architecture=lenet,resnet18", "'defense.name=a b' victim=glob(*)"])
    assert found[0] == {"attack=knockoff", "knockoff/architecture=lenet"}
    assert len(found) == 2 + len(list((configs.config_dir() / "victim").glob("*.yaml")))


@pytest.mark.parametrize(
    "line", ["defense", "seed=[1", "a='b", 3, None, {"defense": "mad"}, "hydra/launcher=ray", "outputs=x"]
)
def test_a_malformed_line_is_an_error_of_one_line(line):
    with pytest.raises(MadError, match="a line of the grid must be overrides") as error:
        jobs(["defense=none", line])
    assert len(str(error.value).splitlines()) == 1


def test_a_grid_that_is_no_list_is_a_line():
    assert jobs("seed=1,2") == [{"seed=1"}, {"seed=2"}]
    with pytest.raises(MadError, match="got 3"):
        jobs(3)


@pytest.fixture
def launches(monkeypatch):
    """The overrides of every launch; nothing is run."""
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    seen = []
    monkeypatch.setattr(BasicLauncher, "launch", lambda _, jobs, **__: seen.append([list(job) for job in jobs]) or [])
    return seen


def test_all_lines_are_one_launch_and_the_status_lists_them(experiment, launches, mad_run, monkeypatch, capfd):
    chosen = experiment(*LINES, body="attack: {budget: 50}")
    words = [*chosen, "pool.size=100", "seed=0,1", "hydra/launcher=basic"]
    code, _, err = mad_run(*words)
    assert code == 1, err
    (launched,) = launches
    assert len(launched) == 12
    assert err.count("failed: ") == 12  # as nothing was run, every note is as it was
    assert all("experiment=mine/curve" in job and "pool.size=100" in job for job in launched)
    call(monkeypatch)
    listed = capfd.readouterr().out
    call(monkeypatch, *words)
    assert capfd.readouterr().out == listed
    lines = listed.splitlines()
    assert sum(line.startswith("missing  undefended reference") for line in lines) == 2
    assert sum(line.startswith("missing  defense=") for line in lines) == 8  # the rest: references, once each
    assert sum("in [0, 2], got 7" in line for line in lines) == 2
    assert "grid" not in listed


def test_a_mistake_in_a_grid_is_one_line(experiment, launches, mad_run):
    code, _, err = mad_run(*experiment("defense=none", "defense"))
    assert (code, len(err.splitlines())) == (1, 1)
    assert "got 'defense'" in err
    assert launches == []


def test_a_grid_is_no_cell(experiment, mad_run, tmp_path):
    *folder, first = experiment("defense=none", "defense=mad")
    code, _, err = mad_run(*folder, first, "hydra.mode=RUN")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "grid of cells" in err
    experiment("defense=none", name="other")
    code, _, err = mad_run("-m", *folder, "experiment=mine/curve,mine/other", "hydra/launcher=basic")
    assert code == 1
    assert err.count("grid of cells") == 4  # when each fails, and in the list at the end
    assert not (tmp_path / "outputs" / "runs").exists()


def test_the_config_of_such_an_experiment_can_be_shown(experiment, mad_run, tmp_path):
    code, out, _ = mad_run(*experiment("defense=none", body="attack: {budget: 50}"), "--cfg", "job")
    assert code == 0
    assert "budget: 50" in out
    assert not (tmp_path / "outputs").exists()


SMALL = (
    *("pool.size=100", "victim.epochs=1", "trainer.min_steps=0", "knockoff.epochs=1", "knockoff.min_steps=0"),
    *("device=cpu", "hydra/launcher=basic"),
)


def test_a_grid_runs(experiment, mad_run, tmp_path):
    chosen = experiment("defense=none", "defense=mad defense.epsilon=0.4,0.9", body="attack: {budget: 50}")
    code, out, err = mad_run(*chosen, *SMALL)
    assert code == 0, err
    assert len(list(Path("outputs/runs").rglob("record.json"))) == 3
    assert "records.csv" in out


def test_what_does_not_go_with_the_victim_is_left_out_of_a_grid(experiment, mad_run, monkeypatch, capfd):
    unfit = "attack=jbtr attack.k=10,11"  # the victim has ten classes
    chosen = experiment("attack=knockoff", unfit, body="attack: {budget: 50}")
    code, out, err = mad_run(*chosen, *SMALL)
    assert code == 0, err
    for k in (10, 11):
        reason = f"attack.k must be below the victim's 10 classes, got {k}"
        assert len([line for line in err.splitlines() if re.fullmatch(rf"left out: .*k={k} .*{reason}", line)]) == 1
        assert err.count(reason) == 1
    assert "failed" not in err
    assert "records.csv" in out
    call(monkeypatch)  # mad-status
    lines = capfd.readouterr().out.splitlines()
    assert [line[:8].strip() for line in lines[:-1]].count("left out") == 2
    assert "0 failed, 0 missing, 2 left out; " in lines[-1]
    assert ": 2 kept, 0 to do, 2 left out\n" in mad_run(*chosen, *SMALL, "plan=true")[1]
    code, _, err = mad_run(*experiment(unfit, name="none"), *SMALL)
    assert (code, err.splitlines()[-1]) == (1, "2 of 2 cells failed; the others are kept")
    code, _, err = mad_run("-m", *shlex.split(unfit), *SMALL)  # asked for by name
    assert (code, err.splitlines()[-1]) == (1, "2 of 2 cells failed; the others are kept")
