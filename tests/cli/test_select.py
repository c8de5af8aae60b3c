"""mad-select: a line for each setting tried, and nothing is kept but the victim."""

import re
import sys

import pytest
from hydra.core.global_hydra import GlobalHydra
from toys import exit_code

from mad.cli import configs, select

QUICK = [
    *("victim=digits", "pool.size=60", "attack.budget=40", "architecture=mlp", "trainer.epochs=1"),
    *("trainer.min_steps=0", "knockoff.epochs=1", "knockoff.min_steps=0", "device=cpu"),
]
LINE = re.compile(r" *(\d+\.\d\d)% of 10 held-out images: (.*?)( ! the knockoff gives one answer to everything: .*)?")


@pytest.fixture
def mad_select(tmp_path, monkeypatch, capfd):
    """Run mad-select in this process, in an empty folder; return its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("MAD_DATA", raising=False)

    def call(*arguments):
        GlobalHydra.instance().clear()
        return exit_code(monkeypatch, select.main, "mad-select", *arguments), *capfd.readouterr()

    yield call
    GlobalHydra.instance().clear()
    configs.FURTHER.clear()


def test_each_setting_is_a_line(mad_select, tmp_path, fits):
    tried = ["knockoff.epochs=2", "knockoff.epochs=1 'knockoff.learning_rate=0.02' knockoff.weight_decay=0.0005"]
    code, out, err = mad_select(*QUICK, "--", *tried)
    assert code == 0, err
    found = [LINE.fullmatch(line) for line in out.splitlines()]
    assert [match[2] for match in found] == tried
    assert all(0 <= float(match[1]) <= 100 for match in found)
    assert fits == ["victim digits", "knockoff", "knockoff"]
    assert not list(tmp_path.rglob("record.json"))
    assert len(list(tmp_path.glob("outputs/victims/digits/*/weights.safetensors"))) == 1


@pytest.mark.parametrize("wrong", ["seed='1", "knockoff.epochs=-1", "seed=1,2"])
def test_a_wrong_setting_is_a_line_before_anything_is_trained(mad_select, fits, wrong):
    code, out, err = mad_select(*QUICK, "--", "knockoff.epochs=2", wrong)
    assert (code, out, fits) == (1, "", [])
    assert err.startswith("mad: ")
    assert err.count("\n") == 1
    assert wrong in err or "knockoff.epochs must be" in err
    assert "," not in wrong or "is a sweep: mad-run -m runs a cell for each of its values; here give one" in err


def test_without_settings_the_common_one_is_tried(mad_select):
    code, out, err = mad_select(*QUICK)
    assert code == 0, err
    assert LINE.fullmatch(out.strip("\n"))[2] == "as it stands"


@pytest.mark.parametrize(
    "words",
    [
        ["defense=mad", *QUICK],
        ["defense.epsilon=0.5", *QUICK],
        [*QUICK, "--", "defense=mad"],
        [*QUICK, "--", "seed=1 defense=mad"],
    ],
    ids=["chosen", "set", "tried", "tried beside another"],
)
def test_a_defense_is_refused(mad_select, fits, words):
    code, out, err = mad_select(*words)
    assert (code, out, fits) == (1, "", [])
    assert err == "mad: mad-select compares thefts without a defense: leave defense out\n"


def test_an_attack_that_asks_about_the_whole_pool_is_refused(mad_select):
    code, _, err = mad_select(*QUICK, "attack.budget=60")
    assert code == 1
    assert err.splitlines()[-1].startswith("mad: the attack asks about the whole pool")


@pytest.mark.parametrize("joined", [True, False])
def test_a_further_folder_of_configs_works(mad_select, tmp_path, joined):
    (tmp_path / "mine" / "recovery").mkdir(parents=True)
    (tmp_path / "mine" / "recovery" / "label.yaml").write_text("_target_: mad.recoveries.argmax.Argmax\n")
    place = ["--config-dir=mine"] if joined else ["--config-dir", "mine"]
    words = [*QUICK, *place] if joined else [*place, *QUICK]  # anywhere, as for mad-run
    code, out, err = mad_select(*words, "--", "recovery=label")
    assert code == 0, err
    assert LINE.fullmatch(out.strip("\n"))[2] == "recovery=label"


@pytest.mark.parametrize("words", [["--config-dir", "nowhere"], ["recovery=lable"], ["attack.bugdet=4"]])
def test_what_is_wrong_is_one_line(mad_select, words):
    code, out, err = mad_select(*words, *QUICK)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("mad: ")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_it_says_what_it_takes(mad_select, words):
    code, out, _ = mad_select(*words)
    assert code == 0
    assert (
        "mad-select [--config-dir FOLDER] victim=mnist pool=fashion_mnist attack=jbself attack.budget=5000 \\\n" in out
    )


def test_a_folder_of_configs_is_asked_for(mad_select):
    code, out, err = mad_select(*QUICK, "--config-dir")
    assert (code, out) == (1, "")
    assert err == "mad: --config-dir needs the folder that holds one folder a group, like defense/\n"
