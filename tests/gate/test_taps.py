"""Features of the pass that the network makes anyway: the right ones, whoever asks, and without another pass."""

import copy
import threading

import pytest
import torch
from torch import nn
from toys import CPU, SmallNet, Tiny, cell, victim

from mad.cache import Cache
from mad.cached_network import CachedNetwork
from mad.defenses.gate import Gate
from mad.deployment import deploy
from mad.gate.taps import MOST, Taps, layers_of, summary, taps_of, varied


class Convolutional(nn.Module):
    """Convolutions whose results are changed in place, and a count of passes."""

    def __init__(self, shape=(1, 8, 8), classes=4):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(shape[0], 5, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(5, 6, 3))
        self.head = nn.Linear(6 * (shape[1] - 2) * (shape[2] - 2), classes)
        self.passes = 0

    def forward(self, images):
        self.passes += 1
        return self.head(self.trunk(images).relu_().flatten(1))


class Attending(nn.Module):
    """A transformer layer over rows of pixels."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        return self.head(self.layer(images.squeeze(1)).mean(dim=1))


class NormOfChannels(nn.LayerNorm):
    """ConvNeXt's: maps (B, C, H, W) whose channels are normalized."""

    def forward(self, maps):
        return super().forward(maps.movedim(1, -1)).movedim(-1, 1)


