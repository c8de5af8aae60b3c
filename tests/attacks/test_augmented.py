"""The attack that asks about a few images and random changes of them."""

import pytest
import torch
from torch import nn
from toys import CPU, Blobs, cell

from mad.api import BlackBox
from mad.attacks.augmented import Augmented
from mad.attacks.base import drawn
from mad.augmentation import warped
from mad.datasets import to_unit_range
from mad.defenses import Undefended
from mad.errors import MadError
from mad.pipeline import run
from mad.storage.store import Store
from mad.testing import check_attack

POOL = Blobs().images((1, 8, 8))


QUADRANTS = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()).eval()  # its class is the brightest quadrant


def steal(budget, seed=0, model=None, **how):
    whole = cell(attack=Augmented(budget, **how), seed=seed)
    model = model or whole.victim.untrained(seed=0, purpose="victim")
    api = BlackBox(model, Undefended(), (1, 8, 8), budget, CPU)
    return whole.attack.spend(api, POOL, whole.adversary(CPU, None)).transfer, api, model, whole


@pytest.mark.parametrize(("budget", "seeds"), [(1, 5), (5, 5), (12, 5), (40, 1), (1100, 7), (1100, 1090)])
def test_the_seeds_are_asked_as_they_are_and_then_changes_of_each_in_turn(budget, seeds, monkeypatch):
    monkeypatch.setattr("mad.attacks.augmented.batch_limit", lambda *given: 16)
    if seeds > len(POOL):
        monkeypatch.setitem(globals(), "POOL", POOL.repeat(1 + seeds // len(POOL), 1, 1, 1))
    transfer, api, model, whole = steal(budget, seeds=seeds, turn=0, scale=0, move=0, bend=0.02)
    assert api.queries == budget == len(transfer)
    first = min(seeds, budget)
    rows = drawn(POOL, whole.adversary(CPU, None), first)
    original = to_unit_range(POOL[rows])
    assert torch.equal(transfer.images[:first], original)
    parents = original[torch.arange(budget) % first]
    apart = (transfer.images - parents).flatten(1).abs().amax(dim=1)
    assert (apart[first:] > 0).all()
    if 1 < first < budget:  # a changed copy is nearer to its own image than to the next one
        own, next_one = (
            (transfer.images - each).flatten(1).abs().mean(dim=1) for each in (parents, parents.roll(1, 0))
        )
        assert (own < next_one)[first:].double().mean() > 0.95
    assert torch.allclose(transfer.answers, torch.softmax(model(transfer.images), dim=1), atol=1e-5)


def test_the_seed_draws_it_and_batches_do_not_repeat_their_changes(monkeypatch):
    monkeypatch.setattr("mad.attacks.augmented.batch_limit", lambda *given: 16)
    images = steal(64, seeds=16)[0].images
    assert torch.equal(images, steal(64, seeds=16)[0].images)
    assert not torch.equal(images, steal(64, seeds=16, seed=1)[0].images)
    assert not torch.equal(images[16:32], images[32:48])


def test_no_change_asks_the_seeds_again_and_a_mixture_lies_between_two():
    still = {"turn": 0, "scale": 0, "move": 0, "bend": 0}
    images = steal(40, seeds=10, **still)[0].images
    assert torch.equal(images, images[:10].repeat(4, 1, 1, 1))
    found = steal(40, seeds=2, mix=1, **still)[0].images
    one, other = found[:2].flatten(1)
    direction = other - one
    shares = (found.flatten(1) - one) @ direction / (direction @ direction)
    assert torch.allclose(one + shares[:, None] * direction, found.flatten(1), atol=1e-5)
    assert shares.min() >= -1e-6
    assert shares.max() <= 1 + 1e-6
    assert ((shares > 0.02) & (shares < 0.98)).sum() > 5


@pytest.mark.parametrize(("budget", "seeds"), [(4, 10), (60, 10)])
def test_copies_that_were_answered_otherwise_are_left_out(budget, seeds):
    every = steal(budget, model=QUADRANTS, seeds=seeds, turn=180)[0]
    near, api, _, _ = steal(budget, model=QUADRANTS, seeds=seeds, turn=180, keep="near")
    top = QUADRANTS(every.images).argmax(dim=1).tolist()
    kept = [row for row in range(budget) if top[row] == top[row % seeds]]
    assert near.rows.tolist() == kept
    assert torch.equal(near.answers, every.answers[kept])
    assert api.queries == budget
    assert len(kept) < budget or budget <= seeds


@pytest.mark.parametrize(("budget", "seeds"), [(4, 10), (60, 10)])
def test_the_images_by_themselves_are_what_is_trained_on_and_all_queries_are_spent(budget, seeds):
    every = steal(budget, seeds=seeds)[0]
    only, api, _, _ = steal(budget, seeds=seeds, keep="seeds")
    first = min(budget, seeds)
    assert only.rows.tolist() == list(range(first))
    assert torch.equal(only.answers, every.answers[:first])
    assert api.queries == budget


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seeds", 0),
        ("turn", 181),
        ("scale", 1),
        ("scale", -0.1),
        ("move", 2),
        ("bend", "far"),
        ("mix", 1.1),
        ("source", "own"),
        ("keep", "far"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(key, value):
    with pytest.raises(MadError, match=rf"attack\.{key}"):
        Augmented(10, **{key: value})


def test_the_pool_must_hold_the_seeds_only():
    attack = Augmented(10_000, seeds=10)
    assert attack.affordable(POOL[:10], "mine") == 10_000
    with pytest.raises(MadError, match=r"for 10 images"):
        attack.affordable(POOL[:9], "mine")


@pytest.mark.parametrize(("source", "knows"), [("pool", ""), ("victim", "the victim's data")])
def test_it_steals_and_meets_the_contract(tmp_path, source, knows):
    attack = Augmented(60, seeds=20, source=source)
    check_attack(attack)
    record = run(cell(attack=attack), Store(tmp_path), CPU)[0]
    assert record["attack"] == "augmented"
    assert record["queries"] == 60
    assert (record["recovery_knows"] or "") == knows


@pytest.mark.parametrize(("budget", "seeds"), [(10, 20), (30, 20)])
def test_a_thief_with_images_of_the_victims_kind_asks_about_them_and_about_no_image_of_the_pool(budget, seeds):
    whole = cell(attack=Augmented(budget, seeds=seeds, source="victim", turn=0, scale=0, move=0, bend=0))
    adversary = whole.adversary(CPU, None)
    api = BlackBox(whole.victim.untrained(seed=0, purpose="victim"), Undefended(), (1, 8, 8), budget, CPU)
    images = whole.attack.spend(api, POOL[:1], adversary).transfer.images
    first = min(budget, seeds)
    own = to_unit_range(adversary.labeled("attack.seeds", first)[0])
    assert torch.equal(images, own.repeat(2, 1, 1, 1)[:budget])
    assert whole.attack.affordable(POOL[:1], "mine") == budget
    assert cell(attack=Augmented(budget)).adversary(CPU, None).victim is None


def test_more_seeds_than_the_victim_has_images():
    whole = cell(attack=Augmented(1000, seeds=500, source="victim"))
    api = BlackBox(whole.victim.untrained(seed=0, purpose="victim"), Undefended(), (1, 8, 8), 1000, CPU)
    with pytest.raises(MadError, match=r"attack\.seeds=500 is above the 200 images of victim toy"):
        whole.attack.spend(api, POOL, whole.adversary(CPU, None))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 14)])
