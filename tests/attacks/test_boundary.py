"""The attack that walks from images of the victim's kind toward the pool's by bisection."""

import pytest
import torch
from toys import CPU, cell

from mad.api import BlackBox
from mad.attacks.base import drawn
from mad.attacks.boundary import Boundary
from mad.datasets import to_unit_range
from mad.defenses import Undefended
from mad.errors import MadError
from mad.pipeline import run
from mad.seeds import generator
from mad.storage.store import Store
from mad.testing import check_attack

POOL = torch.randint(256, (300, 1, 8, 8), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)


def steal(budget, **how):
    whole = cell(attack=Boundary(budget, **how))
    model = whole.victim.untrained(seed=0, purpose="victim").eval()
    api = BlackBox(model, Undefended(), (1, 8, 8), budget, CPU)
    return whole.attack.spend(api, POOL, whole.adversary(CPU, None)), api, model, whole


def twin(budget, seeds, steps, model, whole):
    """One pair after another: the images in the order of the rounds, and whether each was answered as its seed."""
    adversary = whole.adversary(CPU, None)
    own = to_unit_range(adversary.labeled("attack.seeds", min(seeds, budget))[0])
    pairs = -(-max(0, budget - seeds) // steps)
    starts = torch.randint(len(own), (pairs,), generator=generator(0, "boundary pairs")).tolist()
    ends = to_unit_range(POOL[drawn(POOL, adversary, pairs)])

    def top(image):
        return model(image[None]).argmax().item()

    rounds, near, lows = [[] for _ in range(steps)], [[] for _ in range(steps)], []
    left = budget - len(own)
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        low, high = 0.0, 1.0
        for turn in range(steps):
            if turn * pairs + number >= left:
                break
            share = (low + high) / 2
            image = (1 - share) * own[start] + share * end
            rounds[turn].append(image)
            near[turn].append(top(image) == top(own[start]))
            low, high = (share, high) if near[turn][-1] else (low, share)
        lows.append(low)
    flat = [True] * len(own) + [each for some in near for each in some]
    return torch.stack([*own, *(each for some in rounds for each in some)]), torch.tensor(flat), lows


@pytest.mark.parametrize(("budget", "seeds", "steps"), [(3, 5, 4), (5, 5, 4), (47, 5, 4), (48, 8, 5), (40, 1, 1)])
def test_it_asks_what_bisection_of_one_pair_after_another_asks(budget, seeds, steps, monkeypatch):
    monkeypatch.setattr("mad.attacks.boundary.batch_limit", lambda *given: 7)
    stolen, api, model, whole = steal(budget, seeds=seeds, steps=steps)
    images, near, lows = twin(budget, seeds, steps, model, whole)
    assert api.queries == budget == len(images)
    assert torch.allclose(stolen.transfer.images, images, atol=1e-6)
    assert stolen.transfer.rows.tolist() == near.nonzero().flatten().tolist()
    asked = stolen.transfer.images[stolen.transfer.rows]
    assert torch.allclose(stolen.transfer.answers, torch.softmax(model(asked), dim=1), atol=1e-5)
    if lows:
        assert 0 < near[len(near) - len(lows) :].double().mean() <= 1
        assert stolen.columns["boundary_share"] == pytest.approx(sum(lows) / len(lows), abs=1e-6)
    else:
        assert stolen.columns == {}
    every = steal(budget, seeds=seeds, steps=steps, keep="all")[0].transfer
    assert every.rows.tolist() == list(range(budget))


@pytest.mark.parametrize("budget", [3, 5, 7, 11])
def test_no_request_is_empty(budget, monkeypatch):
    asked, call = [], BlackBox.__call__
    monkeypatch.setattr(BlackBox, "__call__", lambda api, some: asked.append(len(some)) or call(api, some))
    steal(budget, seeds=5, steps=4)
    assert sum(asked) == budget
    assert 0 not in asked


@pytest.mark.parametrize(("key", "value"), [("seeds", 0), ("steps", 0), ("steps", 1.5), ("keep", "seeds")])
def test_settings_out_of_range_are_refused_by_name(key, value):
    with pytest.raises(MadError, match=rf"attack\.{key}"):
        Boundary(10, **{key: value})


def test_the_pool_must_hold_one_image_for_each_pair():
    attack = Boundary(110, seeds=10, steps=5)
    assert attack.affordable(POOL[:20], "mine") == 110
    with pytest.raises(MadError, match=r"for 20 images"):
        attack.affordable(POOL[:19], "mine")


def test_it_steals_and_meets_the_contract(tmp_path):
    attack = Boundary(60, seeds=20)
    check_attack(attack)
    record = run(cell(attack=attack), Store(tmp_path), CPU)[0]
    assert (record["attack"], record["queries"]) == ("boundary", 60)
    assert record["recovery_knows"] == "the victim's data"
    assert 0 < record["boundary_share"] <= 1
