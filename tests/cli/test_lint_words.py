"""mad-lint: its words, its table, its JSON and its exit codes."""

import json
import sys

import pytest
from hydra.core.global_hydra import GlobalHydra
from toys import exit_code

from mad.cli import configs, lint
from mad.lint.review import CHECKS, FIRST

SMALL = ("pool.size=60", "trainer.epochs=1", "trainer.min_steps=0", "device=cpu")
PLUGIN = """
import torch
from dataclasses import dataclass
from mad.defenses import Defense

@dataclass
class Mine(Defense):
    name = "mine"
    epsilon: float | None = 0.5

    def perturb(self, images, clean):
        return clean * float("nan")
"""


@pytest.fixture
def mad_lint(tmp_path, monkeypatch, capfd):
    """Run mad-lint in this process, in an empty folder; return its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("MAD_DATA", raising=False)

    def call(*arguments):
        GlobalHydra.instance().clear()
        return exit_code(monkeypatch, lint.main, "mad-lint", *arguments), *capfd.readouterr()

    yield call
    GlobalHydra.instance().clear()
    configs.FURTHER.clear()
    sys.modules.pop("mine", None)


def test_a_defense_is_reviewed_and_nothing_is_kept(mad_lint, tmp_path, fits):
    code, out, err = mad_lint("defense=top_k", "defense.k=2", *SMALL, "--json", "found.json")
    assert code == 0, err
    assert fits.count("victim digits") == 2  # prepared twice
    assert [file.name for file in tmp_path.iterdir()] == ["found.json"]
    found = json.loads((tmp_path / "found.json").read_text())
    assert {name: found[name] for name in ("defense", "k", "victim", "fail")} == {
        **{"defense": "top_k", "k": 2.0, "victim": "digits", "fail": 0}
    }
    assert [each["check"] for each in found["checks"]] == [*FIRST, *CHECKS]
    assert found["pass"] + found["note"] == len(found["checks"])
    assert sum(line.startswith(("pass  ", "note  ")) for line in out.splitlines()) == len(found["checks"])
    last = f"defense top_k on digits: {found['pass']} pass, {found['note']} note, 0 fail"
    assert out.splitlines()[-1] == last


def test_a_plugin_that_fails_is_exit_code_1_and_its_victim_is_kept(mad_lint, tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    (tmp_path / "conf" / "defense").mkdir(parents=True)
    (tmp_path / "conf" / "defense" / "mine.yaml").write_text("_target_: mine.Mine\nepsilon: 0.5\n")
    words = ("victim=digits", "architecture=mlp", "defense=mine", *SMALL)
    code, out, _ = mad_lint(*words, "--config-dir", "conf", "--json=found.json")
    assert code == 1
    assert "fail  finite" in out
    assert json.loads((tmp_path / "found.json").read_text())["fail"] >= 2  # also on hard posteriors
    assert len(list(tmp_path.glob("outputs/victims/digits/*/weights.safetensors"))) == 1


@pytest.mark.slow
def test_the_usual_review_asks_two_thousand_queries(mad_lint, tmp_path):
    code, _, err = mad_lint("defense=prada", "--json", "found.json")
    assert code == 0, err
    found = {each["check"]: each for each in json.loads((tmp_path / "found.json").read_text())["checks"]}
    held = found["state growth"]["numbers"]
    assert list(held) == ["bytes_after_200", "bytes_after_1000", "bytes_after_2000"]
    assert found["state growth"]["verdict"] == "note"
    assert held["bytes_after_2000"] > held["bytes_after_1000"] > held["bytes_after_200"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mad"], "'mad' is no setting: it must be key=value, like defense=mad"),
        (["defense=madd"], "(did you mean mad?)"),
        (["defense=mad", "--jsn=x"], "unrecognized arguments: --jsn=x; mad-lint --help says what it takes"),
        (["defense=mad", "--json", "/proc/x/y"], "cannot write /proc/x/y (No such file or directory); say --json FILE"),
        (["defense=mad", "--json", "."], "cannot write . (Is a directory); say --json FILE"),
        (["defense=mad", "--config-dir", "nowhere"], "there is no such folder"),
        (["defense=mad", "defense.epsilon=3"], "defense.epsilon must be a number in [0, 2]"),
    ],
)
def test_what_is_wrong_is_one_line(mad_lint, words, said):
    code, out, err = mad_lint(*words)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("mad: ")
    assert said in err


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_it_says_what_it_takes(mad_lint, words):
    code, out, _ = mad_lint(*words)
    assert not code
    assert "--json FILE" in out


def test_the_small_victim_gives_way_to_what_is_said():
    assert lint.quick(["defense=mad"]) == [f"{key}={value}" for key, value in lint.QUICK.items()]
    assert lint.quick(["pool.size=5", "trainer.epochs=1"]) == ["architecture=mlp", "trainer.min_steps=200"]
    assert lint.quick(["architecture=lenet", "trainer=paper", "pool=digits"]) == []