def test_a_turn_a_size_and_a_move_are_those_of_one_image_at_a_time(shape):
    ndimage = pytest.importorskip("scipy.ndimage")
    images = torch.rand(6, *shape, generator=torch.Generator().manual_seed(1))
    turn, scale, move = 40.0, 0.5, 0.2
    found = warped(images, torch.Generator().manual_seed(5), turn, scale, move, 0)
    draw = torch.Generator().manual_seed(5)
    angles = turn * (2 * torch.rand(6, generator=draw) - 1) * torch.pi / 180
    sizes = (torch.log(torch.tensor(1 + scale)) * (2 * torch.rand(6, generator=draw) - 1)).exp()
    moves = move * (2 * torch.rand(2, 6, generator=draw) - 1)
    height, width = shape[1:]
    down, right = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for image, made, angle, size, (across, along) in zip(images, found, angles, sizes, moves.T, strict=True):
        y, x = down - (height - 1) / 2, right - (width - 1) / 2
        source_x = (angle.cos() * x - angle.sin() * y) / size + (width - 1) / 2 + across * width
        source_y = (angle.sin() * x + angle.cos() * y) / size + (height - 1) / 2 + along * height
        for channel, given in zip(made, image, strict=True):
            twin = ndimage.map_coordinates(given.numpy(), [source_y.numpy(), source_x.numpy()], order=1, mode="nearest")
            assert torch.allclose(channel, torch.from_numpy(twin), atol=1e-4)


def test_a_bend_moves_no_point_farther_than_it_may_and_neighbors_alike():
    ramp = torch.linspace(0, 1, 28).expand(50, 1, 28, 28)
    bent = warped(ramp, torch.Generator().manual_seed(0), 0, 0, 0, 0.1)
    moved = (bent - ramp).abs()
    assert moved.max() <= 0.1 * 28 / 27 * 1.3  # a bicubic surface overshoots its points
    assert moved.max() > 0.05
    assert (bent[..., 1:, :] - bent[..., :-1, :]).abs().max() < 0.05
    assert not torch.equal(bent[0], bent[1])
