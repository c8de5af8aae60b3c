"""Gradient redirection against its definition: a gradient an image and class, and a linear program."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_surrogates import Wide
from torch import nn
from toys import CPU, Blobs, Tiny, build, cell, compose, program, victim

from mad import directional, simplex
from mad.cache import Cache
from mad.cached_network import CachedNetwork
from mad.context import AbsentContext
from mad.defenses import Context
from mad.defenses.distilled import DistilledSurrogate
from mad.defenses.gradient_redirection import DIRECTIONS, GradientRedirection
from mad.defenses.mad import Mad
from mad.defenses.surrogates import RandomSurrogate, VictimSurrogate
from mad.deployment import deploy, open_deployment
from mad.directional import Directional
from mad.errors import MadError
from mad.pipeline import run
from mad.storage.store import Store

RANDOM = RandomSurrogate()


class Net(nn.Module):
    """A convolution with batch norm, pooling, and two linear layers; ``extra`` is a last step."""

    def __init__(self, shape, classes, extra=nn.Identity):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(shape[0], 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.scale = nn.Parameter(torch.full((1,), 1.5))
        self.rest = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, classes), extra())

    def forward(self, images):
        return self.rest(self.scale * self.trunk(images))


class NoForward(torch.autograd.Function):
    """Doubles; differentiable backward, and twice, but not forward."""

    @staticmethod
    def forward(ctx, values):
        return 2 * values

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope


class Doubled(nn.Module):
    def forward(self, values):
        return NoForward.apply(values)


class OnlyForward(nn.Module):
    """Cannot be differentiated at all."""

    def forward(self, values):
        return values + torch.from_numpy(np.tanh(values.detach().numpy()))


def images(count=6, shape=(1, 8, 8)):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(5))


def posteriors(count=6, classes=4, seed=1):
    return torch.softmax(3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed)), dim=1)


def context(architecture=Net, classes=4, seed=0, cache=None, store=None):
    toy = victim(classes, architecture=architecture)
    return Context(toy, toy.untrained(seed=0, purpose="victim"), seed, CPU, store, cache)


def ready(direction, surrogate=RANDOM, epsilon=0.5, here=None, **settings):
    return GradientRedirection(epsilon, surrogate, direction, **settings).prepared(here or context())


def gradients(network, image):
    """Return G (K, D): of each class's log-likelihood with respect to every weight, in the order of parameters()."""
    leaves = [value.requires_grad_() for value in network.parameters()]
    scores = torch.log_softmax(network(image.unsqueeze(0)), dim=1)[0]
    rows = [torch.autograd.grad(score, leaves, retain_graph=True) for score in scores]
    for leaf in leaves:
        leaf.requires_grad_(False)
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


@pytest.mark.parametrize("extra", [nn.Identity, Doubled], ids=["forward", "backward"])
@pytest.mark.parametrize("given", [False, True])
def test_directional_derivatives_are_their_definition(extra, given):
    network = Net((1, 8, 8), 4, extra).double().eval().requires_grad_(False)
    direction = {name: torch.randn_like(value) for name, value in network.named_parameters()} if given else None
    found = Directional(network, images(1).double(), direction)
    assert found._forward_mode == (extra is nn.Identity)
    z = torch.cat([value.flatten() for value in (direction or {}).values()]) if given else None
    with torch.no_grad():
        scores = found(images().double())
    for image, row in zip(images().double(), scores, strict=True):
        g = gradients(network, image)
        assert torch.allclose(row, g.sum(dim=1) if z is None else g @ z, atol=1e-9)


def test_both_ways_to_differentiate_agree_in_larger_batches(monkeypatch):
    monkeypatch.setattr(directional, "AT_ONCE", 4)
    found = Directional(Net((1, 8, 8), 4).eval(), images(1))
    one = found(images(11))
    found._forward_mode = False
    assert torch.allclose(found(images(11)), one, atol=1e-5)


def test_a_network_without_derivatives_is_refused():
    class Odd(Net):
        def __init__(self, shape, classes):
            super().__init__(shape, classes, OnlyForward)

        def forward(self, images):
            return super().forward(images).detach()

    with pytest.raises(MadError, match="Odd has no second derivatives"):
        Directional(Odd((1, 8, 8), 4), images(1))


def slow_direction(defense, network, g, y, here):
    """Return z (D,) of one image from its definition."""
    if defense.direction == "all_ones":
        return torch.ones(g.shape[1])
    if defense.direction == "min_inner_product":
        return -g.T @ y
    if defense.direction == "random":
        scores = bare(defense)
        return torch.cat([getattr(scores, f"z{number}").flatten() for number in range(len(scores._names))])
    pictures, labels = defense.watermark(here)
    return sum(gradients(network, image)[label] for image, label in zip(pictures, labels, strict=True)) / len(labels)


def bare(defense):
    scores = defense._scores
    return scores.network if isinstance(scores, CachedNetwork) else scores


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("epsilon", [0.4, 1.2])
def test_no_allowed_answer_pushes_further(direction, epsilon):
    here = context()
    defense, clean = ready(direction, epsilon=epsilon, here=here, triggers=5), posteriors()
    network = RANDOM.ready(here)
    answers = defense(images(), clean)
    for image, y, q in zip(images(), clean, answers, strict=True):
        g = gradients(network, image)
        scores = g @ slow_direction(defense, network, g, y, here)
        best = program(scores.double().numpy(), y.double().numpy(), epsilon)
        assert abs((scores @ q).item() - best) < 1e-4 * scores.abs().max().item()


