"""The adversary that trains while it queries, and what is measured of it."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import CPU, Blobs, Tiny, cell, trainer, victim

from mad.adversary import Adversary
from mad.api import BlackBox
from mad.attacks.knockoff_nets import KnockoffNets
from mad.attacks.online import Online
from mad.cache import Cache
from mad.defenses import Context, Undefended
from mad.defenses.mad import Mad
from mad.defenses.surrogates import AdversarySurrogate
from mad.errors import MadError
from mad.gradient_probe import POINTS, GradientProbe, deviations
from mad.knockoff import Knockoff
from mad.pipeline import run
from mad.recoveries import AsAnswered
from mad.recoveries.argmax import Argmax
from mad.storage.store import Store

POOL = Blobs().images((1, 8, 8))
GRADIENTS = ("last_layer", "all")


class Deep(nn.Sequential):
    """Two layers with a kink between them."""

    def __init__(self, shape, classes):
        hidden = nn.Linear(torch.Size(shape).numel(), 12)
        super().__init__(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(12, classes))


def adversary(recovery=None, architecture=Deep):
    recipe = Knockoff(trainer(), architecture=architecture)
    parts = {"recovery": recovery or AsAnswered(), "shape": (1, 8, 8), "classes": 4, "seed": 0, "device": CPU}
    return Adversary(knockoff=recipe, **parts)


def steal(budget=40, defense=None, **how):
    """Attack an untrained victim; return what is stolen, the API, the adversary and the probe."""
    who, model = adversary(how.pop("recovery", None)), victim().untrained(seed=0, purpose="victim")
    context = Context(victim(), model, 0, CPU, cache=Cache(), live=lambda: who.live)
    probe = GradientProbe(who, Blobs().test(), budget)
    api = BlackBox(model, (defense or Undefended()).prepared(context), (1, 8, 8), budget, CPU, probe)
    return Online(budget, **how).spend(api, POOL, who), api, who, probe


def white_box(epsilon, gradient="last_layer"):
    return Mad(epsilon, AdversarySurrogate(), gradient)


def histogram(columns, name=""):
    return columns[f"deviation{name}_histogram"]


def flat(network):
    return torch.cat([value.detach().flatten() for value in network.parameters()])


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_spends_exactly_the_budget_on_the_images_of_knockoff(batch_size):
    stolen, api, who, probe = steal(40, batch_size=batch_size)
    transfer = stolen.transfer
    assert api.queries == 40 == len(transfer.rows.unique()) == len(transfer.answers)
    other = BlackBox(who.untrained().eval(), Undefended(), (1, 8, 8), 40, CPU)
    assert torch.equal(transfer.rows, KnockoffNets(40).spend(other, POOL, who).transfer.rows)
    assert transfer.images is POOL
    assert stolen.network is who.live
    assert not stolen.network.training
    assert sum(histogram(probe.columns())) == 40


@pytest.mark.parametrize("recovery", [AsAnswered(), Argmax()])
def test_the_steps_are_plain_gradient_descent(recovery):
    stolen, _, who, _ = steal(30, white_box(0.8), batch_size=4, learning_rate=0.1, recovery=recovery)
    slow = who.untrained()
    images, targets = POOL[stolen.transfer.rows] / 255, recovery(stolen.transfer.answers)
    for some in torch.arange(30).split(4):
        slow.zero_grad()
        (-targets[some] * slow(images[some]).log_softmax(dim=1)).sum(dim=1).mean().backward()
        with torch.no_grad():
            for value in slow.parameters():
                value -= 0.1 * value.grad
    assert torch.allclose(flat(slow), flat(stolen.network), atol=1e-6)
    assert not torch.allclose(flat(slow), flat(who.untrained()), atol=1e-2)


def test_same_seed_same_bits():
    first, again = (steal(40, white_box(0.8, "all")) for _ in range(2))
    assert torch.equal(first[0].transfer.answers, again[0].transfer.answers)
    assert torch.equal(flat(first[0].network), flat(again[0].network))
    assert first[3].columns() == again[3].columns()


def test_no_defense_turns_nothing():
    columns = steal(40)[3].columns()
    for name in ("", "_last_layer"):
        assert columns[f"deviation{name}_mean"] == 0
        assert histogram(columns, name) == [40] + [0] * 179


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 2.0])
def test_the_angle_is_that_of_the_two_gradients(epsilon):
    network, draw = Deep((1, 8, 8), 4).eval().double(), torch.Generator().manual_seed(1)
    image = torch.rand(1, 1, 8, 8, generator=draw, dtype=torch.double)
    clean, vertex = torch.softmax(torch.randn(1, 4, generator=draw).double(), dim=1), torch.eye(4).double()[:1]
    given = torch.lerp(clean, vertex, epsilon / 2)
    found = deviations(network, image, clean, given)
    for angle, weights in zip(found, (list(network.parameters()), [network[-1].weight]), strict=True):
        u, a = (
            torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(network(image), q), weights)])
            for q in (clean, given)
        )
        assert angle.item() == pytest.approx(math.degrees(torch.acos(F.cosine_similarity(u, a, dim=0))), abs=1e-6)
    assert all(value.requires_grad for value in network.parameters())


@pytest.mark.parametrize("sure", [1, 30, 60, 400])
def test_the_angle_of_a_network_that_has_learned_its_answer(sure):
    """From a logit of 30 on, p - q is 0 or rounding in float32; the twin computes in float64."""
    network, image = Deep((1, 8, 8), 4).eval(), torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        network[-1].bias += torch.tensor([0.0, 0.0, sure, 0.0])
    clean, given = torch.tensor([[0.1, 0.2, 0.3, 0.4]]), torch.eye(4)[2:3]
    found, twin = deviations(network, image, clean, given), copy.deepcopy(network).double()
    p = torch.softmax(twin(image.double()), dim=1)
    gradients = []
    for target in (clean, given):
        step = p.detach() * target.double().sum() - target.double()
        step = step / step.abs().max()
        gradients.append(torch.autograd.grad((twin(image.double()) * step).sum(), list(twin.parameters())))
    u, a = (torch.cat([part.flatten() for part in gradient]) for gradient in gradients)
    assert found[0].item() == pytest.approx(math.degrees(torch.acos(F.cosine_similarity(u, a, dim=0))), abs=0.05)
    assert found[1] > 90


def test_an_answer_without_a_gradient_has_no_angle():
    who, even = adversary(architecture=Tiny), torch.full((1, 4), 0.25)
    who.live.requires_grad_(False)
    for value in who.live.parameters():
        value.zero_()
    probe = GradientProbe(who, Blobs().test(), 2)
    probe(torch.rand(1, 1, 8, 8), even, torch.eye(4)[:1])
    columns = probe.columns()
    assert columns["deviation_mean"] is None
    assert sum(histogram(columns)) == 0
    probe(torch.rand(1, 1, 8, 8), torch.eye(4)[:1], torch.eye(4)[:1])
    assert sum(histogram(probe.columns())) == 1


def test_a_small_angle_is_no_rounding():
    """At an angle of 1e-4 degrees the cosine is 1 in float32."""
    network, image = Tiny((1, 8, 8), 4).eval(), torch.rand(1, 1, 8, 8)
    with torch.no_grad():
        p = torch.softmax(network(image), dim=1)
    u, across = torch.tensor([[0.1, -0.1, 0, 0]]), torch.tensor([[0, 0, 1e-5, -1e-5]])
    found = deviations(network, image, p + u, p + u + across)
    assert found == pytest.approx([math.degrees(1e-4)] * 2, rel=0.05)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_surrogate_sees_every_step(gradient):
    """At each request it answers as a defense would that was made from the network as it is then."""
    who, model = adversary(), victim().untrained(seed=0, purpose="victim")
    context = Context(victim(), model, 0, CPU, cache=Cache(), live=lambda: who.live)
    defense = white_box(0.8, gradient).prepared(context)
    images, seen = POOL[:5] / 255, []

    @torch.no_grad()
    def compare(asked, clean, given):
        frozen = adversary()
        frozen.live.load_state_dict(who.live.state_dict())
        other = white_box(0.8, gradient).prepared(Context(victim(), model, 0, CPU, live=lambda: frozen.live))
        assert torch.allclose(given, other(asked, clean), atol=1e-6)
        seen.append(defense._surrogate(images))

    api = BlackBox(model, defense, (1, 8, 8), 20, CPU, compare)
    Online(20, learning_rate=0.5).spend(api, POOL, who)
    assert len({tuple(logits[0, :4].tolist()) for logits in seen}) == 20


def test_the_white_box_turns_further_than_the_random_surrogate():
    def mean(defense):
        return steal(100, defense)[3].columns()

    blind, seeing, whole = mean(Mad(0.8)), mean(white_box(0.8)), mean(white_box(0.8, "all"))
    assert seeing["deviation_last_layer_mean"] > blind["deviation_last_layer_mean"] + 1
    assert seeing["deviation_mean"] > blind["deviation_mean"] + 1
    assert whole["deviation_mean"] > blind["deviation_mean"] + 1


def test_more_epsilon_turns_further_past_a_right_angle():
    means = [steal(50, white_box(epsilon, "all"))[3].columns()["deviation_mean"] for epsilon in (0.2, 0.8, 2)]
    assert means == sorted(means)
    assert means[-1] > 90


def test_the_test_loss_is_taken_along_the_way():
    stolen, _, who, probe = steal(200, learning_rate=0.05)
    columns = probe.columns()
    queries, losses = columns["test_loss_queries"], columns["test_loss"]
    budget = len(stolen.transfer)
    assert queries == [round(point * budget / POINTS) for point in range(POINTS + 1)]
    test = Blobs().test()
    for network, loss in ((who.untrained().eval(), losses[0]), (stolen.network, losses[-1])):
        expected = -network(test.images / 255).log_softmax(dim=1)[torch.arange(200), test.labels].mean()
        assert loss == pytest.approx(expected.item(), rel=1e-4)


def test_the_loss_falls_without_a_defense_and_rises_under_the_largest(tmp_path):
    def losses(defense):
        parts = {"attack": Online(200, learning_rate=0.01), "knockoff": Knockoff(trainer(), architecture=Deep)}
        return run(cell(defense=defense, **parts, probe=True), Store(tmp_path), CPU)[0]["test_loss"]

    plain, poisoned = losses(Undefended()), losses(white_box(2.0, "all"))
    assert plain[0] == poisoned[0]
    assert plain[-1] < plain[0] < poisoned[-1]


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_record(gradient, tmp_path, fits):
    whole = cell(defense=white_box(0.5, gradient), attack=Online(50), probe=True)
    record = run(whole, Store(tmp_path), CPU)[0]
    assert fits == ["victim toy"]
    assert run(whole, Store(tmp_path), CPU) == (record, True)
    assert (record["surrogate"], record["attack"], record["queries"]) == ("adversary", "online", 50)
    recipe = [record[f"knockoff_{name}"] for name in ("epochs", "optimizer", "learning_rate", "schedule", "min_steps")]
    assert recipe == [1, "sgd", 0.001, "constant", 0]
    assert sum(histogram(record)) == sum(histogram(record, "_last_layer")) == 50
    assert 0 < record["deviation_mean"] < 90


def test_other_attacks_are_refused_before_anything_is_trained(fits):
    with pytest.raises(MadError, match=r"^surrogate adversary .* attack knockoff trains none: take attack=online$"):
        cell(defense=white_box(0.5))
    assert cell(defense=white_box(0)).defense == Undefended()
    with pytest.raises(MadError, match="live network, got none"):
        white_box(0.5).prepared(Context(victim(), victim().untrained(seed=0, purpose="victim"), 0, CPU))
    assert fits == []


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": 1.5}, {"learning_rate": -1}, {"budget": 0}])
def test_wrong_settings(wrong):
    with pytest.raises(MadError, match=rf"attack\.{next(iter(wrong))}"):
        Online(**wrong)
