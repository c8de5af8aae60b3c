"""Nasty teacher: the served victim is trained by the paper's formula, once, and differs from the victim."""

from dataclasses import replace

import pytest
import torch
from toys import CPU, Blobs, Tiny, cell, choices, compose, trainer, victim

import mad
from mad.architectures.resnet import BasicBlock, ResNet
from mad.defenses import Context, Undefended
from mad.defenses.nasty_teacher import NastyTeacher, NastyTrainer
from mad.deployment import deploy
from mad.errors import MadError
from mad.own import Own
from mad.pipeline import run
from mad.storage.fingerprint import describe, digest
from mad.storage.store import Store
from mad.testing import check_defense
from mad.training import Trainer, logits_of

TEST = Blobs().test()


class SmallNet(ResNet):
    block, depths = BasicBlock, (1, 0, 0, 0)


class Fixed(torch.nn.Module):
    """Answers with given logits, whatever the images are."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, images):
        return 1 * self.logits


def slow_loss(logits, normal, labels, omega, temperature):
    """The paper's loss, image by image and class by class."""
    total = 0.0
    for row, other, label in zip(logits.double(), normal.double(), labels, strict=True):
        p, q = torch.softmax(row / temperature, dim=0), torch.softmax(other / temperature, dim=0)
        divergence = sum(a * torch.log(a / b) for a, b in zip(p, q, strict=True))
        total += -torch.log(torch.softmax(row, dim=0)[label]) - omega * temperature**2 * divergence
    return total / len(logits)


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize(("omega", "temperature"), [(0.0, 4.0), (0.04, 4.0), (1.0, 1.0), (0.005, 20.0)])
def test_the_loss_and_its_gradient_are_the_formula(classes, omega, temperature):
    draw = torch.Generator().manual_seed(classes)
    logits, normal = 3 * torch.randn(2, 7, classes, generator=draw)
    labels, images = torch.randint(classes, (7,), generator=draw), torch.zeros(7, 1, 8, 8, dtype=torch.uint8)
    model, adversary = Fixed(logits), Fixed(normal)
    recipe = NastyTrainer.like(trainer(), omega=omega, temperature=temperature, adversary=adversary)
    loss = recipe.loss(model, images, labels)
    loss.backward()
    plain = logits.clone().requires_grad_()
    right = slow_loss(plain, normal, labels, omega, temperature)
    right.backward()
    assert loss.item() == pytest.approx(right.item(), rel=1e-4, abs=1e-5)
    assert torch.allclose(model.logits.grad, plain.grad, rtol=1e-3, atol=1e-6)
    assert adversary.logits.grad is None


def test_sure_logits_give_a_finite_loss():
    logits = torch.tensor([[200.0, 0.0, -200.0], [0.0, 0.0, 0.0]])
    model = Fixed(logits)
    recipe = NastyTrainer.like(trainer(), temperature=0.5, adversary=Fixed(-logits))
    loss = recipe.loss(model, torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]))
    loss.backward()
    assert loss.isfinite()
    assert model.logits.grad.isfinite().all()


@pytest.mark.parametrize(("classes", "expected"), [(2, 4.0), (10, 4.0), (11, 20.0), (200, 20.0)])
def test_the_temperature_is_the_papers_for_the_number_of_classes(classes, expected):
    assert NastyTeacher().trainer(victim(classes), None).temperature == expected
    assert NastyTeacher(temperature=3.0).trainer(victim(classes), None).temperature == 3.0


def test_it_is_trained_as_the_victim_is_but_for_the_loss():
    own = victim(trainer=trainer(epochs=3, schedule="cooldown"))
    recipe = NastyTeacher(omega=0.5).trainer(own, None)
    assert Trainer.like(recipe) == Trainer.like(own.trainer)
    assert NastyTeacher(epochs=9).trainer(own, None).epochs == 9


def accuracy(model):
    return (logits_of(model, TEST.images, CPU).argmax(dim=1) == TEST.labels).float().mean().item()


@pytest.mark.parametrize("from_victim", [True, False])
def test_a_larger_omega_is_further_from_the_victim(from_victim):
    images, gaps = TEST.images / 255, []
    for omega in (0.0, 0.05, 0.1):
        api = deploy(victim(), NastyTeacher(omega=omega, from_victim=from_victim))
        log_p, log_q = (torch.log_softmax(model(images) / 4, dim=1) for model in (api.served, api.model))
        gaps.append((log_p.exp() * (log_p - log_q)).sum(dim=1).mean().item())
        assert accuracy(api.served) > 0.9
        assert torch.allclose(api.session()(images), torch.softmax(api.served(images), dim=1), atol=1e-6)
        assert not any(part.training for part in api.served.modules())
    assert gaps == sorted(gaps)
    assert gaps[2] > 2 * gaps[0]


