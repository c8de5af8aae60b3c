"""mad-tune: limits are kept, the better half goes on, nothing is measured twice, and the test split is not touched."""

import re
from pathlib import Path

import pytest
from torch import nn
from toys import CPU

import mad
from mad import tuning, tuning_checks
from mad.datasets import checked
from mad.deployment import Deployment
from mad.errors import MadError
from mad.operating_point import OperatingPoint
from mad.storage.files import UnwritableError
from mad.storage.store import Store
from mad.study import open_study, trial_of
from mad.tuning import Candidate, Limits

SMALL = (
    *("trainer.epochs=1", "trainer.min_steps=40", "knockoff.epochs=1", "knockoff.min_steps=0"),
    *("pool.size=200", "architecture=mlp", "victim.validation=0.2", "attack.budget=60"),
)
NAMES = ["a", "b", "c", "d", "e"]
SCORES = {"a": (0.5, 0.1, 0.1), "b": (0.1, 0.2, 0.3), "c": (0.2, 0.1, 0.4), "d": (0.3, 0.5, 0.0), "e": (0.9, 0.0, 0.0)}


@pytest.fixture
def study(tmp_path):
    pytest.importorskip("optuna")
    return lambda name="toy": open_study(tmp_path, name)


@pytest.fixture
def scored(monkeypatch):
    """Scores that are known, by candidate and rung; what was measured is listed."""
    asked = []

    def measure(trial, candidate, *rest):
        asked.append(candidate.name)
        trial.set_user_attr("told", {"strength": None, "loss": 0.0, "l1": 0.5, "latency": None})
        trial.set_user_attr("why", "it is slow" if candidate.name == "slow" else "")

    def worst(words, members, make, budget, seeds, store, device, jobs):
        rung = {100: 0, 400: 1, 1600: 2}[budget]
        asked.append((words[0], budget, tuple(seeds)))
        return SCORES[words[0]][rung]

    monkeypatch.setattr(tuning, "measure", measure)
    monkeypatch.setattr(tuning, "worst", worst)
    return asked


def tuned(study, names=NAMES, say=str):
    every = [Candidate(name) for name in names]
    return list(tuning.tune(every, (), None, Limits(), 1600, (0, 1), None, CPU, study, say))


def test_the_better_half_gets_four_times_the_queries(study, scored):
    found = tuned(study(), ["slow", *NAMES])
    assert [each.name for each in found] == ["slow", "e", "a", "d", "c", "b"]
    assert found[0].why == "it is slow"
    assert found[-1].stolen == [0.1, 0.2, 0.3]
    thefts = [each for each in scored if isinstance(each, tuple)]
    assert thefts == [
        *((name, 100, (0,)) for name in NAMES),
        *((name, 400, (0,)) for name in ("b", "c", "d")),
        *((name, 1600, (0, 1)) for name in ("c", "b")),
    ]


def test_each_step_is_a_line(study, scored):
    said = []
    tuned(study(), ["slow", *NAMES], said.append)
    assert said[0] == "strengths, 1 of 6: slow"
    assert said[6] == "round 1 of 3, 100 queries, 1 of 5: a: stolen 50.0%; about 0 s left"
    assert said[-1].startswith("round 3 of 3, 1,600 queries, 2 of 2: ")
    assert len(said) == 6 + 5 + 3 + 2


def test_what_was_measured_is_not_measured_again(study, scored, monkeypatch):
    whole, plain = tuned(study()), list(scored)
    scored.clear()
    assert tuned(study()) == whole
    assert scored == []
    real, left = tuning.worst, [3]

    def stopped(*given):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(tuning, "worst", stopped)
    with pytest.raises(KeyboardInterrupt):
        tuned(study("stopped"))
    monkeypatch.setattr(tuning, "worst", real)
    assert tuned(study("stopped")) == whole
    assert sorted(map(str, scored)) == sorted(map(str, plain))


def test_no_candidate_within_the_limits_is_one_line(study, scored):
    with pytest.raises(MadError, match=r"no defense is left that costs at most 1\.0% of accuracy and a mean L1 of 2"):
        tuned(study(), ["slow"])


