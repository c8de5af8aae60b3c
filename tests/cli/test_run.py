"""The command line: what it prints and leaves, and one line for every mistake."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import pandas as pd
import pytest
from toys import compose

from mad.cli import figures as figures_command
from mad.cli.compose import cell_of
from mad.figures import tradeoff

SMALL = [
    "pool.size=300",
    "trainer.epochs=1",
    "trainer.min_steps=0",
    "knockoff.epochs=2",
    "knockoff.min_steps=0",
    "device=cpu",
]


def shell(folder, *arguments):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HYDRA_", "MAD_"))}
    environment["OMP_NUM_THREADS"] = "1"
    return subprocess.run(
        [sys.executable, "-c", "from mad.cli.run import main; main()", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cell")
    return folder, shell(folder, *SMALL)


def fingerprint(words):
    """Return the name of the cell that a line of overrides makes."""
    return cell_of(compose(*shlex.split(words))).fingerprint


@pytest.mark.slow
def test_one_cell(cell):
    folder, done = cell
    assert done.returncode == 0, done.stderr
    assert len(list(folder.glob("outputs/runs/digits/*/knockoff/*/record.json"))) == 2
    table = pd.read_csv(folder / "outputs/records.csv")
    assert sorted(table.defense.fillna("none")) == ["mad", "none"]
    assert set(table.queries) == {300}
    assert all("device" not in words and "pool.size=300" in words for words in table.overrides)
    assert [fingerprint(words) for words in table.overrides] == table.fingerprint.tolist()
    (png,) = folder.glob("outputs/figures/*.png")
    assert png.with_suffix(".pdf").exists()
    assert all(word in done.stdout for word in ("digits stolen by knockoff", "mad", "0.95", "records.csv", png.name))
    assert "Traceback" not in done.stderr
    assert [path.name for path in folder.iterdir()] == ["outputs"]


@pytest.mark.slow
def test_the_same_cell_again_is_kept(cell):
    folder, first = cell
    again = shell(folder, *SMALL)
    assert again.returncode == 0
    assert again.stderr.count("(kept)") == 2
    assert "(kept)" not in first.stderr
    assert again.stdout == first.stdout


@pytest.mark.slow
def test_a_sweep_outlives_its_failures(cell):
    folder, _ = cell
    done = shell(folder, "-m", "defense.epsilon=0.5,9", *SMALL)
    assert done.returncode == 1
    failed = [line for line in done.stderr.splitlines() if line.startswith("failed:")]
    assert len(failed) == 1
    assert "defense.epsilon=9" in failed[0]
    assert "[0, 2]" in failed[0]
    assert "1 of 2 cells failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr  # Hydra's about its launchers
    assert "records.csv" in done.stdout
    assert 0.5 in set(pd.read_csv(folder / "outputs/records.csv").epsilon)


def check_one_line(result, folder, *words):
    code, _, err = result
    assert code == 1
    assert len(err.splitlines()) == 1, err
    assert "Traceback" not in err
    for word in words:
        assert word in err
    left = [path for name in ("victims", "runs") for path in folder.glob(f"**/outputs/{name}/**/*")]
    assert left == []


MISTAKES = {
    "defense.epsilon=3": ("defense.epsilon", "[0, 2]", "3"),
    "defense.epsilon=-1": ("defense.epsilon", "[0, 2]", "-1"),
    "defense.epsilon=abc": ("defense.epsilon", "number", "abc"),
    "defense.epsilon=true": ("defense.epsilon", "number", "True"),
    "defense.epsilon=nan": ("defense.epsilon", "number", "nan"),
    "defense.epsilon=[1": ("[1",),
    "defense=none defense.epsilon=0.5": ("none", "0.5"),
    "attack.budget=0": ("attack.budget", "at least 1", "0"),
    "attack.budget=-5": ("attack.budget", "at least 1", "-5"),
    "attack.budget=2.5": ("attack.budget", "whole", "2.5"),
    "attack.budget=99999 pool.size=100": ("attack.budget=99999", "100 images", "letters"),
    "pool.size=0": ("pool.size", "at least 1"),
    "victim=digit": ("unknown victim 'digit'", "mnist", "did you mean digits?"),
    "defense=madd": ("unknown defense 'madd'", "none", "random_noise", "did you mean mad?"),
    "attack=knockof": ("unknown attack 'knockof'", "did you mean knockoff?"),
    "pool=nowhere": ("unknown pool 'nowhere'", "letters"),
    "experiment=mnits": ("unknown experiment 'mnits'", "did you mean mnist?"),
    "knockoff/architecture=lenett": ("architecture", "lenett", "did you mean lenet?"),
    "defense/surrogate=traned": ("unknown defense/surrogate 'traned'", "did you mean trained?"),
    "defense/surrogate=trained defense.surrogate.epochs=0": ("epochs", "at least 1"),
    "defense/surrogate=trained defense/surrogate/dataset=emnist_letters": ("emnist_letters", "26", "10", "digits"),
    "defense/surrogate/dataset=mnist": ("defense/surrogate/dataset",),
    "defense/surrogate=trained defense/surrogate/dataset=mnits": ("mnits", "did you mean mnist?"),
    "defense.epsilom=0.5": ("unknown key 'epsilom' in defense", "did you mean epsilon?"),
    "sed=1": ("unknown key 'sed'", "did you mean seed?"),
    "seed=-1": ("seed", "whole number", "-1"),
    "seed=one": ("seed", "whole number", "one"),
    "seed": ("seed",),
    "device=tpu": ("device=tpu", "auto", "cpu"),
    "pool=image_folder": ("pool.path", "folder"),
    "pool=image_folder pool.path=absent": ("pool.path", "absent"),
    "pool=image_folder pool.path=.": ("no image below", "pool.path=."),
    "attack=replay": ("attack.log", "CSV or Parquet"),
    "attack=replay attack.log=absent.csv": ("attack.log=absent.csv", "not there"),
    "knockoff.optimizer=adan": ("optimizer", "adam", "adan"),
    "knockoff.epochs=0": ("epochs", "at least 1"),
    "trainer.batch_size=0": ("batch_size", "at least 1"),
    "outputs=file/outputs pool.size=100": ("file/outputs", "outputs="),
    "outputs=file pool.size=100": ("file", "outputs="),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line(line, mad_run, tmp_path):
    if "file" in line:
        (tmp_path / "file").write_text("")
    check_one_line(mad_run(*line.split()), tmp_path, *MISTAKES[line])


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_missing_data_is_one_line(name, mad_run, tmp_path, monkeypatch):
    def offline(*arguments, **named):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", offline)
    result = mad_run(f"victim={name}", "pool=letters", "pool.size=100", f"data_root={tmp_path / 'data'}")
    check_one_line(result, tmp_path, "data_root=", "MAD_DATA", "could not be downloaded")


def test_a_pool_of_other_channels_is_one_line(mad_run, tmp_path):
    plugins = tmp_path / "plugins" / "pool"
    plugins.mkdir(parents=True)
    (plugins / "blobs.yaml").write_text("_target_: toys.Blobs\nshape: [2, 8, 8]\n")
    result = mad_run("--config-dir", str(plugins.parent), "pool=blobs")
    check_one_line(result, tmp_path, "pool blobs", "(2, 8, 8)", "victim digits", "(1, 28, 28)")


def test_a_wish_for_tracebacks_is_granted(mad_run, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    code, _, err = mad_run("defense.epsilon=3")
    assert code == 1
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("mad: defense.epsilon")


def test_a_sweep_of_mistakes_names_each(mad_run):
    code, _, err = mad_run("-m", "defense.epsilon=3,4", "device=cpu", "hydra/launcher=basic")
    assert code == 1
    assert err.count("failed: ") == 2
    assert "2 of 2 cells failed" in err
    assert "Traceback" not in err


def test_help_lists_the_choices(mad_run):
    code, out, _ = mad_run("--help")
    assert code == 0
    assert all(word in out for word in ("defense", "random_noise", "image_folder", "mad-run -m"))


def test_showing_the_config_runs_nothing(mad_run, tmp_path):
    code, out, _ = mad_run("--cfg", "job", "defense.epsilon=0.25")
    assert code == 0
    assert "epsilon: 0.25" in out
    assert not (tmp_path / "outputs").exists()


def test_figures_without_records_is_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["mad-figures", "--outputs", str(tmp_path)])
    with pytest.raises(SystemExit) as exit_:
        figures_command.main()
    assert exit_.value.code == 1
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1
    assert "no record below" in err


def test_figures_of_damaged_records_only_are_told_once_each(tmp_path, monkeypatch, capfd):
    damaged = tmp_path / "runs" / "toy" / "none" / "knockoff" / "0123456789abcdef" / "record.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    monkeypatch.setattr(sys, "argv", ["mad-figures", "--outputs", str(tmp_path)])
    with pytest.raises(SystemExit):
        figures_command.main()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "it was left out" in lines[0]
    assert "no record below" in lines[1]


@pytest.mark.slow
def test_figures_are_drawn_again_from_records_alone(cell, monkeypatch, capfd):
    outputs = cell[0] / "outputs"
    csv, figures = outputs / "records.csv", list((outputs / "figures").iterdir())
    before = csv.read_bytes()
    for file in (csv, *figures):
        file.unlink()
    monkeypatch.setattr(sys, "argv", ["mad-figures", "--outputs", str(outputs)])
    figures_command.main()
    assert csv.read_bytes() == before
    assert sorted((outputs / "figures").iterdir()) == sorted(figures)
    assert "records.csv" in capfd.readouterr().out


def test_figures_that_cannot_be_written_are_one_line(tmp_path, monkeypatch, capfd):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mad.storage.records.paths", lambda _: [Path("record.json")])
    monkeypatch.setattr("mad.storage.records.read", lambda *_: pd.DataFrame({"comparison_group": ["a"]}))
    monkeypatch.setattr(tradeoff, "write_all", full)
    monkeypatch.setattr(figures_command, "figures_of", lambda groups: {Path("figures", "a"): (groups, "stamp")})
    monkeypatch.setattr(sys, "argv", ["mad-figures", "--outputs", str(tmp_path)])
    with pytest.raises(SystemExit):
        figures_command.main()
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1
    assert "No space left" in err


def test_a_knockoff_that_learned_nothing_is_told_in_its_cells_line(mad_run):
    small = (
        "pool.size=200",
        "trainer.epochs=1",
        "trainer.min_steps=0",
        "knockoff.epochs=1",
        "knockoff.min_steps=0",
        "defense=none",
    )
    code, _, err = mad_run(*small, "knockoff.learning_rate=1e-9")
    assert code == 0
    (line,) = err.splitlines()
    assert "defended" in line
    assert "try a smaller knockoff.learning_rate" in line
