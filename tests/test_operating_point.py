"""How strong a defense may be for what it costs on the validation split."""

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toys import CPU, cell

from mad.datasets import Split
from mad.defenses import Chain, Defense
from mad.defenses.gate import Gate
from mad.defenses.top_k import TopK
from mad.errors import MadError
from mad.limits import at_most
from mad.operating_point import Costs, OperatingPoint, operating_points
from mad.storage.store import Store
from mad.testing import toy_victim


@dataclass
class Spoiled(Defense):
    """Gives the class of the next index for each image whose mean is below the strength."""

    name = "spoiled"
    strength_parameter = "level"
    epsilon: float | None = None
    level: float = 0.5

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return the answers of dark images rolled by one class."""
        dark = images.mean(dim=(1, 2, 3)) < self.level
        return torch.where(dark.unsqueeze(1), clean.roll(1, dims=1), clean)


@dataclass
class Turned(Spoiled):
    """The same, where smaller numbers are stronger."""

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return the answers of bright images rolled by one class."""
        bright = images.mean(dim=(1, 2, 3)) > self.level
        return torch.where(bright.unsqueeze(1), clean.roll(1, dims=1), clean)


@pytest.mark.parametrize(("defense", "ends"), [(Spoiled(), (0, 1)), (Turned(), (1, 0))])
def test_the_strongest_strength_within_the_limit_is_found(tmp_path, defense, ends):
    whole = replace(cell(defense=defense), victim=toy_victim())
    limits = (0.0, 0.1, 0.3, 1.0)
    found = dict(operating_points(whole, limits, *ends, Store(tmp_path), CPU))
    costs = Costs(whole, Store(tmp_path), CPU)
    for limit in limits:
        point = found[limit]
        assert at_most(point.loss, limit)
        step = 1e-4 if ends == (0, 1) else -1e-4
        if 0 < limit < 1:
            assert not at_most(costs.at(round(point.strength + step, 4)).loss, limit)
            assert 0.2 < point.strength < 0.8
    assert found[0.1].loss > 0
    assert found[1.0].strength == ends[1]


@pytest.mark.parametrize("ends", [(0, 2), (0, 1e-3), (3e-5, 4e-5), (1e-3, 2e-6), (1e3, 1e-3)])
def test_a_small_range_is_searched_as_finely_as_a_large_one(tmp_path, monkeypatch, ends):
    weakest, strongest = ends
    share = lambda strength: (strength - weakest) / (strongest - weakest)  # noqa: E731
    monkeypatch.setattr(Costs, "at", lambda _, strength: OperatingPoint(strength, share(strength), 0.0))
    whole = replace(cell(defense=Spoiled()), victim=toy_victim())
    found = Costs(whole, Store(tmp_path), CPU).strongest(0.37, weakest, strongest)
    assert 0.3695 < share(found.strength) <= 0.37


@pytest.mark.parametrize(("defense", "ends"), [(Spoiled(), (1, 0)), (Turned(), (0, 1))])
@pytest.mark.parametrize("limit", [0.1, 1.0])
def test_the_strongest_end_first_is_refused(tmp_path, defense, ends, limit):
    whole = replace(cell(defense=defense), victim=toy_victim())
    with pytest.raises(MadError, match=r"^defense.level costs .* at 1 and .* at 0|at 0 and .* at 1: the weakest"):
        Costs(whole, Store(tmp_path), CPU).strongest(limit, *ends)


@pytest.mark.parametrize(("losses", "refused"), [((0.2, 0.0), True), ((0.004, 0.0), False), ((0.0, 0.2), False)])
def test_where_no_answer_is_moved_the_loss_tells_which_end_is_the_strongest(tmp_path, monkeypatch, losses, refused):
    monkeypatch.setattr(Costs, "at", lambda _, strength: OperatingPoint(strength, losses[round(strength)], 0.0))
    costs = Costs(replace(cell(defense=Spoiled()), victim=toy_victim()), Store(tmp_path), CPU)
    if refused:
        with pytest.raises(MadError, match="the weakest strength comes first"):
            costs.strongest(0.01, 0, 1)
    else:
        assert costs.strongest(0.01, 0, 1) is not None


@pytest.mark.parametrize("ends", [(4, 1.5), (float("nan"), 1)])
def test_an_end_that_is_no_strength_is_refused_before_anything_is_trained(tmp_path, monkeypatch, ends):
    monkeypatch.setattr(Costs, "at", lambda *_: pytest.fail("it was measured"))
    whole = replace(cell(defense=TopK(k=3)), victim=toy_victim())
    with pytest.raises(MadError, match=r"k must be a whole number of at least 1, got"):
        Costs(whole, Store(tmp_path), CPU).strongest(0.01, *ends)


