"""plan=true says what would be run and how long it takes, and leaves everything as it is."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toys import CPU, Blobs, cell, trainer, victim

from mad import estimate, measure
from mad.attacks.augmented import Augmented
from mad.attacks.dfme import Dfme
from mad.attacks.jbda import Jbda
from mad.attacks.knockoff_nets import KnockoffNets
from mad.attacks.maze import Maze
from mad.attacks.mimicry import Mimicry
from mad.attacks.online import Online
from mad.cli import preview
from mad.defenses import Defense, Undefended
from mad.defenses.mad import Mad
from mad.defenses.nasty_teacher import NastyTeacher
from mad.defenses.surrogates import AdversarySurrogate, TrainedSurrogate
from mad.estimate import Estimator, epochs
from mad.knockoff import Knockoff
from mad.pipeline import run
from mad.recoveries.self_training import SelfTraining
from mad.storage import record_file
from mad.storage.record_file import known_records
from mad.storage.store import Store

QUICK = [
    *("pool.size=60", "architecture=mlp", "trainer.epochs=1", "trainer.min_steps=0", "knockoff.epochs=1"),
    *("knockoff.min_steps=0", "device=cpu"),
]
RATES = {"training": 0.001, "asking": 0.01}


@pytest.fixture
def fixed(monkeypatch):
    """Rates that are known: a millisecond a training image, ten a query."""
    monkeypatch.setattr(measure, "training", lambda *given: RATES["training"])
    monkeypatch.setattr(measure, "asking", lambda *given: RATES["asking"])


@pytest.fixture
def slow(monkeypatch):
    """What no plan may do."""
    for name in ("mad.pipeline.run", "mad.storage.store.Store.victim", "mad.deployment.deploy"):
        monkeypatch.setattr(name, lambda *given, **named: pytest.fail("a plan ran something"))


def everything(folder):
    return {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in folder.rglob("*")}


def estimator(outputs, threads=1):
    return Estimator(outputs, CPU, threads, known_records(outputs))


def test_a_plan_runs_and_writes_nothing(mad_run, tmp_path, slow):
    code, out, err = mad_run("plan=true", "defense.epsilon=0.5", *QUICK)
    assert (code, err) == (0, "")
    assert out.count("to do") == 3  # two rows and the sum
    assert "2 cells: 0 kept, 2 to do" in out
    assert "measured just now on this machine" in out
    assert "one after another;" in out
    assert all(word in out for word in ("seeds: one seed is an anecdote", "pool: letters", "budget: 60 queries"))
    assert everything(tmp_path) == {}


def test_what_is_kept_costs_nothing(mad_run, tmp_path):
    assert mad_run("defense.epsilon=0.5", *QUICK)[0] == 0
    before = everything(tmp_path)
    _, out, _ = mad_run("plan=true", "defense.epsilon=0.5", *QUICK)
    assert "2 cells: 2 kept, 0 to do" in out
    assert "about" not in out
    _, out, _ = mad_run("-m", "plan=true", "defense.epsilon=0.5,0.8", "seed=0,1", *QUICK)
    assert "6 cells: 2 kept, 4 to do" in out
    assert "from kept records" in out
    assert "at once; " in out
    redone = {"force=true": "1 kept, 1 to do", "force=all": "0 kept, 2 to do", "export=x": "1 kept, 1 to do"}
    for words, left in redone.items():
        assert left in mad_run("plan=true", "defense.epsilon=0.5", words, *QUICK)[1]
    assert everything(tmp_path) == before


def test_an_experiment_can_be_planned(mad_run, tmp_path, fixed, slow):
    code, out, _ = mad_run("plan=true", "experiment=paper/fig8", *QUICK)
    assert code == 0
    assert "undefended reference" in out
    assert "mad_identity" in out
    assert everything(tmp_path) == {}


def test_a_cell_that_cannot_be_run_is_named_and_costs_no_other(mad_run, tmp_path, fixed):
    code, out, _ = mad_run("-m", "plan=true", "defense.epsilon=0.5,3", *QUICK)
    assert code == 0
    assert "3 cells: 0 kept, 2 to do, 1 that cannot be run" in out
    assert "defense.epsilon must be" in " ".join(out.split())
    assert everything(tmp_path) == {}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["plan=maybe"], "plan must be true or false, got 'maybe'"),
        (["-m", "plan=true,false"], "plan=true,false: plan cannot be swept over"),
        (["-m", "plan=true", "hydra/sweeper=basic", "seed=0,1"], "chooses its cells while it runs"),
    ],
)
def test_a_plan_that_cannot_be_made_is_one_line(words, text, mad_run, tmp_path):
    code, _, err = mad_run(*words, *QUICK)
    assert (code, err.count("\n")) == (1, 1)
    assert text in err
    assert everything(tmp_path) == {}


def test_twice_the_budget_is_twice_the_time(tmp_path, fixed):
    whole = cell(pool=Blobs(size=5000), knockoff=Knockoff(trainer(min_steps=0)), defense=Undefended())
    base = estimator(tmp_path).of("it", replace(whole, attack=KnockoffNets(1000))).seconds
    first = estimator(tmp_path)
    first.of("the victim", whole)
    small, large = (first.of("it", replace(whole, attack=KnockoffNets(each))).seconds for each in (1000, 2000))
    test = 200 * (0.01 + 0.001)  # the test split, whose price no budget changes
    assert (large - test) / (small - test) == pytest.approx(2)
    assert small - test == pytest.approx(1000 * (0.01 + 8 * 0.001))  # asking, and eight epochs
    assert base - small == pytest.approx(200 * 8 * 0.001)  # the victim, which is trained once


def test_min_steps_are_a_floor():
    assert epochs(trainer(epochs=2, batch_size=20, min_steps=100), 200) == 10
    assert epochs(trainer(epochs=12, batch_size=20, min_steps=100), 200) == 12
    assert epochs(trainer(epochs=2, batch_size=20), 7) == 2


def test_what_an_earlier_cell_makes_is_counted_once(tmp_path, fixed):
    first, whole = estimator(tmp_path), cell(defense=Mad(0.5, TrainedSurrogate(trainer())))
    one = first.of("a", whole)
    two = first.of("b", replace(whole, defense=Mad(0.8, TrainedSurrogate(trainer()))))
    assert one.seconds - two.seconds == pytest.approx(2 * 200 * 8 * 0.001)  # victim and surrogate
    assert one.bytes - two.bytes == 2 * 4 * (64 * 4 + 4)
    assert two.bytes == estimate.RECORD + 50 * (8 + 4 * 4)
    again = first.of("c", replace(whole, knockoff=Knockoff(trainer(epochs=9))))
    assert two.seconds - again.seconds == pytest.approx(50 * (0.01 - 0.001))  # one epoch more, the answers are there


def test_what_defenses_and_recoveries_train_besides_is_counted_once(tmp_path, fixed):
    first, plain = estimator(tmp_path), cell(defense=NastyTeacher(epochs=4))
    without = estimator(tmp_path).of("it", cell(defense=Undefended())).seconds
    assert first.of("a", plain).seconds - without == pytest.approx(1.4 * 200 * 4 * 0.001)  # the victim takes 8
    again = first.of("b", replace(plain, knockoff=Knockoff(trainer(epochs=9))))
    assert again.seconds == pytest.approx(50 * 9 * 0.001 + 200 * (0.01 + 0.001))
    relabeled = first.of("c", replace(plain, recovery=SelfTraining()))
    assert relabeled.seconds == pytest.approx(2 * 50 * 8 * 0.001 + 200 * (0.01 + 0.001))


def test_kept_networks_and_transfer_sets_cost_nothing(tmp_path, fixed, monkeypatch):
    run(cell(), Store(tmp_path), CPU)
    assert estimator(tmp_path).of("it", cell()) == estimate.Estimate("it", kept=True, budget=50)
    for module in (estimate, record_file):
        monkeypatch.setattr(module, "read_record", lambda file: None)
    found = estimator(tmp_path).of("it", cell())
    assert found.seconds == pytest.approx(50 * 8 * 0.001 + 200 * (0.01 + 0.001))
    assert found.bytes == estimate.RECORD
    redone = estimator(tmp_path).of("it", cell(), again=True)
    assert redone.seconds - found.seconds == pytest.approx(50 * 0.01)
    anew = estimator(tmp_path).of("it", cell(), everything=True)
    assert anew.seconds - redone.seconds == pytest.approx(200 * 8 * 0.001)


def test_rates_are_those_of_records_of_the_same_kind(tmp_path, fixed):
    record, _ = run(cell(), Store(tmp_path), CPU)
    other = cell(victim=victim(seed=1), seed=1)
    found = estimator(tmp_path, threads=torch.get_num_threads())
    found.of("it", other)
    assert (found.from_records, found.measured) == (3, 0)
    rates = {key.split()[0]: rate for key, rate in found.rates.items()}
    assert rates["training"] == pytest.approx(record["seconds_victim"] / (200 * 8))
    assert rates["learning"] == pytest.approx(record["seconds_knockoff"] / (50 * 8))
    assert rates["asking"] == pytest.approx(record["seconds_queries"] / 50)
    elsewhere = estimator(tmp_path, threads=64)
    elsewhere.of("it", other)
    assert elsewhere.measured == 3


@pytest.mark.parametrize(
    ("attack", "trained"),
    [
        (Augmented(60, seeds=20, source="victim", keep="seeds"), 20),
        (Augmented(60, seeds=20, source="victim", keep="near"), 60),
        (Mimicry(15, seeds=20), 15),
        (Jbda(60, seeds=10), 60),
        (KnockoffNets(60, queries_per_image=3), 20),
    ],
)
def test_a_knockoffs_rate_is_by_the_answers_that_it_learns(attack, trained, tmp_path, fixed):
    whole = cell(attack=attack)
    assert attack.trained_on(attack.budget) == trained
    record = run(whole, Store(tmp_path), CPU)[0]
    recipe = whole.knockoff.trainer
    found = estimator(tmp_path, record["threads"])._learning(replace(whole, seed=1))
    assert found == pytest.approx(record["seconds_knockoff"] / (trained * epochs(recipe, trained)))


def test_attacks_that_train_between_their_queries_cost_more(tmp_path, fixed):
    plain, online, jbda = (
        estimator(tmp_path).of("it", cell(attack=attack, defense=Undefended())).seconds
        for attack in (KnockoffNets(50), Online(50), Jbda(50, seeds=10, epochs=20))
    )
    assert online == pytest.approx(plain - 50 * 8 * 0.001 + 50 * 0.001)
    assert jbda == pytest.approx(plain + 2 * 20 * 50 * 0.001)


@pytest.mark.parametrize("defense", [Undefended(), Mad(0.5), Mad(0.5, TrainedSurrogate(trainer())), "white box"])
def test_rates_are_measured_in_a_moment_without_training(defense, fits):
    whole = cell(attack=Online(50), defense=Mad(0.5, AdversarySurrogate())) if defense == "white box" else None
    whole = whole or cell(defense=defense)
    assert measure.asking(whole, CPU) > 0
    assert measure.training(whole.victim, None, whole.victim.trainer, CPU) > 0
    assert fits == []


@pytest.mark.parametrize(
    ("launcher", "expected"),
    [
        ({"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}, 1),
        ({"_target_": "x.joblib_launcher.JoblibLauncher", "n_jobs": 3}, 3),
        ({"_target_": "x.submitit_launcher.SlurmLauncher", "array_parallelism": 4}, 4),
        ({"_target_": "x.submitit_launcher.SlurmLauncher", "array_parallelism": 64}, 7),
    ],
)
def test_as_many_at_once_as_the_launcher_says(launcher, expected):
    class Launcher(SimpleNamespace):
        def get(self, name):
            return getattr(self, name, None)

        def __contains__(self, name):
            return hasattr(self, name)

    assert preview.at_once(Launcher(**launcher), 7) == expected


def test_the_longest_cell_bounds_the_time_at_once(tmp_path):
    rows = [estimate.Estimate("a", seconds=600), estimate.Estimate("b", seconds=60)]
    _, times, _ = preview.summary(rows, estimator(tmp_path), 4)
    assert "about 11 min one after another, 10 min with 4 at once" in times


def test_an_attack_that_trains_the_stolen_model_itself_trains_no_knockoff(tmp_path, fixed):
    for attack in (Dfme(600, batch_size=4), Maze(600, batch_size=4), Online(60)):
        whole = cell(attack=attack, defense=Undefended())
        seconds = [
            estimator(tmp_path).of("it", replace(whole, knockoff=Knockoff(trainer(epochs=each)))).seconds
            for each in (1, 500)
        ]
        assert seconds[0] == seconds[1]


@dataclass
class Owner(Defense):
    """A defense with a pool of its own."""

    name = "owner"
    epsilon: float | None = None
    outliers: Any = field(default_factory=Blobs)

    def perturb(self, images, clean):
        return clean


def test_a_kept_transfer_set_is_found_whatever_owns_a_pool(tmp_path, fixed, monkeypatch):
    whole = cell(defense=Owner(), budget=40)
    run(whole, Store(tmp_path), CPU)
    for module in (estimate, record_file):
        monkeypatch.setattr(module, "read_record", lambda file: None)
    found = [estimator(tmp_path).of("it", whole, again=again).seconds for again in (False, True)]
    assert found[1] - found[0] == pytest.approx(40 * 0.01)
