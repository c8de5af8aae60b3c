"""Results are remembered only where that changes no bit."""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from torch import nn
from toys import CPU, Blobs, Tiny, cell, trainer, victim

from mad import pipeline
from mad.cache import Cache
from mad.cached_network import CachedNetwork
from mad.datasets import cached
from mad.defenses.mad import Mad
from mad.defenses.random_noise import RandomNoise
from mad.defenses.surrogates import TrainedSurrogate, VictimSurrogate
from mad.knockoff import Knockoff
from mad.storage.fingerprint import identity
from mad.storage.store import Store


class Counting(Tiny):
    """Counts its forward passes."""

    passes = 0

    def forward(self, images):
        type(self).passes += 1
        return super().forward(images)


def network(seed=0):
    return victim(architecture=Counting).untrained(seed=seed, purpose="victim")


def batch(count=6, seed=0):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def passes(monkeypatch):
    monkeypatch.setattr(Counting, "passes", 0)
    return lambda: Counting.passes


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


def test_what_is_kept_is_made_once():
    cache, made = Cache(), []
    for key in ("a", "b", "a", ("a",), "b"):
        assert cache.get(key, lambda key=key: made.append(key) or (key,)) == (key,)
    assert made == ["a", "b", ("a",)]


def test_the_least_used_is_dropped_first():
    cache, made = Cache(limit=3 * 40), []

    def ask(key, size=10):
        def make():
            made.append(key)
            return (torch.zeros(size), torch.zeros(0))

        cache.get(key, make)
        assert 0 <= cache.bytes <= cache.limit

    for key in "abcadab":
        ask(key)
    assert "".join(made) == "abcdb"
    ask("large", 31)
    ask("large", 31)
    assert made[-2:] == ["large", "large"]
    ask("b")
    assert made[-1] == "large"


def test_what_two_make_at_once_counts_once():
    cache = Cache()
    cache.get("a", lambda: cache.get("a", lambda: torch.zeros(10)))
    assert cache.bytes == 40


def test_a_failure_is_not_kept():
    cache = Cache()
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: 1 / 0)
    assert cache.get("a", lambda: 2) == 2


def test_many_threads_keep_the_count():
    cache = Cache(limit=5 * 40)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            keys = [step * 7 % 11 for step in range(2000)]
            found = list(threads.map(lambda key: cache.get(key, lambda: torch.full((10,), key)), keys))
    finally:
        sys.setswitchinterval(interval)
    assert all((tensor == key).all() for tensor, key in zip(found, keys, strict=True))
    assert cache.bytes == sum(tensor.nbytes for tensor in cache._kept.values()) <= cache.limit


@pytest.mark.usefixtures("no_grad")
def test_a_batch_runs_once(passes):
    cache, bare = Cache(), network()
    wanted = [bare(batch(seed=seed)) for seed in (0, 1)]
    before = passes()
    for _ in range(3):
        fresh = CachedNetwork(bare, "toy", cache)
        for seed in (0, 1):
            assert torch.equal(fresh(batch(seed=seed)), wanted[seed])
    assert passes() == before + 2


@pytest.mark.usefixtures("no_grad")
def test_what_is_remembered_cannot_be_spoilt():
    memory = CachedNetwork(network(), "toy", Cache())
    wanted = network()(batch())
    for _ in range(3):
        assert torch.equal(memory(batch()).zero_() + 0, torch.zeros_like(wanted))
    assert torch.equal(memory(batch()), wanted)


@pytest.mark.usefixtures("no_grad")
def test_other_batches_and_networks_are_others():
    cache = Cache()
    images = batch()
    flipped = images.clone()
    flipped[3, 0, 4, 4] += 1e-6
    variants = [images, flipped, images[:5], images.roll(1, 0), images.double(), batch(8).view(4, 1, 16, 8)[:, :, :8]]
    nets = [network(), network(1), network().double()]
    pairs = [(net, images) for net in nets for images in variants if images.dtype == net.head.weight.dtype]
    for net, each in pairs * 2:
        assert torch.equal(CachedNetwork(net, "toy", cache)(each), net(each))


@pytest.mark.usefixtures("no_grad")
def test_the_same_weights_in_another_network_are_another():
    class Twice(Tiny):
        def forward(self, images):
            return 2 * super().forward(images)

    cache, one, two = Cache(), Tiny((1, 8, 8), 4).eval(), Twice((1, 8, 8), 4).eval()
    two.load_state_dict(one.state_dict())
    first = CachedNetwork(one, Tiny, cache)(batch())
    assert torch.equal(CachedNetwork(two, Twice, cache)(batch()), 2 * first)
    assert torch.equal(CachedNetwork(two, partial(Tiny, factor=2), cache)(batch()), 2 * first)


