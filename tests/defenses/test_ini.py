"""Isolation and Induction: the network is trained once and served; test_ini_losses.py has its formulas."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from toys import CPU, Blobs, Streamed, Tiny, build, cell, compose, trainer, victim

import mad
from mad.architectures.mlp import MLP
from mad.architectures.resnet import BasicBlock, ResNet
from mad.defenses import Undefended, ini
from mad.defenses.ini import Ini
from mad.deployment import deploy
from mad.errors import MadError
from mad.own import Own
from mad.pipeline import run
from mad.storage.fingerprint import describe, digest
from mad.storage.store import Store
from mad.testing import check_defense
from mad.training import Trainer, logits_of

TEST = Blobs().test()
OUTLIERS = Blobs(name="outliers", classes=7)


class SmallNet(ResNet):
    block, depths = BasicBlock, (1, 0, 0, 0)


def served(weight=1.0, **changes):
    api = deploy(victim(architecture=MLP), Ini(outliers=OUTLIERS, weight=weight, **changes))
    return api, (logits_of(api.served, TEST.images, CPU).argmax(dim=1) == TEST.labels).float().mean().item()


def test_it_answers_well_and_is_unsure_of_outliers():
    outliers = OUTLIERS.split("another").images / 255
    (api, correct), (plain, _) = served(), served(weight=0.0)
    sure = [torch.softmax(each.served(outliers), dim=1).amax(dim=1).mean() for each in (api, plain)]
    assert correct > 0.9
    assert sure[0] < sure[1] - 0.1
    images = TEST.images / 255
    assert torch.allclose(api.session()(images), torch.softmax(api.served(images), dim=1), atol=1e-6)


def test_it_is_trained_once_and_its_accuracy_recorded(tmp_path, fits):
    made = [cell(defense=Ini(outliers=OUTLIERS), seed=seed) for seed in (0, 1)]
    records = [run(each, Store(tmp_path), CPU)[0] for each in made]
    assert fits == ["victim toy", "victim toy-ini", "knockoff", "knockoff"]
    first = records[0]
    assert (first["strength_parameter"], first["strength"], first["epsilon"]) == ("weight", 1.0, None)
    assert first["l1_max"] < 1e-6
    assert first["defended_accuracy"] > 0.8
    assert len(list(tmp_path.glob("victims/toy-ini/*/weights.safetensors"))) == 1


def test_another_victim_or_setting_is_another_network(tmp_path):
    for seed, weight in ((0, 1.0), (1, 1.0), (0, 2.0)):
        made = Ini(outliers=OUTLIERS, weight=weight, epochs=1)
        deploy(replace(victim(), seed=seed), made, store=Store(tmp_path))
    assert len(list(tmp_path.glob("victims/toy-ini/*"))) == 3


def test_same_seed_same_weights_and_the_global_generator_stays():
    before = torch.get_rng_state()
    first, again, other = (
        deploy(replace(victim(), seed=seed), Ini(outliers=OUTLIERS, epochs=2)).served.state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert torch.equal(before, torch.get_rng_state())


def test_all_that_changes_the_weights_names_them():
    changes = [{}, {"weight": 2.0}, {"isolation": 2.0}, {"induction": 2.0}, {"silence": 2.0}, {"as_published": True}]
    changes += [{"epochs": 7}, {"outliers": Blobs()}]
    names = {digest(describe(Ini(**{"outliers": OUTLIERS, **change}))) for change in changes}
    assert len(names) == len(changes)


def test_the_weight_multiplies_the_three_others():
    made = Ini(outliers=OUTLIERS, weight=0.5, silence=10.0).trainer(victim(), None, None)
    assert (made.isolation, made.induction, made.silence) == (0.5, 0.15, 5.0)
    assert Trainer.like(made) == Trainer.like(victim().trainer)


def test_a_large_pool_is_drawn_from(monkeypatch):
    images = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(40, 1, 8, 8).contiguous()
    assert torch.equal(ini.in_memory(images, 0, CPU), images)
    monkeypatch.setattr(ini, "IN_MEMORY", 10 * 64)
    for pool in (images, Streamed(images)):
        found = ini.in_memory(pool, 0, CPU)
        assert len(found) == 10
        assert len(found[:, 0, 0, 0].unique()) == 10
        assert torch.equal(found, ini.in_memory(images, 0, CPU))
        assert not torch.equal(found, ini.in_memory(images, 1, CPU))


def test_it_travels(tmp_path):
    deployed = deploy(victim(trainer=trainer(epochs=1)), Ini(outliers=OUTLIERS))
    deployed.export(tmp_path / "away")
    opened, images = mad.open_deployment(tmp_path / "away"), TEST.images[:9] / 255
    assert torch.allclose(deployed.session()(images), opened.session()(images), rtol=0, atol=1e-6)


def test_a_given_victim_is_refused_before_anything_is_trained(tmp_path):
    torch.save(Tiny((1, 8, 8), 4).state_dict(), tmp_path / "own.pt")
    given = Own("own", Blobs(), Tiny, trainer(), weights=str(tmp_path / "own.pt"))
    with pytest.raises(MadError, match=r"^defense=ini trains victim own anew, .*: take another$"):
        cell(victim=given, defense=Ini(outliers=OUTLIERS))


class Once(torch.autograd.Function):
    """Has a gradient, and no gradient of it."""

    @staticmethod
    def forward(context, values):
        return values * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, given):
        return given * 2


class Rough(nn.Module):
    """A network whose gradients cannot be differentiated."""

    def __init__(self, shape, classes):
        super().__init__()
        self.first, self.head = nn.Linear(torch.Size(shape).numel(), 5), nn.Linear(5, classes)

    def forward(self, images):
        return self.head(Once.apply(self.first(images.flatten(1))))


def test_a_network_without_second_gradients_is_refused_in_one_line():
    before = torch.get_rng_state()
    with pytest.raises(MadError, match=r"^defense=ini cannot train rough \(.*once_differentiable.*resnet18$"):
        cell(victim=victim(architecture=Rough), defense=Ini(outliers=OUTLIERS))
    Ini(outliers=OUTLIERS).check(victim(architecture=SmallNet))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, -1) for name in ("weight", "isolation", "induction", "silence")]
    + [("weight", float("inf")), ("epochs", 0), ("as_published", "no"), ("outliers", None)],
)
def test_a_bad_setting_is_refused_by_name(name, value):
    with pytest.raises(MadError, match=name):
        Ini(**{"outliers": OUTLIERS, name: value})


def test_there_is_no_l1_budget():
    with pytest.raises(MadError, match=r"no L1 budget.*weight"):
        Ini(0.5, outliers=OUTLIERS)
    assert cell(defense=Ini(0, outliers=OUTLIERS)).defense == Undefended()


def test_outliers_are_chosen_by_name():
    assert build(compose("defense=ini").defense).outliers.name == "greek"
    assert compose("defense=ini", "defense/outliers=kmnist_part").defense.outliers.name == "kmnist_part"


def test_it_keeps_the_contract():
    check_defense(Ini(outliers=OUTLIERS, epochs=1), (3,))
