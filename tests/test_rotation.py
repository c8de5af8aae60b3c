"""Self-supervision by rotations: the plain loop, the images without answers, and the network that is left."""

from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from fitting import EXACT, SPLIT, weights
from torch import nn
from toys import CPU, Blobs, Streamed, Tiny, cell, compose, trainer, victim
from toys import build as built

from mad.errors import MadError
from mad.knockoff import Knockoff
from mad.pipeline import run
from mad.rotation import RotationTrainer, TwoHeads
from mad.seeds import generator, seeded
from mad.storage.fingerprint import describe
from mad.storage.store import Store
from mad.training import Trainer

NAMES = [each.name for each in fields(Trainer)]
HOW = {"seed": 3, "device": CPU, "task": "test"}


def rotating(rotation=1.0, **changes):
    return Knockoff(trainer(**{"epochs": 2, **changes}), rotation=rotation).trainer


class Deep(nn.Module):
    """A hidden layer, a batch norm and a head."""

    def __init__(self, shape=(1, 8, 8), classes=4):
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], 12), nn.BatchNorm1d(12), nn.ReLU())
        self.head = nn.Linear(12, classes)

    def forward(self, images):
        return self.head(self.trunk(images))


def made(kind=Deep, **how):
    with seeded(0, "a network"):
        return kind(**how)


@pytest.mark.parametrize(("rotation", "mixup"), [(1.0, 0.0), (0.3, 0.0), (1.0, 0.4)])
def test_the_loop_is_the_plain_one(rotation, mixup):
    rows, epochs, size = torch.randperm(200, generator=torch.Generator().manual_seed(0))[:70], 4, 20
    answers = F.one_hot(SPLIT.labels[rows], 4).double()
    recipe = rotating(rotation, epochs=epochs, batch_size=size, optimizer="sgd", schedule="constant", mixup=mixup)
    found = made().double()
    recipe.fit(found, EXACT, answers, rows=rows, **HOW)

    net = made().double().train()
    with seeded(3, "head for rotations of test"):
        second = nn.Linear(12, 4, dtype=torch.float64)
    plain = torch.optim.SGD([*net.parameters(), *second.parameters()], recipe.learning_rate)
    order, other = generator(3, "order of test"), generator(3, "order of rotations of test")
    turning = []
    for epoch in range(1, epochs + 1):
        turn = torch.randperm(70, generator=order)
        with seeded(3, f"dropout of test, epoch {epoch}"):
            for some in turn.split(size):
                images, wished = EXACT[rows[some]], answers[some]
                if mixup:
                    share = torch.distributions.Beta(mixup, mixup).sample().item()
                    partner = torch.randperm(len(some))
                    images = share * images + (1 - share) * images[partner]
                    wished = share * wished + (1 - share) * wished[partner]
                turning = turning or list(torch.randperm(200, generator=other).split(5))
                views = EXACT[turning.pop(0)]
                every = [images, *(torch.rot90(views, quarter, (2, 3)) for quarter in range(4))]
                hidden = net.trunk(torch.cat(every))
                loss = -(wished * net.head(hidden)[: len(some)].log_softmax(dim=1)).sum(dim=1).mean()
                guesses = second(hidden[len(some) :]).log_softmax(dim=1)
                quarters = torch.tensor([quarter for quarter in range(4) for _ in views])
                loss = loss - rotation * guesses[torch.arange(len(guesses)), quarters].mean()
                plain.zero_grad()
                loss.backward()
                plain.step()
    assert torch.allclose(weights(found), weights(net), rtol=1e-7, atol=1e-9)


def test_images_without_answers_are_learned_from():
    rows = torch.arange(50)
    networks = []
    for images in (SPLIT.images, torch.cat([SPLIT.images[:50], 255 - SPLIT.images[50:]])):
        networks.append(made())
        rotating().fit(networks[-1], images, SPLIT.labels[:50], rows=rows, **HOW)
    assert not torch.equal(*map(weights, networks))


def test_rotations_are_learned():
    """Bright at the top is no rotation; the second head reads it from the last features."""
    pool = torch.zeros(200, 1, 8, 8)
    pool[:, :, :3] = 0.5 + 0.5 * torch.rand(200, 1, 3, 8, generator=torch.Generator().manual_seed(0))
    recipe, losses = rotating(epochs=30, optimizer="adam", learning_rate=0.01), []

    class Watched(RotationTrainer):
        def loss(self, model, images, targets):
            found = super().loss(model, images, targets)
            losses.append((found - F.cross_entropy(self.logits(model, images), targets)).item())
            return found

    Watched(**{name: getattr(recipe, name) for name in NAMES}).fit(made(), pool, torch.arange(200) % 4, **HOW)
    assert losses[0] > 1
    assert losses[-1] < 0.3


def test_the_network_is_left_as_it_was_built():
    model = made()
    names = list(model.state_dict())
    rotating().fit(model, *SPLIT, **HOW)
    assert list(model.state_dict()) == names
    assert not any(part._forward_pre_hooks for part in model.modules())
    assert not model.training
    stopped = rotating().epochs_of(model, *SPLIT, **HOW)
    next(stopped)
    assert model.head._forward_pre_hooks
    stopped.close()
    assert not model.head._forward_pre_hooks


