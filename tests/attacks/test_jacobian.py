"""The attacks that grow a transfer set from seeds: what they spend, what they store, and where they move."""

import errno
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from growing import POOL, SEEDS, SHORT, bent, brought, seeds, some_images, steal
from torch import nn
from toys import CPU, cell, victim

from mad.api import BlackBox
from mad.attacks import TransferSet
from mad.attacks.jbda import Jbda, Jbself
from mad.attacks.jbtopk import JbTopK
from mad.errors import MadError
from mad.pipeline import run
from mad.storage.fingerprint import describe, digest, settings
from mad.storage.store import Store

ATTACKS = [Jbda(**SHORT), Jbself(**SHORT), *(JbTopK(**SHORT, k=k) for k in (1, 2, 5))]
TOGETHER = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.name}-{attack.children}")


@TOGETHER
@pytest.mark.parametrize("budget", [1, 7, 10, 11, 40, 95])
def test_spends_exactly_the_budget_and_stores_what_was_answered(attack, budget):
    transfer, api, model = steal(attack, budget)
    assert api.queries == budget == len(transfer.images) == len(transfer.answers)
    assert torch.equal(transfer.rows, torch.arange(budget))
    assert transfer.images.dtype == transfer.answers.dtype == torch.float32
    assert transfer.images.min() >= 0
    assert transfer.images.max() <= 1
    expected = torch.softmax(model(transfer.images), dim=1)
    assert torch.allclose(transfer.answers, expected, atol=1e-6)
    assert torch.equal(transfer.images[:SEEDS], seeds(min(SEEDS, budget)))


@TOGETHER
def test_children_differ_from_their_parents_by_no_more_than_the_attack_says(attack):
    images, held, reach = steal(attack, 95)[0].images, SEEDS, 0.1
    while held < len(images):
        children = images[held : held * (1 + attack.children)]
        parents = images[:held].repeat_interleave(attack.children, dim=0)[: len(children)]
        moves = (children - parents).abs().flatten(1).amax(dim=1)
        assert moves.min() > 0
        assert moves.max() <= reach + 1e-6
        held += len(children)


@TOGETHER
def test_a_smaller_budgets_transfer_set_is_a_prefix(attack):
    small, large = steal(attack, 33)[0], steal(attack, 95)[0]
    assert torch.allclose(small.images, large.images[:33], atol=1e-6)


@TOGETHER
def test_the_seed_decides_every_bit(attack):
    one, again, other = (steal(attack, 50, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(one.images, again.images)
    assert torch.equal(one.answers, again.answers)
    assert torch.equal(other.images[:SEEDS], seeds(seed=1))


@pytest.mark.parametrize("attack", [Jbda(), Jbself()])
def test_the_step_is_that_of_one_image_at_a_time(attack):
    net, (images, labels) = bent(), some_images()
    asked, stored = attack.moved(net, images, labels, turn=0)
    assert asked is stored
    for image, label, found in zip(images, labels, stored, strict=True):
        at = image.clone().requires_grad_()
        (-net(at[None]).log_softmax(dim=1)[0, label]).backward()
        sign = 1 if attack.name == "jbda" else -1
        expected = (image + sign * 0.1 * at.grad.sign()).clamp(0, 1)
        assert torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(images, some_images()[0])


def test_the_step_raises_the_loss_and_jbself_lowers_it():
    net, (images, labels) = bent(), some_images()
    before, up, down = (
        F.cross_entropy(net(at), labels)
        for at in (images, *(attack.moved(net, images, labels, 0)[0] for attack in (Jbda(), Jbself())))
    )
    assert down < before < up


@pytest.mark.parametrize("k", [1, 2, 5])
def test_targets_are_climbed_as_one_image_at_a_time_would(k):
    net, (images, labels) = bent(), some_images()
    found = JbTopK(k=k, ball=0.055).moved(net, images, labels, turn=0)[0].view(9, k, 1, 8, 8)
    for image, label, children in zip(images, labels, found, strict=True):
        ranked = [c for c in net(image[None])[0].argsort(descending=True).tolist() if c != label]
        for target, child in zip(ranked, children, strict=False):
            at = image.clone()
            for _ in range(8):
                at.requires_grad_()
                (gradient,) = torch.autograd.grad(net(at[None])[0, target], at)
                at = (at.detach() + 0.01 * gradient.sign() - image).clamp(-0.055, 0.055).add(image).clamp(0, 1)
            assert torch.allclose(child, at, atol=1e-5)
            assert net(child[None])[0, target] > net(image[None])[0, target]


def test_the_step_changes_its_sign_every_period():
    assert [Jbda(period=2).signed_step(turn) for turn in range(6)] == [0.1, 0.1, -0.1, -0.1, 0.1, 0.1]
    assert {Jbda(period=None).signed_step(turn) for turn in range(20)} == {0.1}


def test_the_reservoir_bounds_a_round_once_it_is_in_force():
    attack = Jbda(reservoir=4, reservoir_after=2)
    assert [len(attack.parents(50, turn, 0)) for turn in range(4)] == [50, 50, 4, 4]
    drawn = attack.parents(50, 2, 0)
    assert len(drawn.unique()) == 4
    assert not torch.equal(drawn, attack.parents(50, 3, 0))
    assert len(Jbda(reservoir=80, reservoir_after=0).parents(50, 0, 0)) == 50
    transfer, api, model = steal(Jbda(**SHORT, reservoir=7, reservoir_after=1), 50)
    assert api.queries == 50
    assert torch.allclose(transfer.answers, torch.softmax(model(transfer.images), dim=1), atol=1e-6)
    gaps = torch.cdist(transfer.images[20:].flatten(1), transfer.images.flatten(1), p=torch.inf)
    assert torch.all((gaps <= 0.1 + 1e-6).sum(dim=1) > 1)  # each lies a step from another


def test_large_sets_get_fewer_epochs():
    attack = Jbda(epochs=20, round_images=1000)
    assert [attack.trainer(held, 0.01).epochs for held in (10, 50, 51, 400, 5000)] == [20, 20, 19, 2, 1]


def test_normalisation_may_differ_by_channel():
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 6))
    attack = Jbda(as_published=True, mean=[0.1, 0.2, 0.3], std=[0.5, 0.4, 0.1])
    stored = attack.moved(net, torch.rand(5, 3, 4, 4), torch.arange(5), 0)[1].amin(dim=(0, 2, 3))
    assert torch.all(stored >= torch.tensor([0.1, 0.2, 0.3]) - 1e-6)


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize(("channels", "given"), [(1, [0.2, 0.3, 0.4]), (3, [0.2, 0.3]), (3, [])])
def test_normalisation_of_other_channels_is_refused(name, channels, given):
    toy = victim(shape=(channels, 8, 8))
    for right in (0.2, [0.2], (0.2,) * channels):
        cell(victim=toy, attack=Jbself(**{name: right}))
    with pytest.raises(MadError, match=rf"^attack\.{name} .* {channels}, got \["):
        cell(victim=toy, attack=Jbself(**{name: given}))


