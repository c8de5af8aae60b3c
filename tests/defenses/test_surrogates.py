"""Every surrogate is frozen and answers for the victim's classes."""

import copy
import json
import re
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from toys import CPU, Blobs, Tiny, Warm, cell, trainer, victim

from mad.architectures.fast_resnet import FastResNet
from mad.architectures.resnet import ResNet18
from mad.cache import Cache
from mad.cached_network import CachedNetwork
from mad.defenses import Context
from mad.defenses.mad import Mad
from mad.defenses.surrogates import OneByOne, RandomSurrogate, Surrogate, TrainedSurrogate, VictimSurrogate
from mad.errors import MadError
from mad.pipeline import run
from mad.storage.store import Store

KINDS = {"random": RandomSurrogate(), "trained": TrainedSurrogate(trainer()), "victim": VictimSurrogate()}


class Normed(nn.Module):
    """Two convolutions with batch norms, dropout, and a linear layer."""

    def __init__(self, shape, classes):
        super().__init__()
        layers = [nn.Conv2d(shape[0], 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3, stride=2)]
        self.trunk = nn.Sequential(*layers, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.LazyLinear(9))
        self.head = nn.Linear(9, classes)
        self(torch.zeros(2, *shape))
        for layer in (self.trunk[1], self.trunk[4]):  # as far from the start as training would take them
            nn.init.normal_(layer.weight, 1, 0.5)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.1, 3)

    def forward(self, images):
        return self.head(self.trunk(images))


class Wide(nn.Sequential):
    """Two linear layers."""

    def __init__(self, shape, classes):
        super().__init__(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 12), nn.Linear(12, classes))


def context(folder=None, seed=0, cache=None):
    model = victim().untrained(seed=0, purpose="victim")
    return Context(victim(), model, seed, CPU, Store(folder) if folder else None, cache)


def weights(network):
    return torch.cat([value.flatten() for value in network.state_dict().values()])


def images():
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cache", [None, Cache()])
@pytest.mark.parametrize("gradient", ["last_layer", "all"])
def test_every_surrogate_is_remembered_where_cells_share(kind, cache, gradient):
    ready = Mad(0.5, KINDS[kind], gradient).prepared(context(cache=cache))
    assert isinstance(ready._surrogate, CachedNetwork) == (cache is not None)
    clean = torch.full((5, 4), 0.25)
    assert torch.equal(ready(images(), clean), ready(images(), clean))


@pytest.mark.parametrize("kind", KINDS)
def test_every_surrogate_is_frozen(kind):
    network = KINDS[kind].ready(context())
    assert not any(part.training for part in network.modules())
    assert not any(value.requires_grad for value in network.parameters())
    assert network(images()).shape == (5, 4)


def normed(seed=0, cache=None):
    toy = victim(architecture=Normed)
    return Context(toy, toy.untrained(seed=0, purpose="victim"), seed, CPU, cache=cache)


def train_mode(network, image):
    """The logits (1, K) of one image in train mode, but for dropout."""
    network = copy.deepcopy(network).train()
    network.trunk[7].eval()
    return network(image.unsqueeze(0))


def published_mad(network, image, y, epsilon):
    """The answer to one image, with a surrogate in train mode; the last layer's features cancel."""
    p, corners = torch.softmax(train_mode(network, image), dim=1)[0], torch.eye(len(y))
    values = [2 - 2 * torch.cosine_similarity(p - corner, p - y, dim=0) for corner in corners]
    best = corners[torch.stack(values).argmax()]
    return y + min(1, epsilon / (y - best).abs().sum().item()) * (best - y)


