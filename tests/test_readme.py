import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from toys import compose

README = (Path(__file__).parent.parent / "README.md").read_text()
COMMANDS = [shlex.split(line, comments=True) for line in re.findall(r"^    (mad-run .*)$", README, re.M)]


def test_every_sweep_and_run_of_the_readme_composes():
    assert len(COMMANDS) >= 10
    for _, *words in COMMANDS:
        overrides = [word for word in words if word != "-m" and not word.startswith("--") and "=" in word]
        if "--config-dir" in words:
            continue
        line = [(key, values.split(",")) for key, _, values in (word.partition("=") for word in overrides)]
        for turn in range(max(len(values) for _, values in line)):
            compose(*(f"{key}={values[turn % len(values)]}" for key, values in line))


def test_every_file_the_readme_names_is_there():
    for link in re.findall(r"\]\((docs/[^)#]+)", README):
        assert (Path(__file__).parent.parent / link).exists(), link
    assert "DEMO_TABLE" not in README
    assert len(README.splitlines()) < 150


def test_every_test_that_the_documents_name_is_there():
    place = Path(__file__).parent
    text = (place.parent / "docs" / "reliability.md").read_text()
    named = re.findall(r"`(?:tests/)?((?:\w+/)?test_\w+\.py)(?:::(test_\w+))?`", text)
    assert len(named) > 50
    for file, test in named:
        found = [each for each in (place / file, place / "faults" / file) if each.is_file()]
        assert found, file
        assert any(f"def {test}" in each.read_text() for each in found), f"{file}::{test}"


@pytest.mark.slow
def test_the_readmes_own_defense_runs(tmp_path):
    python, yaml = (re.search(rf"```{kind}\n(.*?)```", README, re.S).group(1) for kind in ("python", "yaml"))
    (tmp_path / "flatten.py").write_text(python)
    (tmp_path / "my_conf" / "defense").mkdir(parents=True)
    (tmp_path / "my_conf" / "defense" / "flatten.yaml").write_text(yaml)
    command = [
        sys.executable,
        "-c",
        "from mad.cli.run import main; main()",
        "--config-dir",
        "my_conf",
        "defense=flatten",
    ]
    small = [
        "pool.size=200",
        "trainer.epochs=2",
        "trainer.min_steps=0",
        "knockoff.epochs=1",
        "knockoff.min_steps=0",
        "device=cpu",
    ]
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    done = subprocess.run(command + small, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "flatten" in done.stdout
    assert len(list((tmp_path / "outputs" / "runs" / "digits" / "flatten").glob("*/*/record.json"))) == 1