def test_a_theft_that_fails_costs_its_candidate_only(study, scored, monkeypatch):
    known = tuning.worst

    def diverges(words, members, make, budget, *rest):
        if (words[0], budget) in (("a", 100), ("c", 400)):
            raise MadError("the stolen network diverged")
        return known(words, members, make, budget, *rest)

    monkeypatch.setattr(tuning, "worst", diverges)
    for _ in range(2):  # also of what the study holds
        found = {each.name: each for each in tuned(study())}
        assert {name for name, each in found.items() if each.why == "the stolen network diverged"} == {"a", "c"}
        assert [*found][-1] == "b"
    with pytest.raises(MadError, match=r"^no defense could be stolen from: the stolen network diverged$"):
        tuned(study("other"), ["a"])


def full(*given, **named):
    raise UnwritableError(Path("outputs"), OSError("no space left"), "make some")


def test_a_full_disk_is_no_candidates_fault(study, scored, monkeypatch):
    monkeypatch.setattr(tuning, "worst", full)
    for _ in range(2):
        with pytest.raises(UnwritableError):
            tuned(study())


def test_nor_while_strengths_are_measured(study, monkeypatch):
    monkeypatch.setattr(tuning, "Costs", full)
    trial = trial_of(study(), "it")
    with pytest.raises(UnwritableError):
        tuning.measure(trial, Candidate("defense=argmax"), lambda *given: None, Limits(), None, CPU)
    assert "why" not in trial.user_attrs


def broken(words, seed):
    if words == ["defense=argmax"]:
        return mad.load(*SMALL, *words)
    raise MadError(f"{words[0]} lacks a file")


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["a", "b"], "^no defense could be measured: a lacks a file$"),
        (["a", "defense=argmax"], r"raise a limit, or name other defenses$"),
    ],
)
def test_limits_are_not_blamed_where_nothing_could_be_measured(study, names, text, tmp_path):
    every = [Candidate(name) for name in names]
    given = (every, (), broken, Limits(0, 0), 60, (0,), Store(tmp_path), CPU, study())
    for _ in range(2):  # also of what the study holds
        with pytest.raises(MadError, match=text):
            list(tuning.tune(*given))


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """Cells of the digits in miniature, and a store; whoever reads the test split is found."""
    split = checked.split

    def guarded(dataset, part):
        assert part != "test"
        return split(dataset, part)

    monkeypatch.setattr(checked, "split", guarded)
    return lambda words, seed: mad.load(*SMALL, *words, f"seed={seed}"), Store(tmp_path / "outputs")


@pytest.mark.parametrize(
    ("candidate", "limits", "why"),
    [
        (Candidate("defense=rounding", 7, 1), Limits(0.5, 2.0), ""),
        (Candidate("defense=mad", 0, 2), Limits(1.0, 0.25), ""),
        (Candidate("defense=argmax"), Limits(0.0, 2.0, 1e5), ""),
        (Candidate("defense=argmax"), Limits(0.0, 1e-6), "it costs more"),
        (Candidate("defense=rounding", 7, 1), Limits(0.0, 0.0), "no strength is within the limits"),
        (Candidate("defense=argmax"), Limits(1.0, 2.0, 1e-3), "99 of 100 requests take up to"),
        (Candidate("defense=random_noise", 0, 9), Limits(), "epsilon"),
    ],
)
def test_the_strongest_point_within_the_limits(candidate, limits, why, cells, study):
    trial = trial_of(study(), "it")
    tuning.measure(trial, candidate, cells[0], limits, cells[1], CPU)
    told = trial.user_attrs["told"]
    assert why in trial.user_attrs["why"]
    assert bool(why) == bool(trial.user_attrs["why"])
    if not why:
        assert told["loss"] <= limits.loss
        assert told["l1"] <= limits.l1
        assert (told["strength"] is None) == (candidate.weakest is None)
        assert (told["latency"] is None) == (limits.latency is None)
    if candidate.name == "defense=mad":
        assert told["l1"] == pytest.approx(0.25, abs=1e-3)


