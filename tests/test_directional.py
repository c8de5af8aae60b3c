"""Derivatives in the direction of all ones by box filters, against torch's jvp and one gradient a class."""

import pytest
import torch
from torch import nn

from mad import all_ones
from mad.architectures.fast_resnet import FastResNet
from mad.architectures.lenet import LeNet
from mad.directional import Directional


class Odd(nn.Module):
    """Layers of every kind: strides, padding, groups, dilation, no bias, a linear layer over places, a norm."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2), bias=False),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
            nn.BatchNorm2d(6),
            nn.SiLU(),
            nn.Conv2d(6, 6, 3, padding=1, groups=3),
            nn.Conv2d(6, 5, 2, dilation=2),
            nn.Linear(9, 3),
            nn.Tanh(),
            nn.Flatten(),
            nn.LazyLinear(7),
            nn.ReLU(),
            nn.Linear(7, 4, bias=False),
        )
        self(torch.zeros(1, 2, 8, 8))

    def forward(self, images):
        return self.layers(images)


class Shared(nn.Module):
    """A layer that is used twice, two layers with one weight, and a weight that is also used by itself."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.kind = kind
        if kind == "two layers":
            self.second.weight = self.first.weight

    def forward(self, images):
        x = torch.tanh(self.first(images.flatten(1)))
        x = torch.tanh(self.first(x) if self.kind == "twice" else self.second(x))
        return self.head(x) * (self.head.weight.norm() if self.kind == "by itself" else 1)


def slow(network, images):
    rows = []
    for image in images:
        scores = torch.log_softmax(network(image.unsqueeze(0)), dim=1)[0]
        grads = [
            torch.autograd.grad(score, list(network.parameters()), retain_graph=True, materialize_grads=True)
            for score in scores
        ]
        rows.append(torch.stack([sum(part.sum() for part in row) for row in grads]))
    return torch.stack(rows)


NETWORKS = {
    "odd": (Odd, (2, 8, 8)),
    **{kind: (lambda kind=kind: Shared(kind), (1, 2, 4)) for kind in ("twice", "two layers", "by itself")},
    "lenet": (lambda: LeNet((1, 28, 28), 10), (1, 28, 28)),
    "fast_resnet": (lambda: FastResNet((3, 32, 32), 10), (3, 32, 32)),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_all_ones_is_its_definition(kind):
    make, shape = NETWORKS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make().double().eval()
        images = torch.rand(3, *shape, dtype=torch.double)
    found = Directional(network, images)
    assert bool(found._boxed) == (kind != "by itself")
    expected = slow(network, images)
    assert torch.allclose(found(images), expected, atol=1e-8 * expected.abs().max().item())
    found._boxed = set()
    assert torch.allclose(found(images), expected, atol=1e-8 * expected.abs().max().item())


def test_which_layers_have_a_box_filter():
    boxed = all_ones.boxed(Odd())
    assert boxed == {f"layers.{name}" for name in ("0.weight", "2.weight", "2.bias", "7.weight", "7.bias")} | {
        f"layers.{name}" for name in ("10.weight", "10.bias", "12.weight")
    }
    assert all_ones.boxed(Shared("two layers")) == {"head.weight", "head.bias"}


def test_a_network_that_is_trained_meanwhile_counts_as_it_is():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = Shared("none").eval()
        images = torch.rand(3, 1, 2, 4)
    found = Directional(network, images)
    before = found(images)
    with torch.no_grad():
        network.first.weight.mul_(1.5)
    assert torch.allclose(found(images), slow(network, images), atol=1e-4)
    assert not torch.allclose(found(images), before, atol=1e-4)
