"""ActiveThief: what each round selects, and what it costs."""

from dataclasses import dataclass, replace

import pytest
import torch
from toys import CPU, Blobs, Streamed, cell, victim

from mad.api import BlackBox
from mad.attacks import TransferSet
from mad.attacks.activethief import STRATEGIES, ActiveThief, farthest
from mad.attacks.base import drawn
from mad.attacks.deepfool import distances
from mad.defenses import Undefended
from mad.errors import MadError
from mad.pipeline import run
from mad.recoveries import Recovery
from mad.storage.store import Store
from mad.testing import check_attack

POOL = torch.randint(0, 256, (300, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
SHORT = {"epochs": 2, "min_steps": 0, "rounds": 3}
EACH = pytest.mark.parametrize("strategy", STRATEGIES)


def steal(budget, seed=0, pool=POOL, **how):
    whole = cell(victim=victim(6), attack=ActiveThief(budget, **{**SHORT, **how}), seed=seed)
    api = BlackBox(whole.victim.untrained(seed=0, purpose="victim"), Undefended(), (1, 8, 8), budget, CPU)
    adversary = whole.adversary(CPU)
    found = whole.attack.spend(api, pool, adversary)
    assert found.network is None
    return found, adversary


def far_apart(points, centers, count):
    """Greedy k-center, from all distances."""
    chosen = []
    for _ in range(count):
        taken = torch.cat([centers, points[chosen]])
        gaps = (points.unsqueeze(1) - taken).norm(dim=2).amin(dim=1).tolist()
        chosen.append(max(set(range(len(points))) - set(chosen), key=gaps.__getitem__))
    return chosen


@pytest.mark.parametrize(("size", "held", "classes", "count"), [(40, 5, 3, 17), (9, 1, 2, 9), (30, 1100, 100, 6)])
def test_k_center_is_the_one_of_all_distances(size, held, classes, count):
    draw = torch.Generator().manual_seed(size)
    points = torch.rand(size, classes, generator=draw, dtype=torch.float64).softmax(dim=1)
    centers = torch.rand(held, classes, generator=draw, dtype=torch.float64).softmax(dim=1)
    found = farthest(points, centers, count)
    assert found.tolist() == far_apart(points, centers, count)
    assert len(found.unique()) == count


def test_k_center_takes_no_point_twice_where_all_are_one():
    points = torch.full((7, 4), 0.25)
    assert sorted(farthest(points, points[:1], 7).tolist()) == list(range(7))
    ends = torch.eye(3)[torch.tensor([0, 0, 1, 1, 2])]
    assert farthest(ends, ends[:1], 2).tolist() == [2, 4]


@pytest.mark.parametrize(
    ("strategy", "deepfool"), [*((strategy, None) for strategy in STRATEGIES), ("dfal", 30), ("dfal_k_center", 60)]
)
def test_the_rounds_are_the_plain_ones(strategy, deepfool):
    """The selection of each round, by the definitions, from a substitute that is trained on what was asked before."""
    found, adversary = steal(60, strategy=strategy, start=0.2, deepfool=deepfool, shortlist=40)
    rows, attack = found.transfer.rows, ActiveThief(60, **SHORT)
    assert torch.equal(rows[:12], drawn(POOL, adversary, 12))
    for turn in range(3):
        asked = rows[: 12 + 16 * turn]
        known = TransferSet(POOL, asked, found.transfer.answers[: len(asked)])
        net = adversary.train(known, f"substitute {turn + 1}", attack.trainer(adversary.knockoff.trainer))
        left = [row for row in drawn(POOL, adversary, None).tolist() if row not in asked.tolist()]
        with torch.no_grad():
            posteriors = net(POOL / 255).softmax(dim=1)
        sure = [(row.double() * row.double().log()).sum().item() for row in posteriors]
        if strategy == "uncertainty":
            expected = sorted(left, key=sure.__getitem__)
        elif strategy == "k_center":
            expected = [left[place] for place in far_apart(posteriors[left], posteriors[asked], 16)]
        else:
            top = net(POOL / 255).topk(2, dim=1).values
            left = sorted(left, key=(top[:, 0] - top[:, 1]).tolist().__getitem__)[:deepfool]
            moves = dict(zip(left, distances(net, POOL, torch.tensor(left), CPU).tolist(), strict=True))
            expected = sorted(left, key=moves.__getitem__)
        if strategy == "dfal_k_center":
            expected = [expected[place] for place in far_apart(posteriors[expected[:40]], posteriors[asked], 16)]
        assert rows[len(asked) : len(asked) + 16].tolist() == expected[:16]


@EACH
@pytest.mark.parametrize("budget", [1, 2, 7, 50, 300])
def test_spends_exactly_the_budget_on_distinct_images(strategy, budget):
    found, _ = steal(budget, strategy=strategy)
    first, asked = max(1, round(budget / 10)), found.columns["round_queries"]
    assert len(found.transfer.rows.unique()) == len(found.transfer.answers) == sum(asked) == budget
    assert asked[0] == first
    assert len(asked) <= 4
    assert max(asked[1:], default=0) == -(-(budget - first) // 3)
    model = cell(victim=victim(6)).victim.untrained(seed=0, purpose="victim")
    expected = torch.softmax(model(POOL[found.transfer.rows] / 255), dim=1)
    assert torch.allclose(found.transfer.answers, expected, atol=1e-6)


def test_a_stream_is_asked_about_the_same_images():
    rows = [
        steal(30, pool=pool, strategy="dfal_k_center", rounds=1)[0].transfer.rows for pool in (POOL, Streamed(POOL))
    ]
    assert torch.equal(*rows)


@EACH
def test_it_keeps_the_contract_of_attacks(strategy):
    check_attack(ActiveThief(40, strategy=strategy, **SHORT))


def test_candidates_bound_what_a_round_selects_from():
    attack, order = ActiveThief(candidates=20), torch.randperm(300)
    some = attack.possible(order, order[:50], 5, 1, seed=0)
    assert len(some) == len(some.unique()) == 20
    assert torch.isin(some, order[50:]).all()
    assert not torch.equal(some, attack.possible(order, order[:50], 5, 2, seed=0))
    assert len(attack.possible(order, order[:50], 70, 1, seed=0)) == 70  # enough for the round
    assert torch.equal(ActiveThief(candidates=None).possible(order, order[:50], 5, 1, seed=0), order[50:])
    assert len(steal(100, candidates=1)[0].transfer.rows.unique()) == 100


def test_a_substitute_learns_no_longer_than_the_knockoff(fits):
    final = cell().knockoff.trainer
    for epochs, steps, expected in ((3, 9, (3, 9)), (50, 5000, (8, 100))):
        recipe = ActiveThief(epochs=epochs, min_steps=steps).trainer(final.but(min_steps=100))
        assert (recipe.epochs, recipe.min_steps) == expected
        assert recipe.but(epochs=8, min_steps=100) == final.but(min_steps=100)
    steal(60)
    assert fits == ["substitute 1", "substitute 2", "substitute 3"]


def test_uncertain_images_are_asked_about_and_sure_ones_are_not():
    """Noise around one class is sure, images between two classes are not."""
    blobs = Blobs().images((1, 8, 8)).float()
    pool = torch.cat([blobs[:100], (blobs[:100] + blobs[1:101]) / 2]).to(torch.uint8)  # classes 0 to 3 in turn
    whole = cell(attack=ActiveThief(60, **{**SHORT, "epochs": 8}, strategy="uncertainty", start=0.5))
    api = BlackBox(whole.victim.train(CPU), Undefended(), (1, 8, 8), 60, CPU)
    rows = whole.attack.spend(api, pool, whole.adversary(CPU)).transfer.rows
    assert (rows[30:] >= 100).double().mean() > 0.9


@dataclass
class Learning(Recovery):
    """It notes the sizes of the transfer sets that it learns from."""

    name = "learning"
    seen = []  # noqa: RUF012  # shared by copies

    def prepare(self, adversary, transfer):
        self.seen.append(len(transfer))

    def __call__(self, answers, images=None):
        return answers


def test_a_recovery_that_learns_does_so_in_every_round(tmp_path):
    Learning.seen.clear()
    record, _ = run(cell(attack=ActiveThief(60, **SHORT), recovery=Learning()), Store(tmp_path), CPU)
    assert Learning.seen == [6, 24, 42, 60]
    assert record["round_queries"] == [6, 18, 18, 18]
    assert record["queries"] == 60
    assert record["learned"]


def test_a_killed_attack_goes_on_after_its_last_round(tmp_path, monkeypatch):
    whole = cell(attack=ActiveThief(100, **SHORT))
    expected = run(whole, Store(tmp_path / "whole"), CPU)[0]
    call, store, count = BlackBox.__call__, Store(tmp_path / "killed"), [0]

    def dying(self, images):
        count[0] += len(images)
        if count[0] > 70:
            raise KeyboardInterrupt
        return call(self, images)

    monkeypatch.setattr(BlackBox, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        run(whole, store, CPU)
    again = []
    monkeypatch.setattr(BlackBox, "__call__", lambda self, images: again.append(len(images)) or call(self, images))
    found = run(whole, store, CPU)[0]
    assert sum(again) == 30  # not the start and the first two rounds
    for name in ("stolen_accuracy", "agreement", "queries", "l1_mean_queries", "round_queries"):
        assert found[name] == pytest.approx(expected[name]), name


@pytest.mark.parametrize(
    "how",
    [
        *({"strategy": "random"}, {"start": 0}, {"start": 1.5}, {"rounds": 0}, {"epochs": 0}, {"min_steps": -1}),
        *({"candidates": 0}, {"shortlist": 2.5}, {"deepfool": 0}, {"budget": 0}),
    ],
)
def test_settings_out_of_range_are_refused(how):
    with pytest.raises(MadError, match=rf"attack\.{next(iter(how))}"):
        ActiveThief(**how)


def test_a_start_of_the_whole_budget_is_the_knockoffs_queries():
    found, adversary = steal(50, start=1.0)
    assert torch.equal(found.transfer.rows, drawn(POOL, adversary, 50))
    assert found.columns["round_queries"] == [50]
    assert replace(ActiveThief(50), strategy="dfal").affordable(POOL, "mine") == 50
