"""Recipes: how long they train, how the learning rate changes, and what is refused."""

from dataclasses import replace

import pytest
import torch
from fitting import fitted, weights
from toys import trainer, victim

from mad import training
from mad.errors import MadError
from mad.knockoff import Knockoff
from mad.storage.fingerprint import describe


@pytest.fixture
def rates(monkeypatch):
    """The learning rate of every step."""
    seen = []

    class Watched(training.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(training, "SGD", Watched)
    return seen


def test_min_steps_means_more_epochs(rates):
    few = fitted(trainer(epochs=2, min_steps=45))  # 10 steps an epoch
    assert len(rates) == 50
    assert torch.equal(weights(few), weights(fitted(trainer(epochs=5))))


def test_no_option_but_its_own_lowers_the_least_number_of_steps(rates):
    recipe = trainer(epochs=2, min_steps=45, knockoff={"epochs": 4})
    assert victim(trainer=recipe, epochs=3).trainer == recipe.but(epochs=3)
    for epochs in (None, 1, 3, 5):
        for given in (Knockoff(recipe, epochs=epochs).trainer, victim(trainer=recipe, epochs=epochs).trainer):
            rates.clear()
            fitted(given)  # 10 steps an epoch
            assert len(rates) == 50
    rates.clear()
    fitted(Knockoff(recipe, epochs=3, min_steps=0).trainer)
    assert len(rates) == 30


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adagrad"])
def test_another_optimizer_takes_its_usual_rate(optimizer):
    assert Knockoff(trainer(), optimizer=optimizer).trainer.learning_rate == training.USUAL_RATES[optimizer]
    assert Knockoff(trainer(), optimizer=optimizer, learning_rate=0.3).trainer.learning_rate == 0.3
    assert Knockoff(trainer(optimizer=optimizer), optimizer=optimizer).trainer.learning_rate == 0.05


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("batch_size", 7), ("momentum", 0.3), ("schedule", "constant"), ("min_steps", 3), ("weight_decay", 0.1)),
        *(("augment", "crop"), ("mixup", 0.3)),
    ],
)
def test_a_knockoffs_recipe_is_changed_in_one_field(name, value):
    changed = Knockoff(trainer(), **{name: value})
    assert changed == Knockoff(trainer(**{name: value}))
    assert describe(changed) == describe(Knockoff(trainer(**{name: value})))


def test_a_knockoff_has_its_own_recipe():
    recipe = trainer(epochs=3, knockoff={"epochs": 6}, min_steps=7)
    assert Knockoff(recipe) == Knockoff(trainer(epochs=6, min_steps=7))
    assert replace(Knockoff(recipe), weight_decay=0.1).trainer.epochs == 6
    assert Knockoff(recipe, epochs=2) == Knockoff(trainer(epochs=2, min_steps=7))
    other = trainer(knockoff={"optimizer": "adam", "learning_rate": 0.002, "schedule": "cooldown"})
    assert Knockoff(other) == Knockoff(trainer(optimizer="adam", learning_rate=0.002, schedule="cooldown"))
    assert Knockoff(other, learning_rate=0.3) == Knockoff(
        trainer(optimizer="adam", learning_rate=0.3, schedule="cooldown")
    )
    for name, rate in training.USUAL_RATES.items():
        own = trainer(optimizer="momentum", learning_rate=0.04, knockoff={"optimizer": name, "learning_rate": None})
        assert Knockoff(own).trainer.learning_rate == (0.04 if name == "momentum" else rate)
    assert Knockoff(other, optimizer="sgd").trainer.learning_rate == training.USUAL_RATES["sgd"]
    assert describe(victim(trainer=recipe)) == describe(victim(trainer=trainer(epochs=3, min_steps=7)))
    assert describe(Knockoff(recipe)) != describe(Knockoff(trainer(epochs=3, min_steps=7)))


def test_step_schedule_divides_by_ten(rates):
    fitted(trainer(epochs=5, schedule="step", step_epochs=2, learning_rate=0.1))
    assert rates == pytest.approx([0.1] * 20 + [0.01] * 20 + [0.001] * 10)


def test_more_epochs_for_small_sets_are_more_epochs_a_step_of_the_schedule(rates):
    fitted(trainer(epochs=4, min_steps=80, schedule="step", step_epochs=2, learning_rate=0.1))
    assert rates == pytest.approx([0.1] * 40 + [0.01] * 40)


@pytest.mark.parametrize("epochs", [1, 4])
def test_a_constant_rate(rates, epochs):
    fitted(trainer(epochs=epochs, schedule="constant", learning_rate=0.1))
    assert rates == [0.1] * 10 * epochs


def test_a_cooldown_falls_to_zero_after_three_quarters(rates):
    fitted(trainer(epochs=4, schedule="cooldown", learning_rate=0.1))
    assert rates == pytest.approx([0.1] * 31 + [0.1 * left / 10 for left in range(9, 0, -1)])


def test_one_cycle_rises_and_falls(rates):
    fitted(trainer(epochs=4, learning_rate=0.08))
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.08)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert 0 < rates[0] < 0.02


def test_momentum_is_that_of_momentum_alone():
    recipe = {"epochs": 2, "schedule": "step"}
    plain = weights(fitted(trainer(optimizer="sgd", momentum=0.9, **recipe)))
    assert torch.equal(plain, weights(fitted(trainer(optimizer="sgd", momentum=0.1, **recipe))))
    assert not torch.equal(plain, weights(fitted(trainer(optimizer="momentum", momentum=0.9, **recipe))))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer", "adan"),
        ("schedule", "cosine"),
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", 0),
        ("learning_rate", -1),
        ("learning_rate", "fast"),
        ("momentum", 2),
        ("weight_decay", float("nan")),
        ("min_steps", -1),
        ("knockoff", {"epochs": 0}),
        ("knockoff", {"epoch": 5}),
        ("knockoff", {"knockoff": {}}),
        ("augment", "mirror"),
        ("precision", "half"),
        ("mixup", -0.1),
    ],
)
def test_a_bad_recipe_is_refused_by_name(name, value):
    with pytest.raises(MadError, match=name):
        trainer(**{name: value})
