"""The attack that asks about each image and a moved copy of it."""

import pytest
import torch
from toys import CPU, Blobs, cell

from mad.api import BlackBox
from mad.attacks.consistent import Consistent, shifted
from mad.attacks.knockoff_nets import KnockoffNets
from mad.datasets import to_unit_range
from mad.defenses import Undefended
from mad.errors import MadError
from mad.pipeline import run
from mad.storage.store import Store
from mad.testing import check_attack

POOL = Blobs().images((1, 8, 8))


class Asked(torch.nn.Module):
    """Answer by the sum of the pixels, and remember the images."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return torch.stack(
            [images.sum(dim=(1, 2, 3)), images[:, 0, :, -1].sum(dim=1), images[:, 0, 0].sum(dim=1)], dim=1
        )


def steal(budget, tolerance):
    attack, network = Consistent(budget, tolerance), Asked().eval()
    api = BlackBox(network, Undefended(), (1, 8, 8), budget, CPU)
    return attack.spend(api, POOL, cell(attack=attack).adversary(CPU, None)), api, network


@pytest.mark.parametrize("budget", [2, 3, 40, 41, 400])
def test_every_query_is_charged_and_answers_that_agree_are_kept(budget, monkeypatch):
    monkeypatch.setattr("mad.plugins.transferred", lambda *given: None)  # of K = 3, not the toy's 4
    stolen, api, network = steal(budget, 0.3)
    assert api.queries == budget
    rows = KnockoffNets().run(
        BlackBox(network, Undefended(), (1, 8, 8), -(-budget // 2), CPU), POOL, cell().adversary(CPU)
    )
    rows, half = rows.transfer.rows, budget // 2
    images = to_unit_range(POOL[rows[:half]])
    seen = torch.cat(network.seen)[: len(rows) + half]
    assert torch.equal(seen, torch.cat([to_unit_range(POOL[rows]), shifted(images)]))
    one, other = (torch.softmax(Asked()(each), dim=1) for each in (images, shifted(images)))
    apart = (one - other).abs().sum(dim=1)
    most = max(0.3, apart.sort().values[max(1, round(0.1 * half)) - 1].item())
    kept = apart <= most
    assert torch.equal(stolen.transfer.rows, rows[:half][kept])
    assert torch.allclose(stolen.transfer.answers, ((one + other) / 2)[kept], atol=1e-6)
    assert stolen.columns["consistent"] == pytest.approx((apart <= 0.3).double().mean().item())
    assert stolen.transfer.images is POOL


@pytest.mark.parametrize("tolerance", [0.0, 2.0])
def test_something_is_left_and_not_more_than_all(tolerance):
    stolen, _, _ = steal_toy(40, tolerance)
    assert 2 <= len(stolen.transfer) <= 20
    assert tolerance == 0 or len(stolen.transfer) == 20


def steal_toy(budget, tolerance):
    attack = Consistent(budget, tolerance)
    whole = cell(attack=attack)
    network = whole.victim.untrained(seed=0, purpose="victim")
    api = BlackBox(network, Undefended(), (1, 8, 8), budget, CPU)
    return attack.spend(api, POOL, whole.adversary(CPU)), api, network


def test_moved_by_one_pixel():
    image = torch.arange(12.0).view(1, 1, 3, 4)
    assert shifted(image)[0, 0].tolist() == [[0, 0, 1, 2], [4, 4, 5, 6], [8, 8, 9, 10]]
    assert shifted(image).shape == image.shape


def test_it_keeps_the_contract():
    for budget in (2, 41):
        check_attack(Consistent(budget))


def test_the_pool_must_hold_half_the_budget():
    assert Consistent(400).affordable(POOL, "mine") == 400
    with pytest.raises(MadError, match=r"402, for 201 images, .* 200 .*mine"):
        Consistent(402).affordable(POOL, "mine")


def test_a_pool_of_one_image_is_refused():
    assert Consistent().affordable(POOL[:2], "mine") == 2
    with pytest.raises(MadError, match=r"attack\.budget must be a whole number of at least 2, got 1"):
        Consistent().affordable(POOL[:1], "mine")


@pytest.mark.parametrize("wrong", [{"budget": 1}, {"tolerance": -1}, {"tolerance": 2.1}])
def test_settings_that_are_none(wrong):
    with pytest.raises(MadError, match=r"attack\."):
        Consistent(**wrong)


def test_a_cell(tmp_path):
    record = run(cell(0, attack=Consistent(100, 2.0)), Store(tmp_path), CPU)[0]
    assert record["queries"] == 100
    assert record["stolen_accuracy"] > 0.8
    assert record["consistent"] == 1