def test_the_budget_is_the_first_argument_of_each():
    assert {kind(7).budget for kind in (Jbda, Jbself, JbTopK)} == {7}
    assert JbTopK(7).name == "jbtopk"


def test_more_targets_than_other_classes_are_refused():
    assert steal(JbTopK(**SHORT, k=3), 20, classes=4)[1].queries == 20
    with pytest.raises(MadError, match=r"attack\.k .* 4 classes, got 4$"):
        cell(victim=victim(4), attack=JbTopK(k=4))  # before anything is trained


def test_a_substitute_that_diverges_is_trained_again_at_half_the_rate(fits):
    attack = Jbda(seeds=SEEDS, epochs=20, learning_rate=1e6)
    found, api, _ = brought(attack, 35)
    halvings = fits.count("substitute 0") - 1
    assert halvings > 0
    assert found.columns == {"substitute_learning_rate": 1e6 / 2**halvings}
    assert fits[halvings + 1 :] == ["substitute 1"]
    assert api.queries == 35
    steady = steal(Jbda(seeds=SEEDS, epochs=20, learning_rate=1e6 / 2**halvings), 35)[0]
    assert torch.equal(found.transfer.images, steady.images)


def test_a_substitute_that_diverges_at_every_rate_stops_the_attack():
    with pytest.raises(MadError, match=r"substitute 0 diverges at attack\.learning_rate=.*e\+27"):
        steal(Jbda(seeds=SEEDS, epochs=20, learning_rate=1e30), 20)


@pytest.mark.parametrize("kind", [Jbda, JbTopK])
@pytest.mark.parametrize("reservoir", [None, 280])
def test_a_round_in_batches_moves_each_image_by_its_own_label(reservoir, kind):
    attack = kind(seeds=300, epochs=2, reservoir=reservoir, reservoir_after=0)
    made = 279 * attack.children + 1
    transfer = steal(attack, 300 + made)[0]
    adversary = cell(victim=victim(6)).adversary(CPU)
    known = TransferSet(transfer.images[:300], torch.arange(300), transfer.answers[:300])
    substitute = adversary.train(known, "substitute 0", attack.trainer(300, attack.learning_rate))
    assert len(known.answers.argmax(dim=1).unique()) == 6
    rows = attack.parents(300, 0, seed=0)
    expected = attack.moved(substitute, known.images[rows], known.answers[rows].argmax(dim=1), 0)[0]
    assert torch.allclose(transfer.images[300:], expected[:made], atol=1e-6)