def test_it_starts_where_it_says(monkeypatch):
    met = []
    monkeypatch.setattr(NastyTrainer, "fit", lambda self, network, *given, **how: met.append(network.state_dict()))
    own = victim()
    model = own.train(CPU)
    for from_victim in (True, False):
        NastyTeacher(from_victim=from_victim).serve(Context(own, model, 0, CPU))
    for found, start in zip(met, (model, own.untrained(seed=0, purpose="victim")), strict=True):
        assert all(torch.equal(value, start.state_dict()[name]) for name, value in found.items())


def test_the_adversarial_network_does_not_change():
    own = victim(architecture=SmallNet, shape=(1, 8, 8), trainer=trainer(epochs=1))
    model = own.train(CPU)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    NastyTeacher(omega=0.5).serve(Context(own, model, 0, CPU))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_it_is_trained_once_and_its_accuracy_recorded(tmp_path, fits):
    made = [cell(defense=NastyTeacher(), seed=seed) for seed in (0, 1)]
    records = [run(each, Store(tmp_path), CPU)[0] for each in made]
    assert fits == ["victim toy", "victim toy-nasty_teacher", "knockoff", "knockoff"]
    first = records[0]
    assert (first["strength_parameter"], first["strength"], first["epsilon"]) == ("omega", 0.01, None)
    assert first["l1_max"] < 1e-6
    assert first["defended_accuracy"] > 0.9
    assert len(list(tmp_path.glob("victims/toy-nasty_teacher/*/weights.safetensors"))) == 1


def test_all_that_changes_the_weights_names_them():
    changes = [{}, {"omega": 2.0}, {"temperature": 2.0}, {"from_victim": True}, {"epochs": 7}]
    names = {digest(describe(NastyTeacher(**change))) for change in changes}
    assert len(names) == len(changes)


def test_another_victim_or_setting_is_another_teacher(tmp_path):
    for seed, omega in ((0, 0.01), (1, 0.01), (0, 0.02)):
        deploy(replace(victim(), seed=seed), NastyTeacher(omega=omega, epochs=1), store=Store(tmp_path))
    assert len(list(tmp_path.glob("victims/toy-nasty_teacher/*"))) == 3


def test_it_travels(tmp_path):
    deployed = deploy(victim(architecture=SmallNet, trainer=trainer(epochs=1)), NastyTeacher())
    deployed.export(tmp_path / "away")
    opened, images = mad.open_deployment(tmp_path / "away"), TEST.images[:9] / 255
    assert torch.allclose(deployed.session()(images), opened.session()(images), rtol=0, atol=1e-6)


def test_a_given_victim_is_refused_before_anything_is_trained(tmp_path):
    torch.save(Tiny((1, 8, 8), 4).state_dict(), tmp_path / "own.pt")
    given = Own("own", Blobs(), Tiny, trainer(), weights=str(tmp_path / "own.pt"))
    with pytest.raises(MadError, match=r"^defense=nasty_teacher trains victim own anew, .*: take another$"):
        cell(victim=given, defense=NastyTeacher())


def test_a_diverged_training_is_one_line():
    with pytest.raises(MadError, match="training of victim toy-nasty_teacher diverged"):
        deploy(victim(), NastyTeacher(omega=1e30))


def test_there_is_no_l1_budget():
    with pytest.raises(MadError, match=r"no L1 budget.*omega"):
        NastyTeacher(0.5)
    assert cell(defense=NastyTeacher(0)).defense == Undefended()


@pytest.mark.parametrize(
    ("name", "value"),
    [("omega", -1), ("omega", float("nan")), ("temperature", 0), ("epochs", 0), ("epochs", 0.5), ("from_victim", "no")],
)
def test_a_bad_setting_is_refused_by_name(name, value):
    with pytest.raises(MadError, match=name):
        NastyTeacher(**{name: value})


def test_the_shipped_choice_is_the_class_default():
    assert "nasty_teacher" in choices("defense")
    assert mad.load("defense=nasty_teacher").defense == NastyTeacher()
    assert compose("defense=nasty_teacher", "defense.omega=0.03").defense.omega == 0.03


def test_it_keeps_the_contract():
    check_defense(NastyTeacher(), (3,))
