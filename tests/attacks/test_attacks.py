"""What an attack asks, and what a recovery keeps."""

import pytest
import torch
from toys import CPU, cell

from mad.api import BlackBox
from mad.attacks.base import ask
from mad.attacks.knockoff_nets import KnockoffNets
from mad.augmentation import augmented
from mad.datasets import batch_limit
from mad.defenses import Undefended
from mad.errors import MadError
from mad.recoveries import AsAnswered
from mad.recoveries.argmax import Argmax
from mad.seeds import generator

POOL = torch.randint(0, 256, (300, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def steal(budget, seed=0, **how):
    whole = cell(attack=KnockoffNets(budget, **how), seed=seed)
    model = whole.victim.untrained(seed=0, purpose="victim")
    api = BlackBox(model, Undefended(), (1, 8, 8), budget, CPU)
    return whole.attack.spend(api, POOL, whole.adversary(CPU)).transfer, api, model


@pytest.mark.parametrize("budget", [1, 40, 300])
def test_spends_exactly_the_budget_on_distinct_images(budget):
    transfer, api, model = steal(budget)
    assert api.queries == budget == len(transfer.rows.unique()) == len(transfer.answers)
    expected = torch.softmax(model(POOL[transfer.rows] / 255), dim=1)
    assert torch.allclose(transfer.answers, expected, atol=1e-6)
    assert transfer.images is POOL


def test_a_smaller_budget_is_a_prefix():
    small, large = steal(40)[0], steal(120)[0]
    assert torch.equal(small.rows, large.rows[:40])
    assert torch.allclose(small.answers, large.answers[:40], atol=1e-6)


def test_the_seed_draws_the_images():
    assert torch.equal(steal(40)[0].rows, steal(40)[0].rows)
    assert not torch.equal(steal(40)[0].rows, steal(40, seed=1)[0].rows)


def test_a_budget_above_the_pool_names_both():
    with pytest.raises(MadError, match=r"301.* 300 .*mine"):
        KnockoffNets(301).affordable(POOL, "mine")
    assert KnockoffNets(300).affordable(POOL, "mine") == 300


@pytest.mark.parametrize(("budget", "times", "images"), [(40, 4, 10), (41, 4, 11), (3, 5, 1), (300, 1, 300)])
def test_answers_about_one_image_are_averaged_and_each_is_charged(budget, times, images):
    transfer, api, _ = steal(budget, queries_per_image=times)
    assert (api.queries, len(transfer.rows), len(transfer.answers)) == (budget, images, images)
    once = steal(images)[0]
    assert torch.equal(transfer.rows, once.rows)
    assert torch.allclose(transfer.answers, once.answers, atol=1e-6)


def test_augmented_queries_are_answered_about_the_changed_image():
    transfer, api, model = steal(20, queries_per_image=4, augment="crop")
    again = steal(20, queries_per_image=4, augment="crop")[0]
    assert torch.equal(transfer.answers, again.answers)
    assert not torch.allclose(transfer.answers, steal(20, queries_per_image=4)[0].answers, atol=1e-3)
    draw = generator(0, "augmentation of queries")
    views = augmented((POOL[transfer.rows] / 255).repeat_interleave(4, dim=0), "crop", draw)
    expected = torch.softmax(model(views), dim=1).view(5, 4, -1).mean(dim=1)
    assert torch.allclose(transfer.answers, expected, atol=1e-6)
    assert api.queries == 20


def test_the_pool_must_hold_the_images_of_the_budget():
    assert KnockoffNets(600, queries_per_image=2).affordable(POOL, "mine") == 600
    with pytest.raises(MadError, match=r"601, for 301 images, .* 300 .*mine"):
        KnockoffNets(601, queries_per_image=2).affordable(POOL, "mine")


@pytest.mark.parametrize(("size", "expected"), [(300, 300), (50_000, 50_000), (60_000, 50_000)])
def test_no_budget_is_the_papers_or_the_pool(size, expected):
    assert KnockoffNets().affordable(torch.empty(size, 0), "mine") == expected


@pytest.mark.parametrize("budget", [0, -5, 2.5, True, "many"])
def test_a_budget_that_is_no_count_is_refused(budget):
    with pytest.raises(MadError, match=r"attack\.budget"):
        KnockoffNets(budget)


def test_large_images_are_asked_about_a_few_at_a_time():
    sent, answered = [], []

    class Server(torch.nn.Module):
        def forward(self, images):
            answered.append(len(images))
            return torch.zeros(len(images), 3)

    class Counting(BlackBox):
        def __call__(self, images):
            sent.append(len(images))
            return super().__call__(images)

    shape = (3, 224, 224)
    api = Counting(Server().eval(), Undefended(), shape, 150, CPU)
    pool = torch.zeros(1, dtype=torch.uint8).expand(150, *shape)
    ask(api, pool, torch.arange(150))
    assert sent == answered == [66, 66, 18]
    api.answer(torch.zeros(1).expand(150, *shape))
    assert answered == [66, 66, 18] * 2
    assert batch_limit(256, (3, 32, 32)) == 256
    assert batch_limit(256, (3, 4000, 4000)) == 1


def test_recoveries():
    answers = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
    assert torch.equal(AsAnswered()(answers), answers)
    kept = Argmax()(answers)
    assert torch.equal(kept, torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    assert kept.dtype == answers.dtype


def test_an_attack_that_knows_what_nobody_can_is_refused_by_name():
    class Oracle(KnockoffNets):
        knows = ("everything",)

    with pytest.raises(MadError, match="attack knockoff: what it knows must be one of"):
        cell(attack=Oracle(10))