def test_streams_and_seeds():
    found = []
    for images, seed in ((SPLIT.images, 3), (Streamed(SPLIT.images), 3), (SPLIT.images, 4)):
        model, before = made(), torch.get_rng_state()
        rotating(augment="crop_flip").fit(model, images, SPLIT.labels, **{**HOW, "seed": seed})
        assert torch.equal(before, torch.get_rng_state())
        found.append(weights(model))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_one_image_left_over_is_no_obstacle():
    model = made()
    rotating(batch_size=len(SPLIT.images) - 1).fit(model, SPLIT.images, SPLIT.labels, **HOW)
    assert not model.head._forward_pre_hooks


class Mapped(nn.Module):
    """Its last layer is a convolution, whose map is averaged: as SqueezeNet."""

    def __init__(self, shape=(1, 8, 8), classes=4):
        super().__init__()
        self.trunk, self.last = nn.Conv2d(1, 6, 3), nn.Conv2d(6, classes, 1)

    def forward(self, images):
        return self.last(self.trunk(images).relu()).mean(dim=(2, 3))


class Tokens(nn.Module):
    """Its last layer takes rows of tokens."""

    def __init__(self, shape=(1, 8, 8), classes=4):
        super().__init__()
        self.head = nn.Linear(8, classes)

    def forward(self, images):
        return self.head(images.squeeze(1)).mean(dim=1)


@pytest.mark.parametrize(
    ("kind", "features"),
    [
        (Tiny, lambda net, images: images.flatten(1)),
        (Mapped, lambda net, images: net.trunk(images).relu().mean(dim=(2, 3))),
        (Tokens, lambda net, images: images.squeeze(1).mean(dim=1)),
    ],
)
def test_the_second_head_reads_what_the_last_layer_takes(kind, features):
    net, images = made(kind, shape=(1, 8, 8), classes=4), SPLIT.images[:7] / 255
    both = TwoHeads(net, iter(()))
    assert torch.equal(both(images), net(images))
    assert torch.allclose(both.features(7), features(net, images), atol=1e-6)
    with pytest.raises(MadError, match=r"knockoff\.rotation needs a network whose last layer"):
        both.features(6)


def test_bfloat16_trains_close_to_float32():
    found = []
    for precision in ("float32", "bfloat16"):
        found.append(made())
        rotating(precision=precision).fit(found[-1], *SPLIT, **HOW)
    assert found[1].head.weight.dtype == torch.float32
    assert not torch.equal(*map(weights, found))
    assert torch.allclose(*map(weights, found), atol=0.1)


def test_images_that_are_not_square_are_refused_before_anything_is_trained(fits):
    wide = victim(shape=(1, 8, 10))
    with pytest.raises(MadError, match=r"^knockoff\.rotation .*8 x 10: set knockoff\.rotation=0$"):
        cell(victim=wide, pool=Blobs(shape=(1, 8, 10)), knockoff=Knockoff(trainer(), rotation=1.0))
    assert fits == []


@pytest.mark.parametrize("rotation", [-1, "much", float("nan"), True])
def test_a_weight_out_of_range_is_refused(rotation):
    with pytest.raises(MadError, match="rotation"):
        Knockoff(trainer(), rotation=rotation)


def test_a_recipe_with_a_loss_of_its_own_is_refused():
    class Own(Trainer):
        pass

    own = Own(**{name: getattr(trainer(), name) for name in NAMES})
    with pytest.raises(MadError, match=r"knockoff\.rotation .* got Own"):
        Knockoff(own, rotation=1.0)


def test_a_weight_of_zero_is_the_recipe_as_before():
    plain = Knockoff(trainer())
    assert describe(Knockoff(trainer(), rotation=0, mixup=None)) == describe(plain)
    assert type(Knockoff(trainer(), rotation=0.0).trainer) is Trainer
    one, two = (Knockoff(trainer(), rotation=weight) for weight in (1, 2))
    assert describe(one) != describe(two) != describe(plain)
    assert cell(knockoff=one).knockoff.trainer == one.trainer  # a cell makes the recipe again


def test_it_is_chosen_on_the_command_line():
    words = ["knockoff.rotation=0.5", "knockoff.mixup=0.2", "knockoff.augment=crop", "trainer.mixup=0.1"]
    config = compose(*words)
    found = built(config.knockoff).trainer
    assert (found.rotation, found.mixup, found.augment) == (0.5, 0.2, "crop")
    assert (built(config.victim).trainer.mixup, built(config.victim).trainer.augment) == (0.1, "none")


def test_a_whole_cell(tmp_path):
    record, _ = run(cell(knockoff=Knockoff(trainer(), rotation=1.0)), Store(tmp_path), CPU)
    assert record["learned"]
    plain, _ = run(cell(), Store(tmp_path), CPU)
    assert record["fingerprint"] != plain["fingerprint"]
    assert record["comparison_group"] != plain["comparison_group"]