CHANGES = {
    "in place": lambda net: net.head.weight.mul_(2),
    "loaded": lambda net: net.load_state_dict(network(9).state_dict()),
    "swapped": lambda net: setattr(net.head.weight, "data", net.head.weight.data * 2),
    "replaced": lambda net: setattr(net, "head", nn.Linear(64, 4).eval()),
    "trained": lambda net: net.train(),
}


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("change", CHANGES)
def test_a_network_that_changes_is_asked_again(change, passes):
    net = network()
    memory = CachedNetwork(net, "toy", Cache())
    memory(batch())
    CHANGES[change](net)
    before = passes()
    for _ in range(2):
        assert torch.equal(memory(batch()), net(batch()))
    assert passes() == before + 4


@pytest.mark.usefixtures("no_grad")
def test_gradients_and_hooks_see_the_network(passes):
    memory, seen = CachedNetwork(network(), "toy", Cache()), []
    memory(batch())
    with torch.enable_grad():
        assert memory(batch()).requires_grad
    handle = memory.network.head.register_forward_hook(lambda *_: seen.append(1))
    memory(batch())
    assert (seen, passes()) == ([1], 3)
    handle.remove()
    memory(batch())
    assert passes() == 3


@dataclass(frozen=True)
class Placed:
    """A pool whose folder stays out of its fingerprint."""

    name: str = "placed"
    root: str = field(default="here", compare=False)


def test_identity_knows_places():
    names = [identity(part) for part in (Placed(), Placed(root="there"), Placed(name="other"), Blobs())]
    assert len(set(names)) == 4
    assert identity(Placed()) == names[0]


def numbers(record):
    return {key: value for key, value in record.items() if not key.startswith("seconds")}


DEFENSES = {
    "random": [Mad(0.1), Mad(0.5), Mad(0.9)],
    "trained": [Mad(epsilon, TrainedSurrogate(trainer())) for epsilon in (0.1, 0.9)],
    "victim": [Mad(epsilon, VictimSurrogate()) for epsilon in (0.1, 0.9)],
    "noise": [RandomNoise(0.1), RandomNoise(0.9)],
}


@pytest.mark.parametrize("kind", DEFENSES)
def test_sharing_changes_no_number(kind, tmp_path, monkeypatch):
    cells = [cell().reference, *(cell(defense=defense) for defense in DEFENSES[kind])]
    found = {}
    for name in ("shared", "apart"):
        monkeypatch.setattr(pipeline, "SHARED", Cache())
        for each in cells:
            if name == "apart":
                monkeypatch.setattr(pipeline, "SHARED", Cache(limit=0))
            found.setdefault(name, []).append(numbers(pipeline.run(each, Store(tmp_path / name), CPU)[0]))
    assert found["shared"] == found["apart"]


def test_a_sweep_asks_each_network_once(tmp_path, monkeypatch, passes):
    monkeypatch.setattr(pipeline, "SHARED", Cache())
    stolen = Knockoff(trainer(), architecture=Tiny)
    spent = []
    for epsilon in (0.5, 0.1, 0.3, 0.8):
        before = passes()
        this = cell(epsilon, victim=victim(architecture=Counting), knockoff=stolen)
        pipeline.run(this, Store(tmp_path), CPU)
        spent.append(passes() - before)
    # Later cells only probe their fresh surrogate once.
    assert spent[1:] == [1, 1, 1]
    assert spent[0] > 4


def test_images_are_loaded_once(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "SHARED", Cache())
    monkeypatch.setattr(cached, "KEPT", Cache())
    loaded = []
    split = Blobs.split
    monkeypatch.setattr(Blobs, "split", lambda self, part: loaded.append(part) or split(self, part))
    for epsilon in (0.5, 0.1):
        pipeline.run(cell(epsilon), Store(tmp_path), CPU)
    assert sorted(loaded) == ["pool", "test", "train"]


def test_pauses_that_overlap_end_with_the_last():
    cache = Cache()
    first, second = cache.paused(), cache.paused()
    seen = [cache.on]
    for step in (first.__enter__, second.__enter__):
        step()
        seen.append(cache.on)
    for block in (first, second):
        block.__exit__(None, None, None)
        seen.append(cache.on)
    assert seen == [True, False, False, False, True]
    with pytest.raises(KeyError), cache.paused():
        raise KeyError
    assert cache.on
