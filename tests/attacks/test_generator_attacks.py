"""The data-free attacks dfme and maze: the generator, the estimated gradients, the budget, and a theft on toys."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from toys import CPU, cell

from mad.api import BlackBox
from mad.attacks import data_free
from mad.attacks.data_free import Duel, sizes
from mad.attacks.dfme import Dfme, recovered_logits
from mad.attacks.image_generator import Doubling, ImageGenerator, to_images
from mad.attacks.maze import Maze
from mad.attacks.memory import Memory
from mad.attacks.zeroth_order import forward_differences, unit_directions
from mad.defenses import Undefended
from mad.defenses.argmax import Argmax
from mad.defenses.mad import Mad
from mad.defenses.rounding import Rounding
from mad.deployment import deploy
from mad.errors import MadError
from mad.pipeline import run
from mad.recoveries import argmax
from mad.storage.checkpoint import Checkpoint
from mad.storage.store import Store
from mad.testing import check_attack
from mad.training import DivergedError

SMALL = {"batch_size": 8, "noise": 6, "width": 4}
BOTH = {"dfme": Dfme(**SMALL), "maze": Maze(**{**SMALL, "directions": 3, "replay_size": 60})}


def attack(name, budget=150, **changes):
    return replace(BOTH[name], budget=budget, **changes)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def asked(monkeypatch):
    """The requests of images."""
    found, answer = [], BlackBox.__call__
    monkeypatch.setattr(BlackBox, "__call__", lambda self, images: found.append(images) or answer(self, images))
    return found


def steal(which, defense=None, **changes):
    whole = cell(attack=which, pool=None, defense=defense or Undefended(), **changes)
    api = deploy(whole.victim, whole.defense, seed=0).session(which.budget)
    return which.spend(api, None, whole.adversary(CPU)), api


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8), (3, 64, 64), (2, 19, 33), (1, 1, 5)])
def test_the_generator_makes_images_of_any_shape(shape):
    made = ImageGenerator(shape, 5, 2)
    images = to_images(made(torch.randn(6, 5, generator=draw())))
    assert images.shape == (6, *shape)
    assert 0 <= images.min() < 0.3
    assert 0.7 < images.max() <= 1
    assert made.start[1] <= 8
    assert made.start[2] <= 16


def test_the_generator_for_images_of_32_pixels_is_the_published_one():
    made = ImageGenerator((3, 32, 32), 256, 64)
    assert made.start == (128, 8, 8)
    kernels = [tuple(value.shape) for value in made.parameters() if value.dim() == 4]
    assert kernels == [(128, 128, 3, 3), (64, 128, 3, 3), (3, 64, 3, 3)]


def test_doubling_is_a_convolution_of_the_doubled_image():
    layer, images = Doubling(3, 5).double(), torch.randn(2, 3, 4, 6, generator=draw(), dtype=torch.float64)
    slow = F.conv2d(images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), layer.weight, layer.bias, padding=1)
    assert torch.allclose(layer(images), slow, atol=1e-12)
    weights = [torch.autograd.grad(found.square().sum(), layer.weight)[0] for found in (layer(images), slow)]
    assert torch.allclose(*weights, atol=1e-9)


def test_directions_are_unit_vectors_uniform_on_the_sphere():
    along = unit_directions(500, torch.zeros(2, 1, 3, 2), draw()).flatten(2)
    assert torch.allclose(along.norm(dim=2), torch.ones(500, 2), atol=1e-6)
    covariance = along.flatten(0, 1).T @ along.flatten(0, 1) / 1000
    assert torch.allclose(6 * covariance, torch.eye(6), atol=0.3)


def test_differences_by_the_definition():
    draws = draw()
    along, values = unit_directions(3, torch.zeros(2, 1, 2, 2), draws), torch.randn(4, 2, generator=draws)
    found = forward_differences(values, along, 0.1)
    for image in range(2):
        slow = sum(4 * (values[i + 1, image] - values[0, image]) / 0.1 * along[i, image] for i in range(3)) / 3
        assert torch.allclose(found[image], slow, atol=1e-5)


def test_many_directions_estimate_the_true_gradient():
    weight, at = (torch.randn(4, 1, 3, 3, generator=draw(seed)) for seed in (0, 1))

    def value(images):
        return (images * weight).sum(dim=(-3, -2, -1)).sin()

    along = unit_directions(20_000, at, draw(2))
    estimate = forward_differences(torch.cat([value(at)[None], value(at + 1e-3 * along)]), along, 1e-3)
    true = (at * weight).sum(dim=(1, 2, 3)).cos().view(-1, 1, 1, 1) * weight
    assert torch.allclose(estimate, true, atol=0.05 * true.abs().max().item())


def duel(which, defense=None, seed=0):
    """A duel with a trained victim, whose first round has not begun."""
    whole = cell(attack=which, pool=None, defense=defense or Undefended(), seed=seed)
    api = deploy(whole.victim, whole.defense, seed=0).session(10**6)
    return Duel(which, api, whole.adversary(CPU)), api


@pytest.mark.parametrize("name", BOTH)
def test_a_generators_step_follows_the_gradient_of_the_gap(name):
    """Through the API, with many directions, against autograd through the victim, which only this test may use."""
    which = attack(name, directions=2000)
    both, api = duel(which)
    found = []
    both.uphill.step = lambda: found.extend(value.grad.clone() for value in both.generator.parameters())
    both.widen(draw(1))
    made = both.generated(which.batch_size, draw(1))
    images = to_images(made)
    gap = which.gap(both.student.eval()(images), torch.softmax(api._model(images), dim=1)).mean()
    true = torch.autograd.grad(-gap, list(both.generator.parameters()))
    cosine = F.cosine_similarity(*(torch.cat([value.flatten() for value in each]) for each in (found, true)), dim=0)
    assert cosine > 0.97
    sizes_of = [sum(value.square().sum() for value in each).sqrt() for each in (found, true)]
    assert sizes_of[0] == pytest.approx(sizes_of[1].item(), rel=0.1)


@pytest.mark.parametrize("defense", [Undefended(), Argmax(), Mad(0.9), Rounding()])
def test_a_round_asks_about_images_and_neighbors_at_once(defense, asked):
    which = attack("dfme", directions=3)
    both, api = duel(which, defense)
    both.round(1000)
    assert [len(images) for images in asked] == [32, 8, 8, 8, 8, 8]
    assert api.queries == which.round_cost == 72
    every = torch.cat(asked)
    assert every.min() >= 0
    assert every.max() <= 1
    far = torch.atanh(2 * asked[0].double() - 1).view(4, 8, -1)
    assert torch.allclose((far[1:] - far[0]).norm(dim=2), torch.tensor(1e-3).double(), rtol=0.02)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("budget", [1, 2, 7, 8, 9, 55, 56, 57, 63, 64, 113, 200, 201])
def test_spends_exactly_the_budget(name, budget):
    stolen, api = steal(attack(name, budget))
    assert api.queries == budget
    columns = stolen.columns
    assert columns["queries_gradients"] + columns["queries_training"] == budget
    which = attack(name)
    rounds, each = budget // which.round_cost, 16 if name == "dfme" else 24
    assert columns["queries_gradients"] == each * rounds
    assert (columns["answers_unmoved"] is None) == (rounds == 0)


def test_the_first_step_of_maze_learns_what_the_generators_step_asked(asked):
    which = attack("maze")
    both, _ = duel(which)
    learned = []
    fit = both.fit
    both.fit = lambda images, targets: learned.append(images) or fit(images, targets)
    both.round(1000)
    assert [len(images) for images in asked] == [32, 8, 8, 8, 8]
    assert len(learned) == 5 + 10
    assert torch.equal(learned[0], asked[0][:8])
    new = torch.cat(learned[:5]).half().float()
    for images in learned[5:]:
        assert all((image == new).flatten(1).all(dim=1).any() for image in images)


@pytest.mark.parametrize(("count", "most"), [(1, 8), (8, 8), (9, 8), (100, 8), (15, 16), (0, 4)])
def test_the_rest_is_divided_evenly(count, most):
    found = sizes(count, most)
    assert sum(found) == count
    assert len(found) == math.ceil(count / most)
    assert not found or (max(found) <= most and max(found) - min(found) <= 1)


def test_logits_are_recovered_up_to_a_constant():
    logits = torch.randn(20, 7, generator=draw())
    found = recovered_logits(logits.softmax(dim=1), 1e-7)
    assert torch.allclose(found, logits - logits.mean(dim=1, keepdim=True), atol=1e-5)
    hard = recovered_logits(torch.eye(3), 1e-7)
    assert hard.isfinite().all()
    assert torch.allclose(hard[0], -math.log(1e-7) * torch.tensor([2 / 3, -1 / 3, -1 / 3]))


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("targets", [torch.eye(4), torch.full((4, 4), 0.25), torch.tensor([[0.5, 0.5, 0, 0]])])
def test_the_gap_is_finite_and_zero_for_equals(name, targets):
    which = BOTH[name]
    logits = torch.randn(len(targets), 4, generator=draw()).requires_grad_()
    gap = which.gap(logits, targets)
    gap.sum().backward()
    assert gap.shape == (len(targets),)
    assert (gap > 0).all()
    assert logits.grad.isfinite().all()
    same = targets.clamp(min=1e-7).log()
    assert which.gap(same - same.mean(dim=1, keepdim=True), targets).max() < 1e-5


def test_the_gaps_by_their_definitions():
    logits, targets = (torch.randn(3, 4, generator=draw(seed)) for seed in (0, 1))
    own, targets = logits.tolist(), targets.softmax(dim=1).tolist()
    for row, (mine, theirs) in enumerate(zip(own, targets, strict=True)):
        logs = [math.log(p) for p in theirs]
        far = sum(abs(mine[k] - logs[k] + sum(logs) / 4) for k in range(4)) / 4
        total = sum(math.exp(value) for value in mine)
        kl = sum(theirs[k] * (logs[k] - mine[k] + math.log(total)) for k in range(4))
        for name, expected in (("dfme", far), ("maze", kl)):
            found = BOTH[name].gap(logits, torch.tensor(targets))[row].item()
            assert found == pytest.approx(expected, abs=1e-5)


def test_the_rates_fall_as_published():
    shares = [0, 0.099, 0.1, 0.3, 0.49, 0.5, 0.99]
    assert [BOTH["dfme"].factor(share) for share in shares] == pytest.approx([1, 1, 0.3, 0.09, 0.09, 0.027, 0.027])
    assert [BOTH["maze"].factor(share) for share in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])


def test_the_memory_keeps_the_latest():
    memory = Memory(5, (1, 1, 1), 2)
    for first in (0, 3, 6):
        values = torch.arange(first, first + 3).float()
        memory.add(values.view(-1, 1, 1, 1), values.view(-1, 1).expand(-1, 2))
    images, targets = memory.drawn(200, draw(), CPU)
    assert images.dtype == torch.float32
    assert set(images.flatten().tolist()) == {4, 5, 6, 7, 8}
    assert torch.equal(targets[:, 0], images.flatten())
    other = Memory(5, (1, 1, 1), 2)
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.images, memory.images)
    assert other.added == 9


@pytest.mark.parametrize("name", BOTH)
def test_a_theft_on_toys(name, tmp_path):
    which = attack(name, 2000, generator_learning_rate=0.001)
    record, _ = run(cell(attack=which, defense=Undefended()), Store(tmp_path), CPU)
    assert record["stolen_accuracy"] > 0.9  # measured: 1.0; a guess: 0.25
    assert record["answers_unmoved"] < 0.1
    assert (record["queries"], record["pool"], record["learned"]) == (2000, "none", None)
    assert (record["knockoff_optimizer"], record["knockoff_learning_rate"]) == ("momentum", 0.1)
    assert record["queries_gradients"] + record["queries_training"] == 2000


def test_labels_hide_the_differences():
    plain, labels = (steal(attack("dfme"), defense)[0].columns for defense in (Undefended(), Argmax()))
    assert (plain["answers_unmoved"], plain["answers_with_zeros"]) == (0, 0)
    assert (labels["answers_unmoved"], labels["answers_with_zeros"]) == (1, 1)


def test_a_recovery_is_applied_to_every_answer(monkeypatch):
    both, _ = duel(attack("dfme"))
    kept, gap = [], Dfme.gap
    monkeypatch.setattr(Dfme, "gap", lambda *given: kept.append(given[2]) or gap(*given))
    object.__setattr__(both.adversary, "recovery", argmax.Argmax())
    both.round(1000)
    assert both.adversary.recoveries == {"argmax"}
    assert all((targets.sort(dim=1).values == torch.tensor([0.0, 0, 0, 1])).all() for targets in kept)
    assert both.columns()["answers_unmoved"] == 0


@pytest.mark.parametrize("name", BOTH)
def test_it_keeps_the_contract(name):
    check_attack(attack(name))


@pytest.mark.parametrize("name", BOTH)
def test_one_that_was_stopped_goes_on_alike(name, tmp_path, monkeypatch):
    monkeypatch.setattr(data_free, "SAVE_SECONDS", -1)
    whole = cell(attack=attack(name, 400), defense=Mad(0.5), pool=None)
    networks = []
    made = data_free.Stolen
    monkeypatch.setattr(data_free, "Stolen", lambda *known, **more: networks.append(known[0]) or made(*known, **more))
    record, _ = run(whole, Store(tmp_path / "whole"), CPU)
    step, stops = Duel.round, [3]

    def stopped(self, budget):
        if self.turn in stops:
            stops.remove(self.turn)
            raise KeyboardInterrupt
        return step(self, budget)

    monkeypatch.setattr(Duel, "round", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(whole, Store(tmp_path / "broken"), CPU)
    assert Checkpoint(tmp_path / "broken", whole.path.parent).load()["turn"] == 3
    found, _ = run(whole, Store(tmp_path / "broken"), CPU)
    assert found["queries"] == 400
    for one, other in zip(*(network.state_dict().values() for network in networks), strict=True):
        assert torch.equal(one, other)
    timed = ("seconds_queries", "seconds_knockoff", "seconds_victim")
    assert {k: v for k, v in found.items() if k not in timed} == {k: v for k, v in record.items() if k not in timed}


def test_a_student_that_diverges_is_told():
    with pytest.raises(DivergedError, match=r"^the student of attack maze diverged within \d+ of 3000 queries: lower"):
        steal(attack("maze", 3000, learning_rate=1e30))


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"student_steps": 0},
        {"directions": 1.5},
        {"step": 0},
        {"noise": 0},
        {"width": "many"},
        {"learning_rate": -1},
        {"generator_learning_rate": 0},
    ],
)
@pytest.mark.parametrize("kind", [Dfme, Maze])
def test_wrong_settings(kind, wrong):
    with pytest.raises(MadError, match=rf"^attack\.{next(iter(wrong))} must be"):
        kind(**wrong)


@pytest.mark.parametrize(("kind", "wrong"), [(Dfme, "floor"), (Maze, "replay_steps"), (Maze, "replay_size")])
def test_wrong_settings_of_one(kind, wrong):
    with pytest.raises(MadError, match=rf"^attack\.{wrong} must be"):
        kind(**{wrong: -1})
