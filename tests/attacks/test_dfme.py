"""The data-free attacks dfme and maze: the budget, the generator's steps, and a theft on toys."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from toys import CPU, cell

from mad.api import BlackBox
from mad.attacks import data_free
from mad.attacks.data_free import Duel
from mad.attacks.dfme import Dfme
from mad.attacks.image_generator import to_images
from mad.attacks.maze import Maze
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


@pytest.mark.parametrize("budget", [113, 145, 167])
def test_the_last_round_takes_the_rest_in_batches_of_like_size(budget, asked):
    """One image by itself would spoil the statistics of a batch norm."""
    steal(attack("dfme", budget))
    assert min(map(len, asked)) >= 6
    assert max(map(len, asked)) == 16


def test_the_student_is_in_eval_mode_for_the_differences(monkeypatch):
    both, _ = duel(attack("dfme"))
    modes, gap = [], Dfme.gap
    monkeypatch.setattr(Dfme, "gap", lambda *given: modes.append(both.student.training) or gap(*given))
    both.round(1000)
    both.round(1000)
    assert modes == [False, *[True] * 5] * 2


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
