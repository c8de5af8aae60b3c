"""mad-tune on the command line: words that are refused, the command that serves the winner, and candidates."""

import os
import shlex

import pytest
from test_tuning import SMALL
from toys import exit_code

import mad
from mad import tuning
from mad.cli import tune as command
from mad.defenses.rounding import Rounding
from mad.errors import MadError
from mad.storage.files import LOCKS, holder
from mad.tuning import Candidate, Ranked

WRONG = [
    (["defense=mad"], "candidates come after --"),
    (["--", "mad 0 1"], "is no candidate: say 'defense=NAME"),
    (["--", "defense=mad 0"], "is no candidate"),
    (["--", "defense=mad 'a 0 1"], "is no candidate: its quotes do not match"),
    (["--", "defense=mad 0 1", "defense=mad 1 2"], "defense=mad is a candidate twice: give it one range of strengths"),
    (["attack.budget=null"], "attack.budget must be a whole number of at least 1, got None"),
    (["loss=little"], "loss must be a number, got 'little'"),
    (["seeds=one"], "seeds must be whole numbers"),
    (["++defense.epsilon=0.5"], "candidates come after --"),
    (["seed=3"], "mad-tune takes no seed; it takes seeds=0,1,2"),
    (["attack=mimicry"], "attack mimicry is given images of the victim's kind that mad-tune scores stolen models on"),
    (["plan=true"], "mad-tune takes no plan"),
    (["--", "defense=nope 0 1"], "unknown defense 'nope'"),
    (["--", "defense=mad 0 5"], "defense.epsilon must be a number in [0, 2], got 5"),
    (["--", "defense=argmax", "defense=mad 2 0"], "candidate 'defense=mad defense.epsilon=0' is no defense"),
    (["--", "defense=none"], "candidate 'defense=none' is no defense"),
]


@pytest.mark.parametrize(("words", "text"), WRONG)
def test_a_wrong_word_is_one_line(words, text, tmp_path, monkeypatch, capsys):
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    line = ["mad-tune", *SMALL, *words]
    assert exit_code(monkeypatch, command.main, *line) == 1
    assert text in capsys.readouterr().err


def test_what_is_said_with_a_plus_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = []
    monkeypatch.setattr(command, "tuned", lambda words, *_: given.extend(words))
    plus = ["++victim.validation=0.3", "++attack.budget=300", "victim=digits"]
    assert exit_code(monkeypatch, command.main, "mad-tune", *plus, "++loss=0.1", "--", "defense=argmax") == 0
    assert given == plus


def test_a_later_word_replaces_one_of_the_same_key_but_not_what_is_deleted_before_it():
    words = ["~trainer.augment", "+trainer.augment=crop", "++attack.budget=300", "attack.budget=75"]
    assert command.merged(words) == [*words[:2], words[3]]


def test_from_the_command_line_to_the_command_that_serves(tmp_path, monkeypatch, capsys):
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "MEMBERS", command.MEMBERS[:2])
    (tmp_path / "my conf" / "defense").mkdir(parents=True)
    place = ["--config-dir", str(tmp_path / "my conf")]
    line = ["mad-tune", *place, *SMALL, "loss=0.1", "--", "defense=rounding 7 1", "defense=argmax"]
    assert exit_code(monkeypatch, command.main, *line) == 0
    out, err = capsys.readouterr()
    assert err.count("stolen at most") == 2
    served = next(text for text in out.splitlines() if text.startswith("serve it: mad-serve "))
    assert "victim.validation=0.2" in served
    assert shlex.split(served)[3:5] == place
    assert "attack" not in served
    assert {each.recovery for each in mad.records().itertuples()} == {"none", "argmax"}
    told = next(text for text in out.splitlines() if text.startswith("the strongest of these adversaries steals"))
    kept = mad.records()
    worst = {name: some.stolen_accuracy.max() for name, some in kept.groupby(kept.defense == "none")}
    assert f"steals {worst[False]:.1%}, undefended {worst[True]:.1%}" in told
    own = kept[kept.defense != "none"]
    broken = (own.victim_accuracy - own.defended_accuracy).mean() > 0.1
    assert ("warning: on the test split it costs" in err) == broken
    assert told.endswith("no less than no defense does") == (worst[False] >= worst[True])


def test_of_two_processes_one_works_on_a_study(tmp_path, monkeypatch, capsys):
    """The other one waits: a study's trial that is finished takes nothing more."""
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)

    def busy(*given):
        (lock,) = (tmp_path / "outputs" / LOCKS).iterdir()
        assert holder(lock)["pid"] == os.getpid()
        raise MadError("so far")

    monkeypatch.setattr(tuning, "tune", busy)
    monkeypatch.setattr("mad.storage.files.holder", lambda file: {"host": "there", "pid": 7, "since": 0.0})
    assert exit_code(monkeypatch, command.main, "mad-tune", *SMALL, "--", "defense=argmax") == 1
    told = capsys.readouterr().err
    assert "process 7 on there tunes by the same words: waiting for what it finds\n" in told
    assert told.endswith("mad: so far\n")


def test_a_defense_whose_source_or_settings_change_is_measured_anew(monkeypatch):
    def make(words, seed):
        return mad.load(*SMALL, *words, f"seed={seed}")

    before = command.fingerprint(make, ["defense=rounding"])
    assert before == make(["defense=rounding"], 0).fingerprint
    monkeypatch.setattr(Rounding, "version", 7)
    assert command.fingerprint(make, ["defense=rounding"]) != before
    assert "victim.validation=0.1" in command.fingerprint(make, ["defense=gate", "victim.validation=0"])


@pytest.mark.parametrize("strength", [0.7451, 123.4567, 3.0, 1e-4])
def test_the_winner_has_the_strength_that_was_measured(strength):
    words = tuning.strength_words(lambda *given: mad.load(*SMALL, "defense=mad"), "", {"strength": strength})
    assert [float(word.removeprefix("defense.epsilon=")) for word in words] == [strength]


def test_candidates_are_read(monkeypatch):
    assert command.candidate("defense=mad defense.solver=exact 0 2") == Candidate(
        "defense=mad defense.solver=exact", 0.0, 2.0
    )
    assert command.candidate("defense=argmax") == Candidate("defense=argmax")
    assert all(command.candidate(each) for each in command.CANDIDATES)
    assert Ranked("a", None, []).why is None
