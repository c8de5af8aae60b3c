"""What the layers of a network hold beside weights is part of its name."""

import copy
import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from mad.storage import fingerprint
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


class Compiled(nn.Module):
    __constants__ = ("shift",)

    def __init__(self, layer, scale, sizes, shift):
        super().__init__()
        self.layer, self.scale, self.sizes, self.shift = layer, scale, sizes, shift

    def forward(self, images):
        return self.helped(self.layer(images)) + self.shift

    def helped(self, logits):
        return logits * self.scale + self.sizes[0]


COMPILED = [(1.5, [1, 2], 3.0), (1.5, [1, 2], 3.0), (2.5, [1, 2], 3.0), (1.5, [2, 2], 3.0), (1.5, [1, 2], 4.0)]


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


class Kept(Counting):
    """Sets attributes in all other ways."""

    def __init__(self):
        super().__init__()
        self.kept, self.noted, self.device = {}, {}, "cpu"
        self.layer.register_forward_hook(self.hook)

    def hook(self, layer, given, answers):
        self.noted["answers"] = answers.detach()

    @functools.cached_property
    def scale(self):
        return 2.0

    @torch.no_grad()
    def train(self, mode=True):
        self.bias = None if mode else self.layer.bias * 2
        return super().train(mode)

    @torch.no_grad()
    def forward(self, images):
        self.kept["cpu"] = images * self.scale
        self.register_buffer("mask", images > 0, persistent=False)
        setattr(self, "shape", tuple(images.shape))  # noqa: B010 - as some networks do
        return super().forward(images)


class Holding(nn.Module):
    """Each layer holds all before it."""

    def __init__(self, count):
        super().__init__()
        self.layers = nn.ModuleList(Scaled(1.0) for _ in range(count))
        for number, layer in enumerate(self.layers):
            layer.before = [*self.layers[:number]]


ACTS = [lambda x: x, lambda x: 2 * x]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1.0, 2.0),
        ([1.0, 2.0], [1.0, 3.0]),
        (torch.ones(2), torch.zeros(2)),
        (F.relu, F.gelu),
        (Scale(1.0), Scale(2.0)),
        ([nn.Dropout(0.1)], [nn.Dropout(0.2)]),
        (torch.Tensor.relu, torch.Tensor.tanh),
        (np.arange(3)[::-1], np.arange(3)),
        (np.arange(3, dtype=">i4"), np.ones(3, dtype=">i4")),
        ACTS,
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


@pytest.mark.parametrize("kind", [Counting, Kept])
def test_what_a_call_changes_is_not_in_the_name(kind, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda call, **named: call)  # it loads a compiler, which takes a while
    network = kind()
    before = describe(network)
    network.eval()(torch.ones(3, 2))
    assert describe(network) == before
    network.compile(backend="eager")
    assert describe(network) == before
    assert "held" not in before


def test_where_a_network_computes_is_not_in_its_name():
    one, other = Scaled("cpu"), Scaled("cuda:0")
    other.load_state_dict(one.state_dict())
    assert describe(one) == describe(other)


def test_a_network_of_timm_that_was_asked_keeps_its_name():
    network = pytest.importorskip("timm").create_model("levit_128s").eval()
    before = describe(network)
    network(torch.zeros(1, 3, 224, 224))
    assert describe(network) == before


def test_layers_that_hold_each_other_are_described_once(monkeypatch):
    described, whole = [], fingerprint.of_network
    monkeypatch.setattr(fingerprint, "of_network", lambda *given: described.append(given) or whole(*given))
    network = Holding(6)
    other = copy.deepcopy(network)
    first = describe(network)
    assert len(described) == 1 + sum(range(6)) + 6  # the whole, those before each layer, and the owner of each
    assert describe(other) == first
    other.layers[5].before[0] = other.layers[1]
    assert describe(other) != first


def test_what_a_traced_network_computes_is_in_its_name():
    one = Scaled(2.0)
    other = copy.deepcopy(one)
    other._scale = 3.0
    assert describe(fx.symbolic_trace(one)) != describe(fx.symbolic_trace(other))


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("compiled", [torch.jit.script, lambda network: torch.jit.trace(network, torch.ones(1, 2))])
def test_what_a_compiled_network_computes_is_in_its_name(compiled):
    layer = nn.Linear(2, 2)
    one, same, other, longer, shifted = (Compiled(layer, *given) for given in COMPILED)
    names = [describe(compiled(network)) for network in (one, same, other, longer, shifted)]
    assert names[0] == names[1]
    assert all(name not in names[:place] for place, name in enumerate(names) if place > 1)
    assert describe(nn.Sequential(compiled(one))) != describe(nn.Sequential(compiled(other)))
    asked = compiled(one)
    for _ in range(3):
        asked(torch.ones(3, 2))
    assert describe(asked) == names[0]


def test_networks_of_torch_keep_their_names():
    found = describe(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 2)))
    assert found.keys() == {"network", "layers", "weights"}