@pytest.mark.parametrize("kind", ["random", "trained"])
def test_as_published_a_surrogate_is_in_train_mode_with_one_image(kind):
    context, clean = normed(), torch.softmax(3 * torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    surrogate = Hostile(KINDS[kind].ready(context))
    plain = surrogate.network
    slow = torch.cat([train_mode(plain, image) for image in images()])
    network = surrogate.ready(context, as_published=True)
    assert torch.allclose(network(images()), slow, atol=1e-4)
    assert not torch.allclose(plain(images()), slow, atol=0.1)
    assert not any(part.training for part in network.modules())
    defense = Mad(0.5, surrogate, as_published=True).prepared(context)
    expected = torch.stack([published_mad(plain, *each, 0.5) for each in zip(images(), clean, strict=True)])
    answers = defense(images(), clean)
    assert torch.allclose(answers, expected, atol=1e-5)
    one_by_one = [defense(image.unsqueeze(0), y.unsqueeze(0)) for image, y in zip(images(), clean, strict=True)]
    assert torch.allclose(torch.cat(one_by_one), answers, atol=1e-5)  # whatever their batch
    assert torch.equal(defense(images(), clean), answers)  # and whatever was asked before


@pytest.mark.parametrize("architecture", [FastResNet, ResNet18])
def test_one_by_one_is_train_mode_at_batch_size_one(architecture):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = architecture((3, 32, 32), 10).double().eval().requires_grad_(False)
    some = torch.rand(2, 3, 32, 32, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    found = OneByOne(network)(some)
    assert network.trunk[2].running_mean is not None  # a copy was taken
    slow = torch.cat([copy.deepcopy(network).train()(image.unsqueeze(0)) for image in some])
    assert torch.allclose(found, slow, atol=1e-10)
    assert not torch.allclose(network(some), slow, atol=1e-2)


def test_as_published_networks_without_batch_norm_and_the_victim_itself_stay_as_they_are():
    for kind in KINDS.values():
        assert not isinstance(kind.ready(context(), as_published=True), OneByOne)
    here = normed()
    assert VictimSurrogate().ready(here, as_published=True) is here.model
    assert isinstance(RandomSurrogate(Normed).ready(context(), as_published=True), OneByOne)


def test_as_published_is_remembered_apart():
    cache, clean = Cache(), torch.full((5, 4), 0.25)
    for how in (False, True):
        alone, shared = (Mad(0.5, as_published=how).prepared(normed(cache=one)) for one in (None, cache))
        assert torch.equal(shared(images(), clean), alone(images(), clean))
        assert torch.equal(shared(images(), clean), alone(images(), clean))


class NormedLine(nn.Sequential):
    """A batch norm of features, of which one image has one each."""

    def __init__(self, shape, classes):
        super().__init__(nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


def test_as_published_where_one_image_has_no_variance_is_refused():
    toy = victim(architecture=NormedLine)
    here = Context(toy, toy.untrained(seed=0, purpose="victim"), 0, CPU)
    Mad(0.5).prepared(here)
    with pytest.raises(MadError, match=r"as_published=true: the batch norms of surrogate random .*more than 1 value"):
        Mad(0.5, as_published=True).prepared(here)
    with pytest.raises(ValueError, match="more than 1 value"):  # as the published code does
        here.model.train()(images()[:1])


@pytest.mark.parametrize("kind", ["random", "trained"])
def test_another_architecture(kind):
    surrogate = {"random": RandomSurrogate(Wide), "trained": TrainedSurrogate(trainer(), architecture=Wide)}[kind]
    assert isinstance(surrogate.ready(context()), Wide)
    assert isinstance(KINDS[kind].ready(context()), Tiny)


def test_the_victim_is_the_model_itself():
    here = context()
    assert VictimSurrogate().ready(here) is here.model


@pytest.mark.parametrize("kind", ["random", "trained"])
def test_the_seed_decides_and_never_gives_the_victim(kind):
    drawn = [weights(KINDS[kind].ready(context(seed=seed))) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], weights(victim().train(CPU)))


def test_a_trained_surrogate_starts_from_weights_of_its_own():
    still = TrainedSurrogate(trainer(optimizer="sgd", learning_rate=1e-9, epochs=1))
    started = weights(victim().untrained(seed=0, purpose="victim"))
    assert not torch.allclose(weights(still.ready(context(seed=0))), started, atol=1e-2)


def test_a_trained_surrogate_starts_untrained_whatever_the_factory_loads():
    still = TrainedSurrogate(trainer(optimizer="sgd", learning_rate=1e-9, epochs=1), architecture=Warm)
    assert not torch.allclose(still.ready(context()).head.weight, Warm((1, 8, 8), 4).head.weight, atol=1e-2)


def test_a_trained_surrogate_has_learned():
    split = Blobs().test()
    network = KINDS["trained"].ready(context())
    assert (network(split.images / 255).argmax(dim=1) == split.labels).double().mean() > 0.9


def test_a_trained_surrogate_is_trained_once_and_kept(tmp_path, fits):
    first = KINDS["trained"].ready(context(tmp_path))
    assert torch.equal(weights(KINDS["trained"].ready(context(tmp_path))), weights(first))
    assert fits == ["victim surrogate"]
    (facts,) = tmp_path.glob("victims/surrogate/*/victim.json")
    assert json.loads(facts.read_text())["sha256"]
    TrainedSurrogate(trainer(), dataset=Blobs(size=100)).ready(context(tmp_path))
    TrainedSurrogate(trainer(), epochs=2).ready(context(tmp_path))
    assert len(fits) == 3


def test_epochs_out_of_range_are_refused_at_once():
    with pytest.raises(MadError, match="epochs"):
        TrainedSurrogate(trainer(), epochs=0)


@pytest.mark.parametrize("dataset", [Blobs(5), Blobs(3), Blobs(shape=(1, 9, 9)), Blobs(shape=(3, 8, 8))])
def test_a_data_set_that_does_not_fit_is_refused_before_training(dataset, fits):
    defense = Mad(0.5, TrainedSurrogate(trainer(), dataset=dataset))
    with pytest.raises(MadError, match=r"blobs has .* classes .*toy needs 4 of \(1, 8, 8\)") as caught:
        cell(defense=defense)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(MadError, match="choose another"):
        defense.prepared(context())
    assert fits == []


@dataclass(frozen=True)
class Hostile(Surrogate):
    """Builds whatever it was told to."""

    name = "hostile"
    network: nn.Module

    def build(self, context):
        return self.network


class Pair(nn.Module):
    """Answers with two tensors."""

    def forward(self, images):
        return images, images


def half_training():
    inner = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(64, 4), nn.Dropout()))
    inner.eval()[1][1].train()
    return inner


