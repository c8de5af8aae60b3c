"""A whole cell, tiny: from the victim to its record."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from toys import CPU, Blobs, Streamed, cell, trainer, victim

from mad.attacks.knockoff_nets import KnockoffNets
from mad.datasets import Split
from mad.defenses import Context, Defense, Undefended
from mad.defenses.mad import Mad
from mad.defenses.random_noise import RandomNoise
from mad.errors import MadError
from mad.knockoff import Knockoff
from mad.pipeline import run
from mad.recoveries.argmax import Argmax
from mad.schema import EVERY, Column
from mad.storage.store import Store

KEYS = (
    "victim",
    "dataset",
    "architecture",
    "defense",
    "epsilon",
    "surrogate",
    "attack",
    "recovery",
    "pool",
    "budget",
    "queries",
    "seed",
    "victim_accuracy",
    "defended_accuracy",
    "stolen_accuracy",
    "agreement",
    "l1_mean",
    "l1_max",
    "l1_mean_queries",
    "target_entropy",
    "learned",
    "seconds_victim",
    "seconds_queries",
    "seconds_knockoff",
    "fingerprint",
    "version",
    "torch",
    "device",
)
FRACTIONS = ("victim_accuracy", "defended_accuracy", "stolen_accuracy", "agreement")


def numbers(record):
    return {key: value for key, value in record.items() if not key.startswith("seconds")}


def test_a_record(tmp_path):
    record, kept = run(cell(), Store(tmp_path), CPU)
    assert not kept
    assert set(KEYS) <= set(record)
    assert all(0 <= record[name] <= 1 for name in FRACTIONS)
    assert 0 < record["l1_mean"] <= record["l1_max"] <= 0.5 + 1e-5
    assert 0 < record["l1_mean_queries"] <= 0.5 + 1e-5
    assert record["budget"] == record["queries"] == 50
    assert record["victim_accuracy"] > 0.9
    assert (record["victim"], record["dataset"], record["architecture"]) == ("toy", "blobs", "tiny")
    assert (record["defense"], record["epsilon"], record["attack"]) == ("mad", 0.5, "knockoff")
    assert record["surrogate"] == "random"
    assert 0 <= record["target_entropy"] <= 2
    assert (record["device"], record["torch"]) == ("cpu", torch.__version__)
    assert (record["precision"], record["initial_weights"]) == ("float32", None)
    assert set(record) == set(EVERY) - {
        "stolen_accuracy_undefended",
        "defended_by_class",
        "stolen_by_class",
    }  # none of these may be a plug-in's own
    assert record["series"] == ""
    stored = json.loads((tmp_path / cell().path).read_text())
    assert stored.pop("sha256")
    assert stored == record


def test_a_second_run_is_kept(tmp_path, fits):
    first = run(cell(), Store(tmp_path), CPU)[0]
    assert run(cell(), Store(tmp_path), CPU) == (first, True)
    assert fits == ["victim toy", "knockoff"]


def test_force_makes_the_cell_again_and_nothing_else(tmp_path, fits):
    first = run(cell(), Store(tmp_path), CPU)[0]
    again, kept = run(cell(), Store(tmp_path), CPU, force=True)
    assert not kept
    assert numbers(again) == numbers(first)
    assert fits == ["victim toy", "knockoff", "knockoff"]


@pytest.mark.parametrize("name", ["../../x", "a/b", "", ".", "..", ".hidden", "a b", "a\n", "x" * 65, 7, None])
def test_a_name_that_leads_elsewhere_is_refused(name):
    with pytest.raises(MadError, match=r"victim\.name"):
        victim(name=name)
    with pytest.raises(MadError, match=r"pool\.name"):
        cell(pool=Blobs(name=name))


def test_a_failure_is_noted_until_it_succeeds(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(KnockoffNets, "run", lambda *_: [][0])
        with pytest.raises(IndexError):
            run(cell(), Store(tmp_path), CPU)
    (note,) = (tmp_path / "failed").iterdir()
    noted = json.loads(note.read_text())["error"]
    assert noted == "test_pipeline.py line 109 raised IndexError: list index out of range"
    run(cell(), Store(tmp_path), CPU)
    assert list((tmp_path / "failed").iterdir()) == []


@dataclass
class Talking(Mad):
    """Says of itself what it is told to."""

    schema = (Column("spent", "number", "", "what it cost"),)
    said: str = "nothing"

    def columns(self, context):
        return {"nan": {"spent": float("nan")}, "taken": {"stolen_accuracy": 0.1}, "list": {"spent": [1]}}[self.said]


@pytest.mark.parametrize(
    ("said", "why"), [("nan", "spent is NaN"), ("taken", "of every record"), ("list", "spent must be number")]
)
def test_what_a_defense_says_of_itself_is_checked_before_a_thief_is_trained(tmp_path, fits, said, why):
    with pytest.raises(MadError, match=f"defense mad cannot be recorded: .*{why}"):
        run(cell(defense=Talking(0.5, said=said)), Store(tmp_path), CPU)
    assert fits == ["victim toy"]


@dataclass
class Turned(Mad):
    """Has a strength parameter that stands nowhere."""

    strength_parameter = "temperature"
    temperature: float = float("nan")


def test_what_no_record_can_hold_is_refused_before_training(tmp_path, fits):
    with pytest.raises(MadError, match="cell cannot be recorded: strength is NaN"):
        run(cell(defense=Turned(0.5)), Store(tmp_path), CPU)
    assert fits == []


def test_undefended_theft_works_and_costs_nothing(tmp_path):
    record = run(cell(budget=None).reference, Store(tmp_path), CPU)[0]
    assert record["queries"] == 200
    assert record["l1_max"] == record["l1_mean_queries"] == 0
    assert record["target_entropy"] is record["surrogate"] is None
    assert record["victim_accuracy"] == record["defended_accuracy"]
    assert record["stolen_accuracy"] > 0.9
    assert record["agreement"] > 0.9


def test_a_large_budget_ruins_the_answers(tmp_path):
    record = run(cell(2), Store(tmp_path), CPU)[0]
    assert record["defended_accuracy"] < 0.5
    assert record["stolen_accuracy"] < 0.5
    assert record["victim_accuracy"] > 0.9


@pytest.mark.parametrize("defense", [Mad(0), Mad(0.0), RandomNoise(0), RandomNoise(0, scale=3), Undefended()])
def test_no_budget_is_no_defense(defense):
    assert cell(defense=defense).path == cell().reference.path
    assert cell().reference.reference == cell().reference


def test_two_stores_same_numbers(tmp_path):
    first, again, other = (
        run(cell(2, seed=seed), Store(tmp_path / name), CPU)[0] for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert numbers(first) == numbers(again)
    assert first["l1_mean_queries"] != other["l1_mean_queries"]


class StreamedBlobs(Blobs):
    """Blobs whose pool and test split are streams."""

    def images(self, shape):
        return Streamed(super().images(shape))

    def test(self):
        images, labels = super().test()
        return Split(Streamed(images), labels)


def test_a_stream_gives_the_same_record(tmp_path):
    kept = cell(knockoff=Knockoff(trainer(epochs=2)))
    streamed = replace(kept, pool=StreamedBlobs(), victim=victim(dataset=StreamedBlobs()))
    found, whole = (run(one, Store(tmp_path / name), CPU)[0] for name, one in (("a", streamed), ("b", kept)))
    names = {"fingerprint", "comparison_group", "theft_group", "uses"}  # another class
    assert {**numbers(found), **dict.fromkeys(names)} == {**numbers(whole), **dict.fromkeys(names)}


def test_a_stream_that_breaks_is_one_line(tmp_path):
    class Broken(Blobs):
        def images(self, shape):
            return Streamed(super().images(shape), broken=7)

    with pytest.raises(MadError, match=r"^row 7 cannot be read$"):
        run(replace(cell(budget=None), pool=Broken()), Store(tmp_path), CPU)


def test_a_pool_of_another_shape_is_resized(tmp_path):
    odd, _ = run(replace(cell(), pool=Blobs(shape=(3, 9, 9))), Store(tmp_path), CPU)
    assert odd["queries"] == 50


def test_a_pool_of_other_channels_is_refused_before_training(tmp_path, fits):
    odd = replace(cell(), pool=Blobs(shape=(2, 9, 9)))
    with pytest.raises(MadError, match=r"\(2, 9, 9\).*\(1, 8, 8\)"):
        run(odd, Store(tmp_path), CPU)
    assert fits == []


def test_a_budget_above_the_pool_is_refused_before_training(tmp_path, fits):
    with pytest.raises(MadError, match=r"201.*200"):
        run(cell(budget=201), Store(tmp_path), CPU)
    assert fits == []


@pytest.mark.parametrize("seed", [-1, 0.5, True, "1"])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(MadError, match="seed"):
        cell(seed=seed)


def test_every_purpose_draws_its_own_weights():
    toy = victim()
    drawn = [toy.untrained(seed=0, purpose=purpose).head.weight for purpose in ("victim", "surrogate", "knockoff")]
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


@dataclass
class Swapped(Defense):
    """Serves a network of its own, trained once, and shows what it was given."""

    name = "swapped"
    schema = (Column("classes", "whole number", "", "of the victim"),)
    epsilon: float | None = 0.5

    def serve(self, context):
        return context.trained(replace(context.victim, name="swap", seed=context.seed + 7))

    def prepare(self, context):
        self._model = context.model

    def columns(self, context):
        return {"classes": context.victim.dataset.classes}

    def perturb(self, images, clean):
        assert torch.allclose(torch.softmax(self._model(images), dim=1), clean)
        return clean


def test_the_model_that_is_served_is_kept_too(tmp_path, fits):
    records = [run(cell(defense=Swapped(epsilon)), Store(tmp_path), CPU)[0] for epsilon in (0.5, 0.6)]
    assert fits == ["victim toy", "victim swap", "knockoff", "knockoff"]
    assert len(list(tmp_path.glob("victims/swap/*/weights.safetensors"))) == 1
    assert records[0]["l1_max"] < 1e-6
    assert records[0]["target_entropy"] is None
    assert records[0]["classes"] == 4  # what a defense knows of itself


def test_a_defense_may_refuse_a_victim():
    class Refusing(Swapped):
        def check(self, victim):
            raise MadError(f"not for {victim.name}")

    with pytest.raises(MadError, match="not for toy"):
        cell(defense=Refusing())
    assert cell(defense=Refusing(0)).defense == Undefended()


def test_without_a_store_everything_is_trained_anew(fits):
    context = Context(victim(), victim().untrained(seed=0, purpose="victim"), 0, CPU)
    for _ in range(2):
        assert not context.trained(victim(seed=3)).training
    assert fits == ["victim toy"] * 2
    assert context.cached(context.model, "toy") is context.model


def test_the_order_of_cells_changes_no_number(tmp_path):
    cells = [cell(0.5), cell(0.9), cell(0.5, seed=1), cell(0.5, recovery=Argmax())]
    there = {each.fingerprint: run(each, Store(tmp_path / "there"), CPU)[0] for each in cells}
    back = {each.fingerprint: run(each, Store(tmp_path / "back"), CPU)[0] for each in reversed(cells)}
    assert len(there) == len(cells)
    assert {name: numbers(record) for name, record in there.items()} == {
        name: numbers(record) for name, record in back.items()
    }
