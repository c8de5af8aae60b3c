"""Recoveries that train a first model: self-training, and a few labeled images."""

from dataclasses import dataclass, replace

import pytest
import torch
from toys import CPU, Blobs, Streamed, cell, victim

from mad.datasets import checked, to_unit_range
from mad.defenses import Defense
from mad.errors import MadError
from mad.knowledge import turns
from mad.pipeline import run
from mad.recoveries import AsAnswered
from mad.recoveries.few import Few, assigned
from mad.recoveries.first_model import first_model
from mad.recoveries.self_training import SelfTraining
from mad.simplex import are_posteriors
from mad.storage.store import Store
from mad.testing import posteriors, toy_adversary
from mad.transfer import TransferSet

POOL = Blobs().images((1, 8, 8))
ANSWERS = posteriors("dirichlet", 4)[torch.arange(60) % 12]
TRANSFER = TransferSet(POOL, torch.randperm(200, generator=torch.Generator().manual_seed(0))[:60], ANSWERS)


@dataclass
class Permuted(Defense):
    """Answer with the classes exchanged: a defense that no recovery sees in the answers, and that labels undo."""

    name = "permuted"
    epsilon: float | None = None

    def perturb(self, images, clean):
        return clean.roll(1, dims=1)


@pytest.mark.parametrize("labels", [False, True])
def test_self_training_answers_with_its_own_first_model(labels, fits):
    adversary = cell(recovery=SelfTraining(labels)).adversary(CPU).learned_from(TRANSFER)
    assert fits == ["first model"]
    found = torch.softmax(first_model(adversary, TRANSFER)(to_unit_range(POOL[TRANSFER.rows])), dim=1)
    expected = torch.eye(4)[found.argmax(dim=1)] if labels else found
    assert torch.allclose(adversary.targets(TRANSFER), expected, atol=1e-6)


def test_the_first_model_is_trained_once_for_all(tmp_path, fits):
    store = Store(tmp_path)
    for recovery in (SelfTraining(), SelfTraining(True), Few(20)):
        run(cell(recovery=recovery), store, CPU)
    assert fits.count("first model") == 1
    run(cell(recovery=SelfTraining(), seed=1), store, CPU)
    run(cell(0.6, recovery=SelfTraining()), store, CPU)
    assert fits.count("first model") == 3


def test_a_class_that_the_api_never_answered_with_is_no_news(tmp_path, capsys):
    checked.say.cache_clear()
    adversary = replace(toy_adversary(), store=Store(tmp_path))
    images = Blobs().images((1, 8, 8))[:4]
    answers = torch.tensor([[1.0, *[0.0] * (adversary.classes - 1)]]).repeat(4, 1)
    first_model(adversary, TransferSet(images, torch.arange(4), answers))
    assert "classes" not in capsys.readouterr().err


def test_the_first_model_of_a_stream():
    adversary = cell(recovery=AsAnswered()).adversary(CPU)
    stream = TransferSet(Streamed(POOL), TRANSFER.rows, ANSWERS)
    one, other = (first_model(adversary, each).state_dict() for each in (TRANSFER, stream))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


@pytest.mark.parametrize("defense", [Permuted()])
def test_exchanged_classes_are_undone(tmp_path, defense):
    """The sanity row of a panel: at least 95 % of the undefended accuracy comes back."""
    store = Store(tmp_path)
    undefended = run(cell(0), store, CPU)[0]["stolen_accuracy"]
    assert run(cell(defense=defense), store, CPU)[0]["stolen_accuracy"] < 0.3
    for count, share in ((20, 0.1), (100, 0.1), (20, 0)):
        record = run(cell(defense=defense, recovery=Few(count, share)), store, CPU)[0]
        assert record["stolen_accuracy"] >= 0.95 * undefended
        assert record["classes_moved"] == 4
        assert record["recovery_knows"] == "the victim's data"
    assert run(cell(0, recovery=Few(20)), store, CPU)[0]["classes_moved"] == 0


def test_the_permutation():
    labels = torch.arange(40) % 4
    source = torch.tensor([2, 0, 3, 1])  # the answers' class 2 stands for class 0, and so on
    told = torch.eye(4)[source[labels]] * 0.8 + 0.05
    assert torch.equal(assigned(told, labels), source)
    assert torch.equal(assigned(told[:, source], labels), torch.arange(4))
    noise = posteriors("dirichlet", 4)[torch.arange(40) % 12]
    assert torch.equal(assigned(noise, labels), torch.arange(4))  # no evidence
    assert torch.equal(assigned(told[:1], labels[:1]), torch.arange(4))  # not enough
    wide = torch.eye(100)[torch.arange(30)]
    assert torch.equal(assigned(wide, torch.arange(30)), torch.arange(100))
    assert torch.equal(assigned(wide, torch.arange(30).roll(1)).sort().values, torch.arange(100))


def labeled(recipe, count, seed):
    return toy_adversary(victim=recipe, seed=seed).labeled("recovery.count", count)


def test_labeled_images_are_no_test_images_and_balanced():
    for share, held in ((0.0, False), (0.2, True)):
        recipe = replace(victim(), validation=share)
        images, labels = labeled(recipe, 10, 0)
        split = recipe.validation_split() if held else recipe.training_split()
        assert labels.bincount(minlength=4).tolist() in (
            [3, 3, 2, 2],
            [2, 3, 3, 2],
            [2, 2, 3, 3],
            [3, 2, 2, 3],
            [3, 2, 3, 2],
            [2, 3, 2, 3],
        )
        for image, label in zip(images, labels, strict=True):
            (row,) = (split.images == image).flatten(1).all(dim=1).nonzero().flatten()
            assert split.labels[row] == label
        assert torch.equal(labeled(recipe, 10, 0)[0], images)
        assert not torch.equal(labeled(recipe, 10, 1)[0], images)
        assert torch.equal(labeled(recipe, 17, 0)[0][:10], images)


@pytest.mark.parametrize("labels", [[0, 1, 0, 0, 2, 1], [5], [3, 3, 3]])
def test_turns_by_definition(labels):
    assert turns(torch.tensor(labels)).tolist() == [labels[:i].count(each) for i, each in enumerate(labels)]


@pytest.mark.parametrize(("count", "share", "times"), [(10, 0.1, 1), (10, 0.5, 6), (20, 0.1, 1), (10, 0.0, 0)])
def test_the_labeled_images_make_their_share(count, share, times):
    recovery = Few(count, share)
    more = cell(recovery=recovery).adversary(CPU).learned_from(TRANSFER).recovery.adds()
    if not times:
        assert more is None
        return
    assert len(more.images) == len(more.targets) == times * count
    assert times * count / (times * count + 60) >= share
    assert are_posteriors(more.targets)
    images, labels = labeled(victim(), count, 0)
    assert torch.equal(more.images, images.repeat(times, 1, 1, 1))
    assert torch.equal(more.targets.argmax(dim=1), labels.repeat(times))


@pytest.mark.parametrize("wrong", [{"count": 0}, {"count": 1.5}, {"share": 1.0}, {"share": -0.1}])
def test_settings_that_are_none(wrong):
    with pytest.raises(MadError, match=r"recovery\."):
        Few(**wrong)


def test_more_labeled_images_than_there_are():
    with pytest.raises(MadError, match=r"recovery\.count=201 is above the 200 images of victim toy"):
        cell(recovery=Few(201)).adversary(CPU).learned_from(TRANSFER)