@pytest.mark.parametrize(
    "attack", [*ATTACKS, Jbself(**SHORT, as_published=True), JbTopK(**SHORT, as_published=True)], ids=settings
)
def test_a_large_set_lies_in_a_file_that_nobody_sees(attack, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    small = steal(attack, 95)[0]
    assert small.images.untyped_storage().filename is None
    monkeypatch.setattr("mad.datasets.base.IN_MEMORY", small.images.nbytes - 1)
    large = steal(attack, 95)[0]
    assert Path(large.images.untyped_storage().filename).parent == tmp_path
    assert list(tmp_path.glob("mad-*")) == []
    assert torch.equal(small.images, large.images)
    assert torch.equal(small.answers, large.answers)


def test_a_large_set_without_room_is_one_line(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mad.datasets.base.IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(MadError, match=rf"^0\.0 GB .* {tmp_path}: No space left on device; set TMPDIR .*$"):
            steal(Jbda(**SHORT), 20)
    assert list(tmp_path.glob("mad-*")) == []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(MadError, match="No such file"):
        steal(Jbda(**SHORT), 20)


def test_every_round_trains_a_substitute_of_its_own(fits):
    steal(Jbda(**SHORT), 35)
    assert fits == ["substitute 0", "substitute 1"]


@pytest.mark.parametrize(
    ("how", "key"),
    [({name: 0}, name) for name in ("seeds", "epochs", "round_images", "learning_rate", "reservoir", "period")]
    + [({"reservoir_after": -1}, "reservoir_after"), ({"step": -0.1}, "step"), ({"budget": 0}, "budget")]
    + [({"as_published": flag}, "as_published") for flag in ("no", "false", 0, None)]
    + [({"mean": mean}, "mean") for mean in ("0.1", [0.1, "0.2"], None, float("nan"), -0.1, 33.3, [[0.1]])]
    + [({"std": std}, "std") for std in (0, -0.3, [0.3, 0.0], True, 78.6)],
)
def test_settings_out_of_range_are_refused(how, key):
    with pytest.raises(MadError, match=rf"attack\.{key}"):
        Jbda(**how)


@pytest.mark.parametrize(
    "how", [{"k": 0}, {"steps": 0}, {"step": -1}, {"ball": -1}, {"name": "a/b"}, {"as_published": "no"}]
)
def test_settings_of_targets_out_of_range_are_refused(how):
    with pytest.raises(MadError, match=rf"attack\.{next(iter(how))}"):
        JbTopK(**how)


def test_a_field_that_came_later_renames_no_kept_cell():
    assert digest(describe(JbTopK())) == "031657450f664f5c"  # as before there was as_published
    assert digest(describe(JbTopK(as_published=True))) != digest(describe(JbTopK()))
    assert settings(JbTopK(as_published=True)) == "as_published=True"


def test_a_name_changes_no_number():
    assert describe(JbTopK(name="jbtop3")) == describe(JbTopK())
    assert settings(JbTopK(k=5, name="jbtop5")) == "k=5"


def test_a_budget_takes_no_more_of_the_pool_than_its_seeds():
    assert Jbda(900).affordable(POOL, "mine") == 900
    assert Jbda().affordable(POOL, "mine") == 300
    with pytest.raises(MadError, match=r"for 400 images"):
        Jbda(900, seeds=400).affordable(POOL, "mine")


@TOGETHER
def test_a_whole_cell(attack, tmp_path):
    record, _ = run(cell(victim=victim(6), attack=replace(attack, budget=60)), Store(tmp_path), CPU)
    assert record["queries"] == record["budget"] == 60
    assert record["attack"] == attack.name


def test_a_killed_attack_goes_on_after_its_last_round(tmp_path, monkeypatch):
    whole = cell(attack=Jbda(budget=160, seeds=20, epochs=1))
    expected = run(whole, Store(tmp_path / "whole"), CPU)[0]
    call, store = BlackBox.__call__, Store(tmp_path / "killed")
    count = [0]

    def dying(self, images):
        count[0] += len(images)
        if count[0] > 80:
            raise KeyboardInterrupt
        return call(self, images)

    monkeypatch.setattr(BlackBox, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        run(whole, store, CPU)
    again = []
    monkeypatch.setattr(BlackBox, "__call__", lambda self, images: again.append(len(images)) or call(self, images))
    found = run(whole, store, CPU)[0]
    assert sum(again) == 80  # not the seeds and the first rounds
    for name in ("stolen_accuracy", "agreement", "queries", "l1_mean_queries", "substitute_learning_rate"):
        assert found[name] == pytest.approx(expected[name]), name
