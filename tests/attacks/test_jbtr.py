"""JBDA-TR: random targets, and the steps toward them."""

from dataclasses import replace

import pytest
import torch
from growing import POOL, bent, some_images, steal
from toys import CPU, cell, victim

from mad.attacks import TransferSet
from mad.attacks.jbtopk import JbTopK
from mad.attacks.jbtr import Jbtr
from mad.errors import MadError
from mad.pipeline import run
from mad.seeds import generator
from mad.storage.fingerprint import settings
from mad.storage.store import Store
from mad.testing import check_attack

SHORT = {"seeds": 10, "epochs": 2}


def draw():
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize(("classes", "k"), [(2, 1), (6, 3), (6, 5), (100, 3)])
def test_targets_are_other_classes_and_differ(classes, k):
    labels = torch.arange(500) % classes
    found = Jbtr(k=k).targets(labels, classes, draw()).view(500, k)
    assert torch.all((found >= 0) & (found < classes))
    assert not (found == labels.unsqueeze(1)).any()
    assert all(len(row.unique()) == k for row in found)
    assert torch.equal(found.flatten(), Jbtr(k=k).targets(labels, classes, draw()))


def test_every_other_class_is_as_likely_a_target():
    found = Jbtr(k=2).targets(torch.zeros(6000, dtype=torch.int64), 5, draw())
    assert torch.bincount(found, minlength=5).tolist() == pytest.approx([0, 3000, 3000, 3000, 3000], abs=200)


@pytest.mark.parametrize("redrawn", [False, True])
@pytest.mark.parametrize(("how", "step"), [({}, 0.1 * 1.85 / 8), ({"steps": 3, "ball": 0.06, "step": 0.05}, 0.05)])
def test_the_moves_are_those_of_one_image_at_a_time(redrawn, how, step):
    net, (images, labels) = bent(), some_images()
    attack = Jbtr(redrawn=redrawn, **how)
    asked, stored = attack.moved(net, images, labels, turn=0, draw=draw())
    assert asked is stored
    source = draw()
    turns = [attack.targets(labels, 6, source) for _ in range(attack.steps + 1)]  # the first are those of a whole run
    for child, found in enumerate(stored):
        image, at = images[child // 3], images[child // 3].clone()
        for turn in range(attack.steps):
            target = turns[turn + 1 if redrawn else 0][child]
            at.requires_grad_()
            (gradient,) = torch.autograd.grad(net(at[None]).log_softmax(dim=1)[0, target], at)
            at = (at.detach() + step * gradient.sign() - image).clamp(-attack.ball, attack.ball).add(image).clamp(0, 1)
        assert torch.allclose(found, at, atol=1e-5)


def test_a_fixed_target_gets_likelier():
    net, (images, labels) = bent(), some_images()
    attack = Jbtr(k=2)
    targets = attack.targets(labels, 6, draw()).unsqueeze(1)
    before = net(images).log_softmax(dim=1).repeat_interleave(2, dim=0).gather(1, targets)
    after = net(attack.moved(net, images, labels, 0, draw())[0]).log_softmax(dim=1).gather(1, targets)
    assert torch.all(after > before)


@pytest.mark.parametrize("redrawn", [False, True])
@pytest.mark.parametrize("budget", [1, 10, 11, 95])
def test_spends_exactly_the_budget_and_stores_what_was_answered(redrawn, budget):
    transfer, api, model = steal(Jbtr(**SHORT, redrawn=redrawn), budget)
    assert api.queries == budget == len(transfer.images.unique(dim=0)) == len(transfer.answers)
    assert transfer.images.min() >= 0
    assert transfer.images.max() <= 1
    assert torch.allclose(transfer.answers, torch.softmax(model(transfer.images), dim=1), atol=1e-6)
    held = 10
    while held < budget:
        children = transfer.images[held : held * 4]
        parents = transfer.images[:held].repeat_interleave(3, dim=0)[: len(children)]
        moves = (children - parents).abs().flatten(1).amax(dim=1)
        assert moves.min() > 0
        assert moves.max() <= 0.1 + 1e-6
        held += len(children)


def test_the_seed_and_the_round_decide_the_targets():
    attack = Jbtr(**SHORT)
    one, again, other = (steal(attack, 95, seed)[0].images for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.allclose(steal(attack, 33)[0].images, one[:33], atol=1e-6)


def test_a_round_in_batches_draws_on():
    """300 seeds take two batches, whose targets come from one generator."""
    attack = Jbtr(seeds=300, epochs=1)
    transfer = steal(attack, 300 + 3 * 300)[0]
    adversary = cell(victim=victim(6)).adversary(CPU)
    known = TransferSet(transfer.images[:300], torch.arange(300), transfer.answers[:300])
    substitute = adversary.train(known, "substitute 0", attack.trainer(300, attack.learning_rate))
    draws, parts = generator(0, "moves of round 0"), known.images.split(256)
    tops = known.answers.argmax(dim=1).split(256)
    expected = [attack.moved(substitute, *part, 0, draws)[0] for part in zip(parts, tops, strict=True)]
    assert torch.allclose(transfer.images[300:], torch.cat(expected), atol=1e-6)
    assert len(torch.cat(expected).unique(dim=0)) > 890


@pytest.mark.parametrize("how", [{"k": 0}, {"steps": 0}, {"step": -1}, {"ball": -1}, {"redrawn": "no"}, {"seeds": 0}])
def test_settings_out_of_range_are_refused(how):
    with pytest.raises(MadError, match=rf"attack\.{next(iter(how))}"):
        Jbtr(**how)
    if "k" in how:
        with pytest.raises(MadError, match=r"attack\.k .* 4 classes, got 4$"):
            cell(victim=victim(4), attack=Jbtr(k=4))


def test_it_keeps_the_contract_of_attacks():
    check_attack(Jbtr(70, **SHORT))
    assert Jbtr().affordable(POOL, "mine") == 300
    assert settings(JbTopK(step=0.02, ball=0.2, steps=4)) == "steps=4 step=0.02 ball=0.2"  # as before Jbtr


def test_a_whole_cell(tmp_path):
    record, _ = run(cell(victim=victim(6), attack=replace(Jbtr(**SHORT), budget=60)), Store(tmp_path), CPU)
    assert record["queries"] == record["budget"] == 60
    assert record["attack"] == "jbtr"
