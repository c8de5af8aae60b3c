"""What a defense says that it needs, it gets; and nothing else."""

from dataclasses import dataclass

import pytest
import torch
from toys import CPU, Blobs, cell, victim

from mad.api import BATCH
from mad.context import Context
from mad.defenses import Defense
from mad.defenses.mad_argmax import MadArgmax
from mad.deployment import deploy
from mad.pipeline import run
from mad.storage.store import Store

SIZES = []


def images(count):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))


@dataclass
class Narrow(Defense):
    """Takes a few images at once."""

    name = "narrow"
    max_batch = 7
    epsilon: float | None = 0.5

    def perturb(self, images, clean):
        SIZES.append(len(clean))
        assert len(images) == len(clean)
        return clean.flip(1)


@dataclass
class Wide(Narrow):
    """Takes any number, and says so with more than a batch."""

    name = "wide"
    max_batch = 10 * BATCH


@dataclass
class Reusing(Narrow):
    """Writes all its answers to the same memory."""

    name = "reusing"

    def prepare(self, context):
        self._places = {}

    def perturb(self, images, clean):
        return self._places.setdefault(len(clean), torch.empty_like(clean)).copy_(super().perturb(images, clean))


def test_a_defense_may_write_all_answers_to_the_same_memory():
    found, right = (deploy(victim(), each(epsilon=2.0)).session()(images(20)) for each in (Reusing, Narrow))
    assert torch.equal(found, right)


def test_a_defense_is_given_no_more_images_than_it_takes(tmp_path):
    SIZES.clear()
    api = deploy(victim(), Narrow()).session()
    whole = deploy(victim(), Wide()).session()
    assert torch.allclose(api(images(20)), whole(images(20)), atol=1e-6)
    assert SIZES == [7, 7, 6, 20]
    assert api.queries == 20
    SIZES.clear()
    whole(images(BATCH + 4))
    assert SIZES == [BATCH, 4]
    SIZES.clear()
    run(cell(defense=Narrow()), Store(tmp_path), CPU)
    assert max(SIZES) == 7
    assert sum(SIZES) == 50 + len(Blobs().test().labels) + 50  # the thief's, again for auroc_pool


@dataclass
class Steep(Defense):
    """Goes where a network's loss grows: takes gradients."""

    name = "steep"
    needs_gradients = True
    epsilon: float | None = 0.3

    def prepare(self, context):
        self._network = context.model

    def perturb(self, images, clean):
        self.recorded = torch.is_grad_enabled()
        at = images.clone().requires_grad_()
        (slope,) = torch.autograd.grad(self._network(at).square().sum(), at)
        return torch.softmax(clean + slope.flatten(1)[:, : clean.shape[1]], dim=1)


@pytest.mark.parametrize("outside", [torch.no_grad, torch.enable_grad])
def test_a_defense_that_needs_gradients_may_take_them(outside):
    deployment = deploy(victim(), Steep())
    some = images(9)
    with outside():
        answers = deployment.session()(some)
    assert deployment.defense.recorded
    assert not answers.requires_grad
    assert not torch.allclose(answers, torch.softmax(deployment.served(some), dim=1), atol=1e-3)


@dataclass
class Flat(Steep):
    """Takes none, with networks whose weights would record them."""

    name = "flat"
    needs_gradients = False

    def perturb(self, images, clean):
        self.recorded = torch.is_grad_enabled()
        assert not self._network(images).requires_grad
        return clean


@pytest.mark.parametrize("outside", [torch.no_grad, torch.enable_grad])
def test_nothing_is_recorded_for_other_defenses(outside):
    deployment = deploy(victim(), Flat())
    deployment.served.requires_grad_(True)
    with outside():
        before = torch.is_grad_enabled()
        deployment.defense(images(3), torch.full((3, 4), 0.25))
        assert torch.is_grad_enabled() == before
    assert not deployment.defense.recorded


TRAINED = []


@dataclass
class Guarded(Defense):
    """Trains a network of its own in prepare."""

    name = "guarded"
    width: int = 1
    epsilon: float | None = 0.4

    def prepare(self, context):
        about = ("guard", self.width, context.seed)
        self._network = context.kept("guard", about, lambda: victim().untrained(seed=9, purpose="guard"), self.train)

    def train(self, network):
        TRAINED.append(self.width)
        network.head.bias.data.fill_(len(TRAINED))

    def perturb(self, images, clean):
        return torch.softmax(self._network(images), dim=1)


def test_a_defenses_own_network_is_trained_once_and_then_loaded(tmp_path):
    TRAINED.clear()
    for epsilon in (0.4, 0.5):
        record = run(cell(defense=Guarded(epsilon=epsilon)), Store(tmp_path), CPU)[0]
    assert TRAINED == [1]
    (folder,) = tmp_path.glob("victims/guard/*")
    assert f"guard/{folder.name}" in record["uses"].split()
    run(cell(defense=Guarded(width=2)), Store(tmp_path), CPU)
    assert TRAINED == [1, 2]
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    run(cell(defense=Guarded(epsilon=0.6)), Store(tmp_path), CPU)
    assert TRAINED == [1, 2, 1]


def test_without_a_store_it_is_trained_each_time():
    TRAINED.clear()
    context = Context(victim(), victim().untrained(seed=0, purpose="victim"), 0, CPU)
    biases = [Guarded().prepared(context)._network.head.bias[0].item() for _ in range(2)]
    assert biases == [1, 2]


@dataclass
class Averse(Defense):
    """Cannot answer no images."""

    name = "averse"
    stateful = True
    epsilon: float | None = None

    def perturb(self, images, clean):
        return clean.where(clean == clean.max(), 0)


@pytest.mark.parametrize("accounts", [1, 2])
@pytest.mark.parametrize("defense", [Averse(), Averse(epsilon=0), MadArgmax(0.5, solver="exact", gradient="all")])
def test_no_images_get_no_answers(defense, accounts):
    api = deploy(victim(), defense).session(10, accounts=accounts)
    assert api(images(3)[:0]).shape == (0, 4)
    assert api(images(3)).shape == (3, 4)
    assert api.queries == 3
