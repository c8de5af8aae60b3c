"""A stolen model and a deployment can be taken away, and work where neither data nor outputs are."""

import json
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from toys import CPU, Blobs, SmallNet, Tiny, trainer, victim

import mad
from mad.architectures.lenet import LeNet
from mad.architectures.mlp import MLP
from mad.defenses import Defense, Undefended
from mad.defenses.mad import Mad
from mad.defenses.mad_argmax import MadArgmax
from mad.defenses.mad_random import MadRandom
from mad.defenses.random_noise import RandomNoise
from mad.defenses.reverse_sigmoid import ReverseSigmoid
from mad.defenses.surrogates import RandomSurrogate, TrainedSurrogate, VictimSurrogate
from mad.defenses.top_k import TopK
from mad.deployment import deploy
from mad.errors import MadError
from mad.export import RECIPE, WEIGHTS

LAMBDA = lambda shape, classes: Tiny(shape, classes)  # noqa: E731
IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
DEFENSES = [
    Undefended(),
    Mad(0.8),
    Mad(0.8, gradient="all"),
    Mad(0.8, RandomSurrogate(partial(MLP))),
    Mad(0.8, VictimSurrogate(), solver="exact"),
    Mad(0.8, TrainedSurrogate(trainer(), dataset=Blobs(size=300, name="others"))),
    MadArgmax(0.8, TrainedSurrogate(trainer())),
    MadRandom(0.8),
    RandomNoise(0.5),
    ReverseSigmoid(beta=0.5),
    TopK(k=2),
]


@dataclass
class Tensed(Defense):
    """Prepare a tensor, a number and a network from the data."""

    name = "tensed"
    epsilon: float | None = 2.0
    of_data: bool = False

    def prepare(self, context):
        self._lean, self._share = torch.rand(context.victim.dataset.classes), torch.rand(()).item()
        self._by = "a text"
        if self.of_data:
            self._lean = context.victim.training_split().labels[:4].float()

    def perturb(self, images, clean):
        return clean + self._share * self._lean


@dataclass
class Secretive(Tensed):
    """Keep what it prepares where no export looks."""

    def prepare(self, context):
        self._held = {"lean": torch.rand(context.victim.dataset.classes)}

    def perturb(self, images, clean):
        return clean + self._held["lean"]


@dataclass
class Limited(Defense):
    """Answer dark images with the uniform posterior; what is dark is read from a trained network."""

    name = "limited"
    epsilon: float | None = 2.0
    how: str = "number"

    def prepare(self, context):
        def train(network):
            torch.nn.init.constant_(next(network.parameters()), 0.25)

        build = partial(context.victim.untrained, seed=0, purpose="limit")
        value = next(context.kept("limit", [self, context.victim], build, train).parameters()).max().item()
        held = {"number": np.float32(value), "list": [1, value, None], "dict": {"a": (value, np.int64(1))}}
        held["classes"] = {0: value, (1, None): "a"}
        self._wide, self._time = np.longdouble(1), np.timedelta64(1, "s")  # no JSON, and not needed
        self._limit = {**held, "array": np.array([value, 1]), "float": value}[self.how]

    def perturb(self, images, clean):
        found = {"list": lambda: self._limit[1], "dict": lambda: self._limit["a"][0], "array": lambda: self._limit[0]}
        found["classes"] = found["array"]
        limit = float(found.get(self.how, lambda: self._limit)())
        dark = images.flatten(1).mean(dim=1, keepdim=True) < limit
        return torch.where(dark, torch.full_like(clean, 1 / clean.shape[1]), clean)


@dataclass
class Counting(Defense):
    """Answer each client's first query as it is, and all others with the uniform posterior."""

    name = "counting"
    stateful = True
    epsilon: float | None = 2.0

    def prepare(self, context):
        self._shared = torch.zeros(())

    def begin(self):
        self._seen = 0

    def perturb(self, images, clean):
        self._seen += 1
        self._shared += 1
        return clean if self._seen == 1 else torch.full_like(clean, 1 / clean.shape[1])


def lenet(shape, classes, scale=1.0):
    """A network of a function."""
    return LeNet(shape=shape, classes=classes)


