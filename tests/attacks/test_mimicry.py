"""The attack that restyles the pool's images like a few images of the victim's kind."""

import pytest
import torch
from test_augmented import QUADRANTS
from toys import CPU, Blobs, Streamed, cell

from mad.api import BlackBox
from mad.attacks.mimicry import Mimicry, with_histograms
from mad.datasets import to_unit_range
from mad.defenses import Undefended
from mad.errors import MadError
from mad.pipeline import run
from mad.recoveries.first_model import first_model
from mad.storage.store import Store
from mad.testing import check_attack
from mad.training import logits_of
from mad.transfer import TransferSet

POOL = Blobs().images((1, 8, 8))


def steal(budget, pool=POOL, **how):
    whole = cell(attack=Mimicry(budget, **how))
    adversary = whole.adversary(CPU, None)
    api = BlackBox(QUADRANTS, Undefended(), (1, 8, 8), budget, CPU)
    return whole.attack.spend(api, pool, adversary).transfer, api, adversary


@pytest.mark.parametrize(("budget", "seeds"), [(4, 10), (10, 10), (60, 10), (30, 1)])
def test_the_images_of_its_own_are_asked_first_and_the_whole_budget_is_spent(budget, seeds):
    transfer, api, adversary = steal(budget, seeds=seeds, keep="all")
    first = min(budget, seeds)
    own = to_unit_range(adversary.labeled("attack.seeds", first)[0])
    assert torch.equal(transfer.images[:first], own)
    assert api.queries == budget == len(transfer)
    assert torch.allclose(transfer.answers, torch.softmax(QUADRANTS(transfer.images), dim=1), atol=1e-5)
    assert torch.equal(transfer.images, steal(budget, seeds=seeds, keep="all")[0].images)


@pytest.mark.parametrize("components", [0, 3])
def test_a_restyled_image_has_the_histogram_of_one_of_its_own_images(components):
    images = steal(60, seeds=10, components=components, keep="all")[0].images.flatten(1).sort(dim=1).values
    own, made = images[:10], images[10:]
    assert (made[:, None] == own).all(dim=2).any(dim=1).all()
    assert len(made.unique(dim=0)) > 1


def test_without_components_the_order_of_a_pools_pixels_stays():
    draw = torch.Generator().manual_seed(0)
    plain, own = torch.rand(5, 2, 4, 4, generator=draw), torch.rand(3, 2, 4, 4, generator=draw)
    made = with_histograms(plain, own, draw)
    assert made.shape == plain.shape
    for channel in range(2):
        for before, after in zip(plain[:, channel].flatten(1), made[:, channel].flatten(1), strict=True):
            apart = before.sort().values.diff().min()
            assert apart < 1e-4 or torch.equal(before.argsort(), after.argsort())
    # A histogram belongs to one image: both channels' values are those of the same one.
    values = own.flatten(2).sort(dim=2).values
    found = made.flatten(2).sort(dim=2).values
    assert all(any(torch.equal(one, other) for other in values) for one in found)


def test_projected_images_look_like_its_own_in_mean_and_deviation(monkeypatch):
    monkeypatch.setattr("mad.attacks.mimicry.with_histograms", lambda images, own, draw: images)
    images = steal(210, seeds=10, components=4, keep="all")[0].images.flatten(1).double()
    own, made = images[:10], images[10:]
    middle = own.mean(dim=0)
    turn = torch.linalg.svd(own - middle, full_matrices=False)[2][:4]
    assert torch.allclose((made - middle) @ turn.T @ turn, made - middle, atol=1e-5)  # nothing outside these
    ours, theirs = ((some - middle) @ turn.T for some in (made, own))
    assert torch.allclose(ours.mean(dim=0), torch.zeros(4).double(), atol=1e-4)
    assert torch.allclose(ours.std(dim=0, correction=0), theirs.std(dim=0, correction=0), rtol=1e-3)


def test_colour_streams_and_a_pool_whose_first_images_are_all_alike(monkeypatch):
    monkeypatch.setattr("mad.attacks.mimicry.SAMPLE", 3)
    monkeypatch.setattr("mad.attacks.mimicry.with_histograms", lambda images, own, draw: images)
    draw = torch.Generator().manual_seed(0)
    own = torch.rand(6, 3, 8, 8, generator=draw)
    pool = torch.cat([torch.full((3, 3, 8, 8), 0.5), torch.rand(4, 3, 8, 8, generator=draw)])
    made = torch.empty(len(pool), 3, 8, 8)
    Mimicry(10, seeds=6, components=4).restyle(pool, torch.arange(len(pool)), own, 0, made)
    assert torch.allclose(made, own.mean(dim=0).expand_as(made), atol=1e-5)  # nothing is known of its deviations
    same = torch.empty_like(made)
    Mimicry(10, seeds=6, components=4).restyle(Streamed(pool), torch.arange(len(pool)), own, 0, same)
    assert torch.equal(made, same)


def test_answers_that_a_first_model_of_its_own_images_contradicts_are_left_out():
    every, _, adversary = steal(80, seeds=10, keep="all")
    agreed = steal(80, seeds=10)[0]
    model = first_model(adversary, TransferSet(every.images, torch.arange(10), every.answers[:10]))
    same = logits_of(model, every.images, CPU).argmax(dim=1) == every.answers.argmax(dim=1)
    same[:10] = True
    assert agreed.rows.tolist() == same.nonzero().flatten().tolist()
    assert torch.equal(agreed.answers, every.answers[same])
    assert 10 < len(agreed) < 80


@pytest.mark.parametrize(("key", "value"), [("seeds", 0), ("components", -1), ("components", 2.5), ("keep", "near")])
def test_settings_out_of_range_are_refused_by_name(key, value):
    with pytest.raises(MadError, match=rf"attack\.{key}"):
        Mimicry(10, **{key: value})


def test_the_pool_must_hold_an_image_for_each_query_but_those_about_its_own():
    attack = Mimicry(60, seeds=10)
    assert attack.affordable(POOL[:50], "mine") == 60
    with pytest.raises(MadError, match="for 50 images"):
        attack.affordable(POOL[:49], "mine")


def test_it_steals_and_meets_the_contract(tmp_path):
    attack = Mimicry(60, seeds=20)
    check_attack(attack)
    record = run(cell(attack=attack), Store(tmp_path), CPU)[0]
    assert (record["attack"], record["queries"], record["recovery_knows"]) == ("mimicry", 60, "the victim's data")
