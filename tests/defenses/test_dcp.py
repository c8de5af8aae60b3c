"""DCP against its formula, spelled out for one answer at a time."""

import math

import pytest
import torch
from toys import CPU, cell, victim

from mad.defenses import Context
from mad.defenses.dcp import Dcp
from mad.defenses.reverse_sigmoid import ReverseSigmoid
from mad.errors import MadError
from mad.pipeline import run
from mad.storage.store import Store

IMAGES = torch.zeros(40, 1, 8, 8)
CLEAN = torch.softmax(
    torch.randn(40, 10, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.1, 6, 40).unsqueeze(1), dim=1
)


def answered(defense, clean=CLEAN):
    return defense.prepared(Context(victim(10), torch.nn.Identity(), 0, CPU))(IMAGES[: len(clean)], clean)


def sigmoid(z):
    return 1 / (1 + math.exp(-z)) if z > -700 else 0.0


def formula(row, beta, gamma, tau, nu):
    alpha = sigmoid(nu * (tau - max(row)))
    moved = [y - alpha * beta * (sigmoid(gamma * math.log(y / (1 - y))) - 0.5) for y in row]
    return [value / sum(moved) for value in moved]


@pytest.mark.parametrize("nu", [3.0, 1000.0])
@pytest.mark.parametrize(("beta", "tau"), [(0.3, None), (0.8, None), (0.4, 0.9)])
def test_it_is_its_formula(beta, tau, nu):
    found = answered(Dcp(beta=beta, gamma=0.3, tau=tau, nu=nu, as_published=True))
    expected = [formula(row, beta, 0.3, beta if tau is None else tau, nu) for row in CLEAN.double().tolist()]
    assert torch.allclose(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)
    assert ((found - CLEAN).abs().sum(dim=1) > 1e-4).sum() in range(3, 41)


def test_sure_answers_are_not_touched_and_others_are_the_reverse_sigmoids():
    found, all_rows = answered(Dcp(beta=0.3, tau=0.6)), answered(ReverseSigmoid(beta=0.3))
    sure, unsure = CLEAN.amax(dim=1) > 0.62, CLEAN.amax(dim=1) < 0.58
    assert sure.sum() > 5 < unsure.sum()
    assert torch.allclose(found[sure], CLEAN[sure], rtol=0, atol=1e-6)
    assert torch.allclose(found[unsure], all_rows[unsure], rtol=0, atol=1e-6)
    assert not torch.allclose(found[unsure], CLEAN[unsure], atol=0.05)


def test_every_top_class_is_kept_unless_as_published():
    flat = torch.tensor([[0.2, 0.15, 0.15, 0.15, 0.15, 0.2 - 1e-3, 1e-3, 0, 0, 0], [0.1] * 10, [0.5, 0.5] + [0] * 8])
    clean = torch.cat([CLEAN, flat])[3:]
    kept, published = (answered(Dcp(beta=1.0, as_published=flag), clean) for flag in (False, True))
    assert torch.equal(kept.argmax(dim=1), clean.argmax(dim=1))
    assert (published.argmax(dim=1) != clean.argmax(dim=1)).any()


def test_a_cell(tmp_path):
    record = run(cell(defense=Dcp(beta=0.9)), Store(tmp_path), CPU)[0]
    assert record["strength_parameter"] == "beta"
    assert record["defended_accuracy"] == record["victim_accuracy"]
    assert 0 < record["l1_mean_queries"] < 2


@pytest.mark.parametrize(("setting", "value"), [("beta", 1.1), ("tau", -0.1), ("tau", 2), ("nu", 0), ("gamma", 0)])
def test_a_bad_setting_is_refused(setting, value):
    with pytest.raises(MadError, match=f"defense.{setting}"):
        Dcp(**{setting: value})