@pytest.mark.parametrize("defense", DEFENSES, ids=lambda each: f"{each.name} {getattr(each, 'surrogate', '')}"[:40])
def test_a_deployment_answers_as_before_without_data(defense, tmp_path, monkeypatch, fits):
    deployed = deploy(victim(), defense, seed=3)
    deployed.export(tmp_path / "away")
    assert sorted(each.name for each in (tmp_path / "away").iterdir()) == [RECIPE, WEIGHTS]
    fits.clear()
    for name in ("train", "test", "split"):
        monkeypatch.setattr(Blobs, name, None)
    opened = mad.open_deployment(tmp_path / "away")
    for ours, theirs in zip(deployed.session().answer(IMAGES), opened.session().answer(IMAGES), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
    assert fits == []
    assert (opened.victim.name, opened.victim.dataset.name, opened.seed) == ("toy", "blobs", 3)
    assert (tuple(opened.victim.dataset.shape), opened.victim.dataset.classes) == ((1, 8, 8), 4)
    assert opened.session(5).budget == 5
    with pytest.raises(MadError, match="data set blobs is not part of what was exported"):
        opened.victim.train(CPU)


def test_the_weights_are_those_that_were_served(tmp_path):
    deployed = deploy(victim(), Mad(0.8))
    deployed.export(tmp_path / "away")
    file = tmp_path / "away" / WEIGHTS
    recipe = json.loads((tmp_path / "away" / RECIPE).read_text())
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    assert set(tensors) == {"served.head.weight", "served.head.bias", "_surrogate.head.weight", "_surrogate.head.bias"}
    assert recipe["architecture"] == {"import": "toys:Tiny"}
    assert recipe["defense"]["fields"]["surrogate"]["new"] == "mad.defenses.surrogates:RandomSurrogate"
    tensors["_surrogate.head.weight"] *= -1
    save_file(tensors, file)
    with pytest.raises(MadError, match=r"weights.safetensors is damaged \(its checksum does not hold\): export"):
        mad.open_deployment(tmp_path / "away")


def test_of_a_data_set_name_classes_and_shape_travel(tmp_path):
    deploy(victim(), Mad(0.5, TrainedSurrogate(trainer(), dataset=Blobs(size=300, name="others")))).export(
        tmp_path / "a"
    )
    recipe = json.loads((tmp_path / "a" / RECIPE).read_text())
    found = recipe["defense"]["fields"]["surrogate"]["fields"]["dataset"]
    assert found == {"data": {"name": "others", "classes": 4, "shape": [1, 8, 8]}}
    assert "300" not in json.dumps(recipe)


def test_an_opened_deployment_can_be_exported_again(tmp_path):
    deploy(victim(), Mad(0.8), seed=3).export(tmp_path / "a")
    mad.open_deployment(tmp_path / "a").export(tmp_path / "b")
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()
    assert (tmp_path / "a" / RECIPE).read_text() == (tmp_path / "b" / RECIPE).read_text()


def test_what_a_defense_draws_travels_too(tmp_path):
    deployed = deploy(victim(), Tensed())
    deployed.export(tmp_path / "away")
    opened = mad.open_deployment(tmp_path / "away")
    assert torch.equal(deployed.session()(IMAGES), opened.session()(IMAGES))
    assert opened.defense._by == "a text"


@pytest.mark.parametrize("how", ["float", "number", "list", "dict", "array", "classes"])
def test_what_only_some_images_show_travels_too(how, tmp_path):
    deployed = deploy(victim(), Limited(how=how))
    deployed.export(tmp_path / "away")
    opened = mad.open_deployment(tmp_path / "away")
    dark = IMAGES * 0.48  # unlike the random images that are tried
    ours, theirs = deployed.session().answer(dark), opened.session().answer(dark)
    assert not torch.equal(*ours)
    assert torch.equal(ours[1], theirs[1])
    assert type(opened.defense._limit) is (float if how == "number" else type(deployed.defense._limit))


def test_a_stateful_defense_begins_anew(tmp_path):
    deployed = deploy(victim(), Counting())
    deployed.session()(IMAGES)
    deployed.export(tmp_path / "away")
    opened = mad.open_deployment(tmp_path / "away")
    api, clean = opened.session(), opened.session().answer(IMAGES)[0]
    assert torch.equal(api(IMAGES), clean)
    assert torch.allclose(api(IMAGES), torch.tensor(0.25))
    assert opened.defense._shared == 3  # requests, and none of before
    assert opened.fresh().defense._shared == 0


def test_the_served_model_of_a_training_defense_travels(tmp_path):
    pytest.importorskip("opacus")
    from mad.defenses.dp_sgd import DpSgd

    whole = victim(shape=(1, 16, 16), architecture=SmallNet)
    deployed = deploy(whole, DpSgd(epochs=1, min_steps=1, batch_size=20))
    deployed.export(tmp_path / "away")
    opened = mad.open_deployment(tmp_path / "away")
    images = torch.rand(9, 1, 16, 16)
    assert torch.allclose(deployed.session()(images), opened.session()(images), rtol=0, atol=1e-6)
    assert opened.columns == deployed.columns


@pytest.mark.parametrize(
    ("architecture", "defense", "text"),
    [
        (
            lambda shape, classes: Tiny(shape, classes),
            None,
            "architecture of victim toy cannot be exported: .*<lambda>",
        ),
        (partial(lambda shape, classes: Tiny(shape, classes)), None, "written in a function; put it at the top of a"),
        (type("Nowhere", (Tiny,), {}), None, "architecture of victim toy cannot be exported"),
        (type("Tiny", (Tiny,), {"__module__": "toys"}), None, "importing toys:Tiny gives something else"),
        (partial(lenet, scale=torch.ones(1)), None, "holds a Tensor, which no import path makes"),
        (
            Tiny,
            Mad(0.5, RandomSurrogate(lambda shape, classes: Tiny(shape, classes))),
            "defense mad cannot be exported",
        ),
        (Tiny, Tensed(of_data=True), "defense tensed cannot be exported: data set blobs is not part of what was"),
        (Tiny, Secretive(), "defense tensed cannot be exported: made again .* it answers something else"),
    ],
)
def test_what_cannot_travel_is_one_line_and_writes_nothing(architecture, defense, text, tmp_path):
    deployed = deploy(victim(), defense)
    deployed = replace(deployed, victim=replace(deployed.victim, architecture=architecture))
    with pytest.raises(MadError, match=text) as caught:
        deployed.export(tmp_path / "away")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "away").exists()


def test_functions_are_architectures_too(tmp_path):
    deployed = deploy(victim(shape=(1, 28, 28), architecture=partial(lenet, scale=2.0)))
    deployed.export(tmp_path / "away")
    images = torch.rand(3, 1, 28, 28)
    assert torch.equal(deployed.session()(images), mad.open_deployment(tmp_path / "away").session()(images))