class Keyword(Convolutional):
    """A layer norm over channels, and a last layer that is called with a keyword."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), NormOfChannels(5))

    def forward(self, images):
        maps = self.trunk(images)
        return self.head(input=maps[:, :1, :6, :6].expand(-1, 6, -1, -1).flatten(1))


def network(kind=Convolutional):
    torch.manual_seed(0)
    return kind().eval().requires_grad_(False)


def images(count=6, seed=0):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def slow(model, batch):
    """Return the features by hand, layer by layer."""
    first = model.trunk[0](batch)
    second = model.trunk[2](first.relu())
    coarse = nn.functional.adaptive_avg_pool2d(second, 3).flatten(1)
    maps = [
        torch.cat([each.mean((2, 3)), each.square().mean((2, 3)).sqrt(), each.amax((2, 3))], dim=1)
        for each in (first, second)
    ]
    return [*maps, coarse, second.relu().flatten(1)]


def same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_layer_norm_over_channels_is_summarized_by_channel():
    model = network(Keyword)
    taps = taps_of(model, (1, 8, 8), CPU)
    assert taps.names == ["layer 0", "layer 1", "grid 1"]
    assert taps.widths == [15, 15, 45]
    maps = model.trunk(images())
    expected = torch.cat([maps.mean((2, 3)), maps.square().mean((2, 3)).sqrt(), maps.amax((2, 3))], dim=1)
    assert torch.allclose(taps(images())[0][1], expected, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_features_are_those_of_the_pass_that_was_made(layout):
    model = network().to(memory_format=layout)
    taps = taps_of(model, (1, 8, 8), CPU)
    assert taps.names == ["layer 0", "layer 1", "grid 1", "features"]
    assert taps.widths == [15, 18, 54, 216]
    batch = images().to(memory_format=layout)
    logits = model(batch)
    before = model.passes
    found, told = taps(batch)
    assert model.passes == before
    assert torch.equal(told, logits)
    same(found, slow(model, batch))


def test_images_that_the_network_did_not_see_last_are_passed_again():
    model, batch, other = network(), images(), images(seed=1)
    taps = taps_of(model, (1, 8, 8), CPU)
    model(other)
    same(taps(batch)[0], slow(model, batch))
    batch.mul_(0.5)  # the same tensor, other pixels
    same(taps(batch)[0], slow(model, batch))
    before = model.passes
    same(taps(batch)[0], slow(model, batch))
    assert model.passes == before
    same(taps(batch[:2])[0], slow(model, batch[:2]))
    assert model.passes == before + 1


def test_each_thread_has_features_of_its_own():
    model, batches, found = network(), [images(seed=seed) for seed in range(4)], {}
    taps, all_there = taps_of(model, (1, 8, 8), CPU), threading.Barrier(4)

    def ask(number):
        model(batches[number])
        all_there.wait()
        found[number] = taps(batches[number])[0]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for number, batch in enumerate(batches):
        same(found[number], slow(model, batch))


def test_a_network_is_hooked_once_and_its_copy_not_at_all():
    model, batch = network(), images()
    taps = taps_of(model, (1, 8, 8), CPU)
    assert taps_of(model, (1, 8, 8), CPU) is taps
    twin = copy.deepcopy(model)
    model(batch)
    before = model.passes
    twin(images(seed=3))
    same(taps(batch)[0], slow(model, batch))
    assert model.passes == before
    assert taps_of(twin, (1, 8, 8), CPU) is not taps


def test_a_cached_network_runs_for_its_hooks():
    model, batch = network(), images()
    cached = CachedNetwork(model, "a network", Cache())
    with torch.no_grad():
        cached(batch)
        taps = taps_of(model, (1, 8, 8), CPU)
        cached(batch)
        before = model.passes
        same(taps(batch)[0], slow(model, batch))
    assert model.passes == before


def test_attention_and_linear_layers_are_tapped():
    found = Taps(network(Attending), (1, 8, 8), CPU)
    assert found.names == ["layer 0", "layer 1", "layer 2", "features"]
    assert found.widths == [24, 24, 24, 8]
    assert Taps(Tiny((1, 8, 8), 4).eval(), (1, 8, 8), CPU).names == ["features"]


def test_of_a_deep_network_some_layers_are_tapped():
    deep = nn.Sequential(*(nn.Conv2d(1, 1, 1) for _ in range(40)))
    layers, head = layers_of(deep)
    assert head is None
    assert len(layers) == MOST
    assert (layers[0], layers[-1]) == (deep[0], deep[-1])


def test_a_network_without_parts_has_no_features_and_is_not_run():
    class Plain(nn.Module):
        def forward(self, batch):
            raise AssertionError

    clean = torch.softmax(torch.randn(6, 4), dim=1)
    found, logits = Taps(Plain().eval(), (1, 8, 8), CPU)(images(), clean)
    assert found == []
    assert torch.allclose(logits.softmax(dim=1), clean, atol=1e-6)


def test_large_maps_are_summarized_in_parts(monkeypatch):
    maps = torch.randn(7, 5, 4, 6)
    whole = summary(maps)
    for size in (1, 5 * 24 * 3, 5 * 24 * 100):
        monkeypatch.setattr("mad.gate.taps.CHUNK", size)
        assert torch.allclose(summary(maps), whole, atol=1e-6)
        assert summary(maps[:0]).shape == (0, 15)


def test_tokens_are_summarized_like_places():
    maps = torch.randn(3, 5, 4, 6)
    tokens = summary(maps.flatten(2))
    assert torch.allclose(summary(maps), tokens, atol=1e-6)
    assert torch.allclose(summary(maps.to(memory_format=torch.channels_last)), tokens, atol=1e-6)


@pytest.mark.parametrize("architecture", [Tiny, SmallNet])
def test_answers_are_the_same_replayed_in_parts_and_from_a_cache(architecture):
    toy = victim(architecture=architecture, validation=0.3)
    first, cached = (deploy(toy, Gate(alpha=0.3), cache=cache) for cache in (None, Cache()))
    batch = torch.cat([images(20), toy.dataset.test().images[:20] / 255])
    answers = first.session()(batch)
    parts = torch.cat([first.session()(each) for each in batch.split(7)])
    replayed = first.session().replayed(batch, first.clean(batch))
    assert torch.allclose(parts, answers, atol=1e-5)
    assert torch.allclose(replayed, answers, atol=1e-5)
    for _ in range(2):
        assert torch.allclose(cached.session()(batch), answers, atol=1e-5)
    assert cell(victim=toy, defense=Gate()).defense.alpha == 0.02


class Sorting(nn.Module):
    """Sends bright images to one network and dark ones to the other, and answers in the order of the images."""

    def __init__(self):
        super().__init__()
        self.bright, self.dark = Convolutional(), Convolutional()

    def forward(self, images):
        bright = images.mean(dim=(1, 2, 3)) > 0.5
        found = images.new_empty(len(images), 4)
        found[bright], found[~bright] = self.bright(images[bright]), self.dark(images[~bright])
        return found


def test_a_layer_that_sees_some_of_the_images_has_no_features():
    model = network(Sorting)
    assert Taps(model, (1, 8, 8), CPU).widths == []


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 8), (3, 32, 32)])
def test_varied_images_are_black_and_white_and_differ(shape):
    found = varied(shape)
    assert found.shape == (16, *shape)
    assert set(found.unique().tolist()) == {0, 1}
    if min(shape[1:]) > 1:
        assert len(found.flatten(1).unique(dim=0)) == 16
