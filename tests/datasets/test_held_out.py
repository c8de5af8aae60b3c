"""Images that no victim learns from, to calibrate and tune a defense on."""

from dataclasses import dataclass, replace

import pytest
import torch
from toys import CPU, Blobs, Streamed, cell, trainer, victim

from mad.datasets import Split
from mad.datasets.held_out import divided
from mad.defenses import Chain, Context
from mad.defenses.dp_sgd import DpSgd
from mad.defenses.mad import Mad
from mad.defenses.surrogates import Surrogate, TrainedSurrogate
from mad.errors import MadError
from mad.pipeline import run
from mad.recoveries.restorer import Restorer
from mad.recoveries.shadows import SECRETS, shadows
from mad.storage.fingerprint import describe, digest
from mad.storage.store import Store
from mad.training import Trainer
from mad.transfer import TransferSet


@dataclass(frozen=True)
class StreamedBlobs(Blobs):
    """Blobs whose training split is a stream."""

    def train(self):
        images, labels = super().train()
        return Split(Streamed(images), labels)


def rows(images):
    """Return images as a set: no two of the blobs are equal."""
    return {bytes(images[place].flatten().tolist()) for place in range(len(images))}


@pytest.fixture
def learned(monkeypatch):
    """The images of each training, by its task."""
    found, fit = {}, Trainer.fit

    def watching(self, model, images, *arguments, **named):
        found[named["task"]] = rows(images)
        return fit(self, model, images, *arguments, **named)

    monkeypatch.setattr(Trainer, "fit", watching)
    return found


@pytest.mark.parametrize("data", [Blobs(), StreamedBlobs()])
def test_victims_of_two_seeds_hold_out_the_same_images(data):
    first, second = (victim(dataset=data, seed=seed, validation=0.2) for seed in (0, 1))
    held, again = first.validation_split(), second.validation_split()
    rest = first.training_split()
    assert len(held.labels) == len(held.images) == held.images.shape[0] == 40
    assert len(rest.labels) == len(rest.images) == rest.images.shape[0] == 160
    assert rows(held.images) == rows(again.images)
    assert held.labels.tolist() == again.labels.tolist()
    assert rows(first.training_split().images) == rows(second.training_split().images)
    assert not rows(held.images) & rows(rest.images)
    assert rows(held.images) | rows(rest.images) == rows(data.train().images)


def test_a_stream_and_a_tensor_are_divided_alike_and_labels_stay_with_images():
    whole = Blobs().train()
    for mine, theirs in zip(divided(Blobs(), 0.3), divided(StreamedBlobs(), 0.3), strict=True):
        assert torch.equal(mine.images, torch.stack([theirs.images[place] for place in range(len(theirs.images))]))
        assert torch.equal(mine.labels, theirs.labels)
        for place in (0, 5, -1):
            (at,) = (whole.images == mine.images[place]).flatten(1).all(dim=1).nonzero().flatten().tolist()
            assert whole.labels[at] == mine.labels[place]
    assert len(mine.labels.unique()) == 4  # no class is left out
    assert rows(divided(Blobs(name="other"), 0.3)[1].images) != rows(mine.images)


@pytest.mark.parametrize("data", [Blobs(), StreamedBlobs()])
def test_none_of_them_is_trained_on(data, learned):
    for seed in (0, 1):
        toy = victim(dataset=data, seed=seed, validation=0.25, trainer=trainer(epochs=1))
        toy.train(CPU)
        assert learned["victim toy"] == rows(toy.training_split().images)
        assert len(learned["victim toy"]) == 150


def test_no_network_of_the_defender_learns_from_them(tmp_path, learned):
    toy = victim(validation=0.25)
    run(cell(victim=toy, defense=Mad(0.5, TrainedSurrogate(trainer()))), Store(tmp_path), CPU)
    held = rows(toy.validation_split().images)
    assert {"victim toy", "victim surrogate", "knockoff"} == set(learned)
    assert not any(held & learned[task] for task in learned)
    defense, context = DpSgd(batch_size=20), Context(toy, toy.untrained(seed=0, purpose="victim"), 0, CPU)
    assert defense.recipe(toy).validation == 0.25
    assert defense.columns(context)["dp_epsilon"] == pytest.approx(defense.trainer().spent(150, defense.delta))


def test_without_a_share_everything_is_as_it_was():
    names = {digest(describe(each)) for each in (victim(), victim(validation=0), victim(validation=0.0))}
    assert len(names) == 1
    assert "validation" not in str(describe(victim()))
    assert len({cell(victim=victim(validation=share)).fingerprint for share in (0, 0.1, 0.2)}) == 3
    assert torch.equal(victim().training_split().images, Blobs().train().images)


def test_a_victim_is_another_with_another_share(tmp_path, fits):
    for share in (0.0, 0.1, 0.1, 0.0):
        Store(tmp_path).victim(victim(validation=share), CPU)
    assert fits == ["victim toy"] * 2


def test_who_holds_none_out_has_none():
    with pytest.raises(MadError, match=r"victim toy holds no image out .*set victim\.validation"):
        victim().validation_split()


@pytest.mark.parametrize("share", [-0.1, 0.91, 1, "0.1", True, None, float("nan")])
def test_a_share_is_one(share):
    with pytest.raises(MadError, match=r"victim\.validation"):
        victim(validation=share)


@pytest.mark.parametrize("share", [0.001, 0.0024])
def test_a_part_of_no_images_is_refused(share):
    with pytest.raises(MadError, match=r"dataset blobs: .* of its 200 training images is 0: change the share"):
        replace(victim(), validation=share).train(CPU)


def test_a_shadow_holds_images_out_where_the_defense_or_its_surrogate_needs_them():
    @dataclass(frozen=True)
    class Calibrated(Surrogate):
        name = "calibrated"
        needs_validation = True

        def build(self, context):
            assert len(context.victim.validation_split().labels) == 4
            return context.model

    for defense in (Mad(0.5, Calibrated()), Chain(parts=(Mad(0.5, Calibrated()),))):
        whole = cell(defense=defense, recovery=Restorer(), victim=replace(victim(), validation=0.2))
        transfer = TransferSet(whole.pool.images((1, 8, 8)), torch.arange(80), torch.eye(4)[torch.arange(80) % 4])
        assert len(shadows(whole.adversary(CPU), transfer, 1)) == SECRETS
