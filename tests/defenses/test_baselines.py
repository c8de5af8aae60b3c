"""The baselines against their formulas, spelled out for one answer at a time."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from simplices import IMAGES, posteriors, ready, rows, rows_of
from toys import build, compose

from mad import simplex
from mad.defenses.argmax import Argmax
from mad.defenses.mad_identity import MadIdentity
from mad.defenses.mad_random import MadRandom
from mad.defenses.random_noise import RandomNoise, keyed_uniform, projected
from mad.defenses.reverse_sigmoid import ReverseSigmoid
from mad.defenses.rounding import Rounding
from mad.defenses.top_k import TopK
from mad.errors import MadError
from mad.storage.fingerprint import describe, settings


def confident(classes=10, rows=40):
    """Nearly all on one class, the others down to 1e-12, some of them zero; the last rows one-hot or of two classes."""
    random = torch.Generator().manual_seed(2)
    tail = 10 ** -(3 + 9 * torch.rand(rows, classes, generator=random, dtype=torch.double))
    tail = torch.where(torch.rand(rows, classes, generator=random) < 0.2, 0.0, tail)
    top = torch.randint(classes, (rows, 1), generator=random)
    tail = tail.scatter(1, top, 0.0)
    clean = tail.scatter(1, top, 1 - tail.sum(dim=1, keepdim=True)).float()
    clean[-4:] = torch.eye(classes)[:4]
    clean[-2:, 0] = clean[-2:, 1] = 0.5
    clean[-2:, 2:] = 0
    return clean


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


@pytest.mark.parametrize("beta", [0.01, 0.3, 0.7])
@pytest.mark.parametrize("gamma", [0.1, 0.4])
def test_reverse_sigmoid_is_its_formula(beta, gamma):
    clean = posteriors()
    clean = clean[clean.amax(dim=1) > 0.5]
    expected = []
    for row in clean.double().tolist():
        y = [min(max(p, 1e-300), 1 - 1e-16) for p in row]
        moved = [p - beta * (sigmoid(gamma * math.log(p / (1 - p))) - 0.5) for p in y]
        expected.append([value / sum(moved) for value in moved])
    answers = ready(ReverseSigmoid(beta=beta, gamma=gamma))(IMAGES, clean)
    assert len(clean) > 20
    assert torch.allclose(answers.double(), rows_of(expected), atol=2e-4)


def test_reverse_sigmoid_moves_sure_answers_far():
    clean = torch.eye(10)
    halved = ready(ReverseSigmoid(beta=0.5))(IMAGES, clean)
    assert torch.allclose(halved.amax(dim=1), torch.full((10,), 0.25))  # (1 - 0.5 / 2) / (1 + 4 * 0.5)
    assert torch.equal(ready(ReverseSigmoid(beta=0))(IMAGES, clean), clean)


@given(rows(), st.floats(0, 1), st.sampled_from([0.1, 0.2, 0.4, 1, 3]), st.sampled_from([None, 0.05, 1]))
def test_reverse_sigmoid_keeps_every_top_class(clean, beta, gamma, epsilon):
    answer = ready(ReverseSigmoid(epsilon, beta, gamma))(IMAGES, clean)
    assert torch.equal(answer.argmax(dim=1), clean.argmax(dim=1))
    assert epsilon is None or simplex.l1(answer, clean) <= epsilon + 1e-5


def test_reverse_sigmoid_lets_no_rounding_choose_the_top_class():
    close = torch.rand(2000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    close[:, :2] = 1
    close = (close / close.sum(dim=1, keepdim=True)).float()
    close[:, 1] = torch.nextafter(close[:, 0], torch.ones(2000))
    for epsilon in (None, 0.5, 0.1):
        answers = ready(ReverseSigmoid(epsilon, beta=1.0))(IMAGES, close)
        assert (answers.argmax(dim=1) == 1).all()


def test_reverse_sigmoid_is_weaker_only_where_the_top_class_would_change():
    flat = torch.tensor([[0.2, 0.15, 0.15, 0.15, 0.15, 0.2 - 1e-3, 1e-3, 0, 0, 0]])
    defense = ready(ReverseSigmoid(beta=1.0))
    answer = defense(IMAGES, flat)
    assert answer.argmax() == 0
    assert answer[0, 9] > 0.08  # where the zero went, just below the top
    assert answer[0, 9] < answer[0, 0]


def unbounded(y):
    """The logit of a number in [0, 1], infinite at the ends."""
    return math.log(y) - math.log1p(-y) if 0 < y < 1 else math.inf * (2 * y - 1)


@pytest.mark.parametrize("beta", [0.2, 0.9, 1.0])
@pytest.mark.parametrize("gamma", [0.1, 0.4, 3.0])
def test_as_published_reverse_sigmoid_is_its_formula_on_every_row(beta, gamma):
    flat = torch.tensor([[0.2, 0.15, 0.15, 0.15, 0.15, 0.2 - 1e-3, 1e-3, 0, 0, 0]])
    clean = torch.cat([posteriors(), confident(), flat, torch.full((1, 10), 0.1)])
    expected = []
    for row in clean.double().tolist():
        moved = [y - beta * (sigmoid(gamma * unbounded(y)) - 0.5) for y in row]
        expected.append([value / sum(moved) for value in moved])
    answers = ready(ReverseSigmoid(beta=beta, gamma=gamma, as_published=True))(IMAGES, clean)
    assert torch.allclose(answers.double(), rows_of(expected), atol=1e-6)
    flips = answers.argmax(dim=1) != clean.argmax(dim=1)
    assert flips.any() == (beta > 0.5)
    kept = ready(ReverseSigmoid(beta=beta, gamma=gamma))(IMAGES, clean)
    assert torch.allclose(kept[~flips], answers[~flips], atol=1e-2)
    assert not torch.isclose(kept[flips], answers[flips], atol=1e-3).all(dim=1).any()


def test_gamma_is_the_papers_for_the_data_set():
    found = {name: ready(ReverseSigmoid(), name)._gamma for name in ("mnist", "fashion_mnist", "cifar10", "digits")}
    assert found == {"mnist": 0.2, "fashion_mnist": 0.4, "cifar10": 0.1, "digits": 0.2}
    assert ready(ReverseSigmoid(gamma=0.7), "mnist")._gamma == 0.7
    for name in ("mnist", "fashion_mnist"):  # the names that the shipped data sets bear
        assert build(compose(f"victim={name}").victim).dataset.name == name


def nearest(noise, radius, p):
    """The projection onto the ball, found by bisection on the multiplier of its norm."""
    if sum(value**p for value in noise) ** (1 / p) <= radius:
        return noise
    low, high = 0.0, max(noise) + 1e6
    for _ in range(200):
        middle = (low + high) / 2
        point = [max(v - middle, 0) if p == 1 else v / (1 + middle) for v in noise]
        low, high = (middle, high) if sum(v**p for v in point) ** (1 / p) > radius else (low, middle)
    return point


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("scale", [0, 3.0, 60.0, 500.0])
@pytest.mark.parametrize("draw", [posteriors, confident])
def test_published_noise_is_its_formula(norm, scale, draw):
    p, clean = {"l1": 1, "l2": 2}[norm], draw()
    defense = ready(RandomNoise(None, scale, norm))
    drawn = keyed_uniform(IMAGES, 10, defense._key).tolist()
    expected = []
    for row, uniform in zip(clean.double().tolist(), drawn, strict=True):
        noise = nearest([2 * scale / 10 ** (1 / p) * u for u in uniform], scale, p)
        moved = [sigmoid(unbounded(y) + b) for y, b in zip(row, noise, strict=True)]
        expected.append([value / sum(moved) for value in moved])
    assert torch.allclose(defense(IMAGES, clean).double(), rows_of(expected), atol=1e-6)


@pytest.mark.parametrize(("norm", "p"), [("l1", 1), ("l2", 2)])
def test_projected_noise_lies_in_the_ball_and_some_of_it_did(norm, p):
    noise = torch.rand(200, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 / 10 ** (1 / p)
    found = projected(noise, 1.0, norm)
    inside = noise.norm(p, dim=1) <= 1
    assert found.norm(p, dim=1).max() <= 1 + 1e-9
    assert torch.equal(found[inside], noise[inside])
    assert 20 < inside.sum() < 180


def test_noise_of_old_budgets_is_what_it_was():
    assert describe(RandomNoise(0.5)) == {
        "class": "mad.defenses.random_noise.RandomNoise",
        "version": 1,
        "epsilon": 0.5,
        "scale": 50,
        "norm": "l1",
    }
    assert describe(RandomNoise(None))["version"] == 2  # whose logits were clipped once
    assert "as_published" not in describe(ReverseSigmoid())
    assert describe(ReverseSigmoid(as_published=True))["as_published"] is True


def test_noise_is_turned_by_its_budget_or_its_scale():
    budgeted, published = RandomNoise(0.5, 3.0), RandomNoise(None, 3.0, "l2")
    assert (budgeted.strength_parameter, budgeted.strength, settings(budgeted)) == ("epsilon", 0.5, "scale=3.0")
    assert (published.strength_parameter, published.strength, settings(published)) == ("scale", 3.0, "norm=l2")
    clean = posteriors()
    moved = [simplex.l1(ready(RandomNoise(None, scale))(IMAGES, clean), clean).mean() for scale in (1, 10, 100)]
    assert moved[0] < moved[1] < moved[2]


@given(rows(), st.integers(1, 14))
def test_top_k_is_its_formula(clean, k):
    answer = ready(TopK(k=k))(IMAGES, clean)[0]
    row = clean[0].tolist()
    kept = sorted(range(len(row)), key=lambda place: (-row[place], place))[:k]
    total = sum(row[place] for place in kept)
    expected = [row[place] / total if place in kept else 0 for place in range(len(row))]
    assert torch.allclose(answer, torch.tensor(expected), atol=1e-5)
    assert answer.argmax() == clean.argmax()


@given(rows())
def test_argmax_is_top_1(clean):
    answer = ready(Argmax())(IMAGES, clean)
    assert answer.max() == answer.sum() == 1
    assert torch.equal(answer, ready(TopK(k=1))(IMAGES, clean))
    near = ready(Argmax(0.3))(IMAGES, clean)
    assert near.argmax() == clean.argmax()
    assert torch.allclose(simplex.l1(near, clean), (2 - 2 * clean.amax(dim=1)).clamp(max=0.3), atol=1e-5)


@pytest.mark.parametrize("decimals", [1, 2, 3])
def test_rounding_is_its_formula(decimals):
    clean = posteriors()
    expected = []
    for row in clean.tolist():
        rounded = [round(value, decimals) for value in row]
        expected.append([value / sum(rounded) for value in rounded])
    assert torch.allclose(ready(Rounding(decimals=decimals))(IMAGES, clean).double(), rows_of(expected), atol=1e-5)


def test_a_row_that_rounds_to_nothing_says_nothing():
    flat = torch.full((1, 40), 1 / 40)
    flat[0, 3], flat[0, 4] = 0.04, 0.01
    answer = ready(Rounding(decimals=1))(IMAGES, flat)
    assert torch.equal(answer, torch.full((1, 40), 1 / 40))


def test_a_weak_setting_changes_nothing():
    clean = posteriors()
    assert torch.allclose(ready(TopK(k=10))(IMAGES, clean), clean, atol=1e-6)
    assert torch.allclose(ready(Rounding(decimals=7))(IMAGES, clean), clean, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (ReverseSigmoid, {"beta": 1.5}),
        (ReverseSigmoid, {"beta": -0.1}),
        (ReverseSigmoid, {"gamma": 0}),
        (ReverseSigmoid, {"as_published": "no"}),
        (TopK, {"k": 0}),
        (TopK, {"k": 2.5}),
        (Rounding, {"decimals": 0}),
        (Rounding, {"decimals": 8}),
        (RandomNoise, {"epsilon": None, "scale": -1}),
        (RandomNoise, {"epsilon": None, "norm": "l3"}),
        *((make, {"epsilon": 3}) for make in (ReverseSigmoid, TopK, Argmax, Rounding, MadIdentity, MadRandom)),
    ],
)
def test_a_bad_setting_is_refused_by_name(make, wrong):
    with pytest.raises(MadError, match=f"defense.{list(wrong)[-1]}"):
        make(**wrong)