def test_thefts_are_scored_on_the_validation_split(cells):
    make, store = cells
    members = (["recovery=none"], ["recovery=argmax"])
    shares = [
        [tuning.stolen_accuracy(make(["defense=mad", *each], seed), store, CPU, 1) for seed in (0, 1)]
        for each in members
    ]
    assert all(0 < share <= 1 for each in shares for share in each)
    found = [tuning.worst(["defense=mad"], members, make, 60, (0, 1), store, CPU, jobs) for jobs in (1, 2)]
    assert found == [max(sum(each) / 2 for each in shares)] * 2


def test_a_theft_has_the_accounts_that_its_record_will_have(cells, monkeypatch):
    real, asked = Deployment.session, []

    def session(self, budget=None, watch=None, accounts=1):
        asked.append((budget, accounts))
        return real(self, budget, watch, accounts)

    monkeypatch.setattr(Deployment, "session", session)
    one = cells[0](["defense=prada", "attack.accounts=6"], 0)
    tuning.stolen_accuracy(one, cells[1], CPU, 1)
    assert (60, 6) in asked
    assert all(accounts == 6 for budget, accounts in asked if budget)


def test_requests_are_timed_with_the_victims_pass_whoever_asked_before(cells, monkeypatch):
    layers, real = [], nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, given: layers.append(self) or real(self, given))
    monkeypatch.setattr(tuning, "TIMED", 20)
    counts = []
    for name in ("argmax", "top_k"):
        cell = cells[0]([f"defense={name}"], 0)
        made = tuning.Costs(cell, cells[1], CPU).defended(None)
        layers.clear()
        tuning.latency(made, cell)
        counts.append(len(layers))
    assert counts[0] == counts[1] >= 20


def test_a_pool_with_images_that_thieves_are_scored_on_is_told():
    said = []
    tuning_checks.keep_apart(mad.load("victim.validation=0.1", "pool=digits", "attack.budget=60"), said.append)
    assert [line.partition(":")[0] for line in said] == ["warning"]
    assert "pool digits shares 130 of 1297 compared images with the validation split of victim digits" in said[0]
    tuning_checks.keep_apart(mad.load("victim.validation=0.1", "attack.budget=60"), said.append)
    assert len(said) == 1


def test_a_defense_that_costs_exactly_the_limit_is_no_dearer(cells, study, monkeypatch):
    monkeypatch.setattr(tuning.Costs, "at", lambda self, strength: OperatingPoint(strength, 0.95 - 0.94, 0.5))
    for name, limits, why in (("exact", Limits(0.01, 0.5), ""), ("dear", Limits(0.009, 0.5), "it costs more")):
        trial = trial_of(study(), name)
        tuning.measure(trial, Candidate("defense=argmax"), cells[0], limits, cells[1], CPU)
        assert trial.user_attrs["why"] == why


@pytest.mark.parametrize(("name", "value"), [("loss", -0.1), ("l1", 3.0), ("latency", 0.0)])
def test_a_limit_out_of_range_is_refused(name, value):
    with pytest.raises(MadError, match=f"^{name} "):
        Limits(**{name: value})


def test_a_budget_above_the_pool_and_a_limit_of_less_than_two_images_are_told_first():
    said = []
    with pytest.raises(MadError, match=r"attack\.budget=500 is above the 60 images of pool"):
        tuning_checks.enough(mad.load("victim.validation=0.1", "pool.size=60", "attack.budget=500"), 0.05, said.append)
    cell = mad.load("victim.validation=0.1", "attack.budget=60")
    tuning_checks.enough(cell, 0.05, said.append)
    assert said == []
    tuning_checks.enough(cell, 0.01, said.append)
    assert re.fullmatch(r"warning: one of 1\d\d validation images is 0\.\d% of accuracy, too much to tell .*", said[0])
    tuning_checks.enough(cell, 0.0, said.append)  # no loss at all can be told
    assert len(said) == 1


def test_a_winner_that_breaks_the_limits_on_the_test_split_is_told():
    assert tuning_checks.above([(0.02, 0.5), (0.0, 0.5000001)], 0.01, 0.5) == ""
    told = tuning_checks.above([(0.175, 0.8475)], 0.05, 2.0)
    assert told.startswith("warning: on the test split it costs 17.5% of accuracy and 0.848 of L1, above the limits")
    assert "above the limits" in tuning_checks.above([(0.0, 0.6)], 0.05, 0.5)