HOSTILE = {
    "train mode": (Tiny((1, 8, 8), 4), "train mode"),
    "a part in train mode": (half_training(), "train mode"),
    "more classes": (Tiny((1, 8, 8), 5).eval(), r"\(2, 5\).*\(2, 4\)"),
    "one class": (Tiny((1, 8, 8), 1).eval(), r"\(2, 1\).*\(2, 4\)"),
    "features": (nn.Identity().eval(), r"\(2, 1, 8, 8\)"),
    "one row": (nn.Sequential(nn.Flatten(0), nn.Linear(128, 4)).eval(), r"\(4,\)"),
    "two tensors": (Pair().eval(), "tuple"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_surrogate_is_refused(kind):
    network, words = HOSTILE[kind]
    with pytest.raises(MadError, match=words):
        Mad(0.5, Hostile(network)).prepared(context())


def test_gradients_are_switched_off():
    network = Tiny((1, 8, 8), 4).eval()
    assert network.head.weight.requires_grad
    Mad(0.5, Hostile(network)).prepared(context())
    assert not network.head.weight.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_names_its_surrogate(kind, tmp_path):
    record = run(cell(defense=Mad(0.5, KINDS[kind])), Store(tmp_path), CPU)[0]
    assert record["surrogate"] == kind
    assert record["defense_settings"] == ("" if kind == "random" else f"surrogate={kind}")


def test_settings_tell_surrogates_apart(tmp_path):
    surrogate = TrainedSurrogate(trainer(), epochs=3, dataset=Blobs(size=100), architecture=Wide)
    record = run(cell(defense=Mad(0.5, surrogate)), Store(tmp_path), CPU)[0]
    shown = re.sub(r" source=\w{8}", "", record["defense_settings"])  # of the toy classes, which are no part of mad
    assert shown == "surrogate=trained epochs=3 dataset=blobs size=100 architecture=wide"


def test_the_victim_as_surrogate_leaves_no_direction():
    """At p = y nothing can be turned: every answer is mixed with its least likely class."""
    clean = torch.softmax(context().model(images()), dim=1).detach()
    answers = Mad(0.5, VictimSurrogate()).prepared(context())(images(), clean)
    assert torch.equal((answers - clean).argmax(dim=1), clean.argmin(dim=1))
