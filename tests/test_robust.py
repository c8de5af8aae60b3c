"""Robust losses of a knockoff: each against its formula, row by row, and what refuses to go together."""

import math

import pytest
import torch
import torch.nn.functional as F
from fitting import SPLIT
from toys import CPU, Tiny, cell, trainer

import mad
from mad.errors import MadError
from mad.knockoff import Knockoff
from mad.pipeline import run
from mad.robust import KEPT, LOSSES, RobustTrainer
from mad.seeds import seeded
from mad.storage.fingerprint import describe
from mad.storage.store import Store
from mad.training import Trainer, extras

BATCH = 10


def recipe(robust, **changes):
    return Knockoff(trainer(**changes), robust=robust).trainer


@pytest.fixture
def batch():
    with seeded(0, "a batch"):
        model, images = Tiny(shape=(1, 8, 8), classes=4), torch.rand(BATCH, 1, 8, 8)
        targets = torch.rand(BATCH, 4).softmax(dim=1)
        targets[0] = torch.eye(4)[2]  # log 0
    return model.eval(), images, targets


def plain(robust, p, y):
    """The loss of one image: posteriors p of the network and y of the target, as lists."""
    cross = -sum(b * math.log(a) for a, b in zip(p, y, strict=True) if b)
    if robust == "generalized":
        return sum(b * (1 - a**0.7) / 0.7 for a, b in zip(p, y, strict=True))
    if robust == "bootstrap":
        return 0.8 * cross - 0.2 * math.log(max(p))
    if robust == "smoothed":
        return 0.9 * cross - 0.1 * sum(map(math.log, p)) / len(p)
    return cross


def divergence(p, y):
    return sum(b * math.log(b / a) for a, b in zip(p, y, strict=True) if b)


@pytest.mark.parametrize("robust", LOSSES)
def test_the_loss_is_its_formula(robust, batch):
    model, images, targets = batch
    found = recipe(robust).loss(model, images, targets)
    pairs = [(p.tolist(), y.tolist()) for p, y in zip(model(images).double().softmax(dim=1), targets, strict=True)]
    if robust == "small":
        pairs = sorted(pairs, key=lambda pair: divergence(*pair))[: round(KEPT * BATCH)]
    assert found.item() == pytest.approx(sum(plain(robust, *pair) for pair in pairs) / len(pairs), rel=1e-4)


@pytest.mark.parametrize("robust", LOSSES)
def test_labels_count_as_one_hot_posteriors(robust, batch):
    model, images, _ = batch
    labels = torch.arange(BATCH) % 4
    found = [recipe(robust).loss(model, images, each) for each in (labels, F.one_hot(labels, 4).float())]
    assert torch.equal(*found)


def test_a_few_wrong_answers_cost_less():
    """A third of the answers name a wrong class, always the next one; the small-loss thief learns the right ones."""
    wrong = torch.rand(len(SPLIT.labels), generator=torch.Generator().manual_seed(0)) < 0.3
    answers = torch.where(wrong, (SPLIT.labels + 1) % 4, SPLIT.labels)
    scores = {}
    for robust in (None, "small", "generalized"):
        with seeded(0, "a network"):
            model = Tiny(shape=(1, 8, 8), classes=4)
        how = recipe(robust, epochs=40, optimizer="adam", learning_rate=0.01)
        how.fit(model, SPLIT.images, answers, seed=0, device=CPU, task="test")
        sure = model(SPLIT.images / 255).softmax(dim=1)
        scores[robust] = sure[torch.arange(len(sure)), SPLIT.labels].mean().item()
    assert scores["small"] > scores[None] + 0.1
    assert scores["generalized"] > scores[None] + 0.1


def test_without_one_the_recipe_and_its_fingerprint_are_the_plain_ones():
    assert type(recipe(None)) is Trainer
    assert describe(Knockoff(trainer(), robust=None)) == describe(Knockoff(trainer()))
    assert describe(recipe("small")) != describe(recipe("smoothed"))
    assert extras(recipe("small")) == "robust=small"


def test_a_cell_runs_with_it(tmp_path):
    small = ("trainer.epochs=1", "trainer.min_steps=0", "knockoff.epochs=1", "knockoff.min_steps=0")
    composed = mad.load(*small, "knockoff.robust=generalized", "attack.budget=100", "pool.size=200", "architecture=mlp")
    record, _ = run(composed, Store(tmp_path), CPU)
    assert record["knockoff_settings"] == "robust=generalized"


@pytest.mark.parametrize("robust", ["loud", 3, ""])
def test_another_loss_is_refused(robust):
    with pytest.raises(MadError, match=r"^knockoff\.robust must be one of generalized, bootstrap, smoothed, small"):
        recipe(robust)


def test_a_recipe_with_a_loss_of_its_own_is_refused():
    with pytest.raises(MadError, match=r"knockoff\.robust replaces the loss of a plain trainer, got RotationTrainer"):
        cell(knockoff=Knockoff(trainer(), robust="small", rotation=1.0))


def test_a_robust_trainer_stays_one():
    again = Knockoff(recipe("small"), robust="smoothed").trainer
    assert isinstance(again, RobustTrainer)
    assert again.robust == "smoothed"


@pytest.mark.parametrize(("length", "epochs", "steps"), [(3, 6, 30), (0.33, 1, 3), (1, 2, 10)])
def test_length_is_a_factor_of_epochs_and_least_steps(length, epochs, steps):
    found = Knockoff(trainer(epochs=2, min_steps=10), length=length)
    assert (found.trainer.epochs, found.trainer.min_steps) == (epochs, steps)
    assert describe(found) == describe(Knockoff(trainer(epochs=epochs, min_steps=steps)))


@pytest.mark.parametrize("length", [0, -1, "long", float("nan"), True])
def test_a_length_out_of_range_is_refused(length):
    with pytest.raises(MadError, match=r"knockoff\.length"):
        Knockoff(trainer(), length=length)