def test_only_the_validation_split_is_looked_at(tmp_path, monkeypatch):
    whole = replace(cell(defense=Spoiled()), victim=toy_victim())
    held = whole.victim.validation_split()
    monkeypatch.setattr(type(whole.victim.dataset), "test", lambda _: pytest.fail("the test split was read"))
    costs = Costs(whole, Store(tmp_path), CPU)
    assert isinstance(costs.split, Split)
    assert torch.equal(costs.split.images, held.images)
    assert costs.at(0.5).l1_mean > 0


def test_a_victim_that_holds_nothing_out_is_refused(tmp_path):
    with pytest.raises(MadError, match="validation"):
        Costs(cell(defense=Spoiled()), Store(tmp_path), CPU)


@pytest.mark.parametrize("count", [50, 129, 1000, 6000])
def test_a_cost_of_exactly_the_limit_is_within_it_and_one_image_more_is_not(count):
    for lost in range(1, count // 20):
        for right in range(count - 20, count + 1):
            loss = right / count - (right - lost) / count
            assert OperatingPoint(None, loss, 0.0).within(lost / count, 2.0)
            assert not OperatingPoint(None, loss, 0.0).within((lost - 1) / count, 2.0)
    single = torch.tensor([0.6, 0.7, 0.95]).tolist()
    assert all(OperatingPoint(None, 0.0, l1).within(0.0, round(l1, 2)) for l1 in single)
    assert not OperatingPoint(None, 0.0, 0.6001).within(0.0, 0.6)


def test_the_search_takes_a_strength_that_costs_exactly_the_limit(tmp_path, monkeypatch):
    whole = replace(cell(defense=Spoiled()), victim=toy_victim())
    loss = 0.95 - 0.94  # 0.010000000000000009
    monkeypatch.setattr(Costs, "at", lambda self, strength: OperatingPoint(strength, loss, 0.0))
    point = Costs(whole, Store(tmp_path), CPU).strongest(0.01, 0, 1)
    assert point is not None
    assert point.strength == 1


def test_whole_numbers_stay_whole(tmp_path):
    whole = replace(cell(defense=TopK(k=3)), victim=toy_victim())
    assert dict(operating_points(whole, [0.01], 4, 1, Store(tmp_path), CPU))[0.01].strength == 1


def test_none_where_the_weakest_costs_too_much(tmp_path):
    whole = replace(cell(defense=Spoiled()), victim=toy_victim())
    assert dict(operating_points(whole, [0.01], 0.9, 1, Store(tmp_path), CPU)) == {0.01: None}


def test_what_is_calibrated_on_the_split_counts_with_its_guarantee(tmp_path):
    whole = cell(defense=Chain(parts=[Gate(alpha=0.05, client=0.01)]), victim=toy_victim())
    point = Costs(whole, Store(tmp_path), CPU).at(None)
    assert (point.loss, point.l1_mean) == (pytest.approx(0.06), pytest.approx(0.12))
    whole = replace(whole, defense=Gate())
    found = dict(operating_points(whole, [0.04], 0, 1, Store(tmp_path), CPU))[0.04]
    assert found.strength == found.loss == pytest.approx(0.04, abs=1e-3)


@pytest.mark.parametrize(
    ("words", "outputs", "expected"),
    [
        ([], [], "seed=0,1,2"),
        (["seed=5"], ["one", "my folder"], "seed=5 'outputs=my folder'"),
    ],
)
def test_the_command_of_the_script_keeps_the_seed_and_the_folder(words, outputs, expected):
    path = Path(__file__).parents[1] / "scripts" / "operating_points.py"
    spec = importlib.util.spec_from_file_location("operating_points", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    told = script.command(["defense=mad", "defense.epsilon=0.5,0.8", *words], outputs)
    assert told == f"mad-run -m defense=mad defense.epsilon=0.5,0.8 {expected}"


@dataclass
class Kept(Defense):
    """Keeps the k highest probabilities; None keeps all."""

    name = "kept"
    strength_parameter = "k"
    epsilon: float | None = None
    k: int | None = None

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return the k highest probabilities, rescaled."""
        if self.k is None:
            return clean
        values, kept = clean.topk(self.k, dim=1)
        found = torch.zeros_like(clean).scatter(1, kept, values)
        return found / found.sum(dim=1, keepdim=True)


def test_a_strength_that_may_be_none_is_a_whole_number_all_the_same(tmp_path):
    whole = replace(cell(defense=Kept()), victim=toy_victim())
    point = Costs(whole, Store(tmp_path), CPU).strongest(1.0, 4.0, 1.0, 0.2)
    assert point is not None
    assert float(point.strength).is_integer()