def test_random_directions_are_the_seeds():
    first, again, other = (bare(ready("random", here=context(seed=seed))) for seed in (0, 0, 1))
    assert torch.equal(first.z0, again.z0)
    assert not torch.allclose(first.z0, other.z0)
    assert abs(first.z3.std() - 1) < 0.5


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_all_strengths_share_one_pass(direction):
    here, calls = context(cache=Cache()), []
    for epsilon in (0.1, 0.5, 1.0):
        defense = ready(direction, epsilon=epsilon, here=here)
        inner = defense._scores.network
        forward = inner.forward
        inner.forward = lambda given, forward=forward: (calls.append(len(given)), forward(given))[1]
        alone = ready(direction, epsilon=epsilon)
        assert torch.equal(defense(images(), posteriors()), alone(images(), posteriors()))
    assert calls == [6]


def test_min_inner_product_shares_its_pass_with_mad():
    here = context(cache=Cache())
    assert (
        ready("min_inner_product", here=here)._scores._name == Mad(0.5, RANDOM, "all").prepared(here)._surrogate._name
    )


@pytest.mark.parametrize("direction", ["all_ones", "min_inner_product"])
def test_without_a_direction_the_least_likely_class_gains(direction):
    here, clean = context(), posteriors()
    if direction == "min_inner_product":  # at y = p there is no clean gradient
        clean = torch.softmax(here.model(images()), dim=1).detach()
        defense = ready(direction, VictimSurrogate(), here=here)
    else:
        defense = ready(direction, here=here)
        defense._scores.network.rest[3].weight.zero_()  # dead: all derivatives of the logits are equal
        defense._scores.network.rest[1].weight.zero_()
        defense._scores.network.rest[1].bias.zero_()
    answers = defense(images(), clean)
    assert torch.equal((answers - clean).argmax(dim=1), clean.argmin(dim=1))
    assert torch.allclose(simplex.l1(answers, clean), torch.tensor(0.5), atol=1e-5)


def test_all_ones_over_one_layer_is_refused():
    with pytest.raises(MadError, match="direction=all_ones changes no posterior of surrogate random: take"):
        ready("all_ones", here=context(Tiny))
    for direction in ("min_inner_product", "random", "watermark"):
        ready(direction, here=context(Tiny))
    ready("all_ones", RandomSurrogate(Wide), here=context(Tiny))


def test_settings_are_checked():
    with pytest.raises(MadError, match=r"defense.direction must be one of all_ones, .*got 'up'"):
        GradientRedirection(0.5, direction="up")
    with pytest.raises(MadError, match=r"defense.triggers must be .*got 0"):
        GradientRedirection(0.5, triggers=0)
    with pytest.raises(MadError, match=r"defense.outliers are images of direction=watermark"):
        GradientRedirection(0.5, outliers=Blobs())
    with pytest.raises(MadError, match=r"surrogate.queries"):
        DistilledSurrogate(queries=0)
    with pytest.raises(MadError, match=r"surrogate.epochs"):
        DistilledSurrogate(epochs=0)


def test_a_watermark_is_learned_from_the_answers():
    """A few steps on defended answers raise the likelihood of the secret labels more than steps on clean ones."""
    here = context()
    defense = ready("watermark", epsilon=1.0, here=here, triggers=10, outliers=Blobs())
    pictures, labels = defense.watermark(here)
    assert pictures.shape == (10, 1, 8, 8)
    gained = []
    for answer in (defense, lambda _, clean: clean):
        network = RANDOM.ready(here).requires_grad_()
        before = F.cross_entropy(network(pictures), labels)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        for batch in images(200).split(20):
            clean = torch.softmax(here.model(batch), dim=1).detach()
            optimizer.zero_grad()
            F.cross_entropy(network(batch), answer(batch, clean)).backward()
            optimizer.step()
        gained.append((before - F.cross_entropy(network(pictures), labels)).item())
    assert gained[0] > gained[1] + 0.01


POOL = Blobs(size=60, name="guess")


def test_a_cell_end_to_end(tmp_path):
    defense = GradientRedirection(0.5, DistilledSurrogate(POOL, epochs=2))
    record = run(cell(victim=victim(architecture=Wide), defense=defense), Store(tmp_path), CPU)[0]
    assert record["surrogate"] == "distilled"
    assert record["surrogate_pool"] == "guess"
    assert 0 < record["l1_mean"] <= 0.5 + 1e-5


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_export_needs_no_pool(direction, tmp_path):
    outliers = POOL if direction == "watermark" else None
    toy = victim(architecture=Wide)
    defense = GradientRedirection(0.5, DistilledSurrogate(POOL, epochs=1), direction, outliers=outliers)
    deployment = deploy(toy, defense)
    deployment.export(tmp_path / "api")
    some = images()
    assert torch.allclose(open_deployment(tmp_path / "api").session()(some), deployment.session()(some), atol=1e-6)
    absent = AbsentContext(toy, deployment.model, 0, CPU)
    GradientRedirection(0.5, DistilledSurrogate(None), direction, outliers=outliers and "nowhere").prepared(absent)


def test_the_command_line_takes_pools():
    words = ["defense=gradient_redirection", "defense.direction=watermark", "defense/outliers=letters"]
    defense = build(compose(*words, "defense/surrogate/pool=digits", "pool.size=50").defense)
    assert defense.outliers.name == "letters"
    assert defense.surrogate.pool.name == "digits"
    plain = build(compose("defense=gradient_redirection").defense)
    assert plain == GradientRedirection(0.95)
    assert build(compose("defense=mad", "defense/surrogate=distilled").defense).surrogate == DistilledSurrogate()
