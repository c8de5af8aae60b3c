"""What the layers of a network hold beside weights is part of its name."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mad.storage.fingerprint import describe


@dataclass
class Scale:
    by: float


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.layer, self._scale = nn.Linear(2, 2), scale
        self.owner = [self]

    def forward(self, images):
        return self.layer(images) * self._scale


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.calls, self.seen = nn.Linear(2, 2), 0, {}
        self.register_buffer("last", torch.zeros(1), persistent=False)

    def note(self, images):
        self.calls += 1
        self.seen.update({self.calls: 1})
        self.last = images.sum().reshape(1)

    def forward(self, images):
        self.note(images)
        return self.layer(images)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1.0, 2.0),
        ([1.0, 2.0], [1.0, 3.0]),
        (torch.ones(2), torch.zeros(2)),
        (F.relu, F.gelu),
        (Scale(1.0), Scale(2.0)),
        ([nn.Dropout(0.1)], [nn.Dropout(0.2)]),
    ],
)
def test_what_a_layer_holds_is_in_the_name_of_its_network(one, other):
    first = Scaled(one)
    second = copy.deepcopy(first)
    assert describe(second) == describe(first)
    second._scale = other
    assert describe(second) != describe(first)
    assert describe(nn.Sequential(second)) != describe(nn.Sequential(first))


def test_what_the_text_of_a_layer_of_torch_does_not_say_is_in_the_name():
    one, other = (nn.TransformerEncoderLayer(8, heads, 4) for heads in (2, 4))
    other.load_state_dict(one.state_dict())
    assert describe(one) != describe(other)


def test_a_buffer_that_is_not_kept_is_in_the_name():
    one = Counting()
    one.register_buffer("mean", torch.zeros(2), persistent=False)
    other = copy.deepcopy(one)
    other.mean += 1
    assert describe(one) != describe(other)


def test_what_a_call_changes_is_not_in_the_name():
    network = Counting()
    before = describe(network)
    network(torch.ones(3, 2))
    assert describe(network) == before
    assert "held" not in before


def test_networks_of_torch_keep_their_names():
    found = describe(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 2)))
    assert found.keys() == {"network", "layers", "weights"}
