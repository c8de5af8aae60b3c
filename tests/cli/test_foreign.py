"""Errors in plug-ins: one line that says whose it is and where; also sys.exit(), which ends no other cell."""

import sys
from dataclasses import dataclass

import pytest
import torch
from toys import exit_code, victim

import mad
from mad import plugins
from mad.cli import lint as lint_command
from mad.cli.command import Leave, command
from mad.cli.messages import one_line
from mad.defenses import Defense
from mad.errors import MadError
from mad.foreign import said
from mad.lint import review
from mad.lint.finding import FAIL
from mad.recipes import imported
from mad.serve.engine import Engine
from mad.storage.store import Store

SMALL = (
    *("victim=digits", "architecture=mlp", "trainer.epochs=1", "trainer.min_steps=0", "pool.size=300"),
    *("attack.budget=50", "knockoff.epochs=1", "knockoff.min_steps=0", "device=cpu"),
)
PLUGINS = """
import sys
from dataclasses import dataclass
from mad.defenses import Defense

@dataclass
class Leaves(Defense):
    name = "leaves"
    epsilon: float | None = 0.5
    code: int = 0

    def perturb(self, images, clean):
        return self.helped()

    def helped(self):
        sys.exit(self.code)

@dataclass
class Breaks(Defense):
    name = "breaks"
    epsilon: float | None = 0.5

    def perturb(self, images, clean):
        return {}["x"]

@dataclass
class Stops(Defense):
    name = "stops"
    epsilon: float | None = 0.5

    def perturb(self, images, clean):
        raise KeyboardInterrupt

class Bare:
    name = "bare"

class Settled:
    def __init__(self, epsilon):
        self.name, self.epsilon = "settled", epsilon
"""
LEFT = "defense leaves: perturb ended the program with sys.exit(0): let it raise an error instead (mine.py line 16)"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with plug-ins and a YAML of each; it returns the words that say so."""
    (tmp_path / "mine.py").write_text(PLUGINS)
    (tmp_path / "gone.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "worse.py").write_text("def broken(:\n")
    there = tmp_path / "conf" / "defense"
    there.mkdir(parents=True)
    for name in ("Leaves", "Breaks", "Stops", "Bare", "Settled", "Breakes"):
        (there / f"{name.lower()}.yaml").write_text(f"_target_: mine.{name}\nepsilon: 0.5\n")
    (there / "gone.yaml").write_text("_target_: gone.Gone\n")
    (there / "worse.yaml").write_text("_target_: worse.Worse\n")
    (there / "empty.yaml").write_text("")
    (there / "targetless.yaml").write_text("epsilon: 0.5\n")
    yield ("--config-dir", "conf", *SMALL)
    for name in ("mine", "gone", "worse"):
        sys.modules.pop(name, None)


def test_a_defense_that_ends_the_program_is_a_failed_cell(mad_run, mine):
    code, out, err = mad_run(*mine, "defense=leaves")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == f"mad: {LEFT}"


def test_a_sweep_outlives_who_ends_the_program(mad_run, mine):
    code, out, err = mad_run(*mine, "-m", "defense=leaves,breaks,gone,argmax", "hydra/launcher=basic")
    assert code == 1
    assert "argmax" in out
    assert [line.split("  ", 1) for line in err.splitlines() if line.startswith("failed:")] == [
        ["failed: defense=leaves", LEFT],
        ["failed: defense=breaks", "defense breaks: perturb raised KeyError: 'x' (mine.py line 24)"],
        ["failed: defense=gone", "  gone.py line 2 ended the program with sys.exit(0): let it raise an error instead"],
    ]
    assert err.splitlines()[-1] == "3 of 4 cells failed; the others are kept"


def test_a_plan_outlives_who_ends_the_program(mad_run, mine):
    code, out, _ = mad_run(*mine, "-m", "defense=gone,argmax", "plan=true")
    assert code == 0
    assert "2 to do, 1 that cannot be run" in out


def test_ctrl_c_in_a_plugin_stops_everything(mad_run, mine):
    code, out, err = mad_run(*mine, "-m", "defense=stops,argmax", "hydra/launcher=basic")
    assert (code, out) == (130, "")
    assert "argmax" not in err


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("breaks", "defense breaks: perturb raised KeyError: 'x' (mine.py line 24)"),
        ("bare", "Bare takes no settings: make it a dataclass, with the base class that docs/extending.md names"),
        ("settled", "defense Settled needs the base class Defense: from mad.defenses import Defense"),
        ("breakes", "mine.py has no Breakes (did you mean Breaks?): correct _target_: mine.Breakes in the YAML"),
        ("gone", "gone.py line 2 ended the program with sys.exit(0): let it raise an error instead"),
        ("worse", "worse.Worse cannot be imported (SyntaxError: invalid syntax (worse.py, line 1))"),
        ("empty", "the YAML of defense has no _target_: add the class, such as _target_: my_module.MyClass"),
        ("targetless", "the YAML of defense has no _target_: add the class, such as _target_: my_module.MyClass"),
    ],
)
def test_a_line_says_whose_error_it_is_and_where(mad_run, mine, name, line):
    code, _, err = mad_run(*mine, f"defense={name}")
    assert (code, err.splitlines()[-1]) == (1, f"mad: {line}")


@pytest.mark.parametrize("command_name", ["lint", "tune", "select", "serve"])
def test_no_command_takes_a_plugins_end_for_its_own(monkeypatch, capfd, command_name):
    @command
    def main():
        sys.exit(0)

    assert exit_code(monkeypatch, main, f"mad-{command_name}") == 1
    assert "ended the program with sys.exit(0)" in capfd.readouterr().err


def test_a_commands_own_end_is_its_exit_code(monkeypatch, capfd):
    def leave():
        raise Leave(3)

    assert exit_code(monkeypatch, command(leave), "mad") == 3
    assert exit_code(monkeypatch, lint_command.main, "mad-lint", "--help") == 0
    assert capfd.readouterr().err == ""


def ends(subject):
    sys.exit(0)


def test_a_check_of_a_review_that_ends_the_program_fails():
    found = review.run("shape", ends, None)
    assert found.verdict == FAIL
    assert "ended the program with sys.exit(0): let it raise an error instead" in found.reason


def test_an_error_outside_plugins_has_no_owner():
    error = ValueError("wrong")
    assert said(error) is None
    assert one_line(error).startswith("ValueError: wrong")


def test_the_note_of_a_failed_cell_says_whose_error_it_is(tmp_path, mine, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    import mine as own

    store, path = Store(tmp_path / "outputs"), tmp_path / "runs" / "name" / "record.json"
    with pytest.raises(SystemExit), store.noting_failure(path):
        own.Leaves()(torch.zeros(5, 1, 8, 8), torch.full((5, 4), 0.25))
    (note,) = (tmp_path / "outputs" / "failed").glob("*.json")
    assert LEFT in note.read_text()


@dataclass
class Later(Defense):
    """Ends the program at the second request, not where the engine tries batches."""

    name = "later"
    epsilon: float | None = 0.5
    stateful = True

    def perturb(self, images, clean):
        sys.exit(0)


def test_a_served_defense_that_ends_the_program_ends_no_server():
    engine = Engine(mad.deploy(victim(), Later()))
    try:
        asked = engine.ask(torch.zeros(2, 1, 8, 8), mad.deploy(victim(), Later()).session())
        with pytest.raises(MadError, match=r"defense later: perturb ended the program with sys.exit\(0\)"):
            asked.result(timeout=60)
        assert engine.alive
    finally:
        engine.close()


def leaves(shape, classes):
    sys.exit(0)


def test_an_architecture_that_ends_the_program_is_named():
    with pytest.raises(MadError, match="my net cannot take images"):
        plugins.fits("my net", leaves, (1, 8, 8), 4)


def test_in_python_a_module_that_ends_the_program_is_a_mistake(mine, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MadError, match=r"^gone.py line 2 ended the program"):
        mad.load("defense=gone", config_dir="conf")
    with pytest.raises(MadError, match=r"my net needs gone:Gone, which cannot be imported"):
        imported("gone:Gone", "my net")
