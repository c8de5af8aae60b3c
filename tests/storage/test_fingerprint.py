"""What names a cell: all that determines its numbers, and nothing else."""

import copy
import importlib
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from toys import Blobs, Tiny, build, cell, compose, trainer, victim

from mad.attacks.adaptive import KnockoffAdaptive
from mad.attacks.knockoff_nets import KnockoffNets
from mad.cell import about
from mad.cli.compose import PARTS
from mad.defenses.adaptive_misinformation import AdaptiveMisinformation
from mad.defenses.mad import Mad
from mad.defenses.random_noise import RandomNoise
from mad.defenses.surrogates import RandomSurrogate, TrainedSurrogate
from mad.knockoff import Knockoff
from mad.pipeline import Cell
from mad.recoveries.argmax import Argmax
from mad.storage.fingerprint import describe

CHANGES = {
    "seed": {"seed": 1},
    "epsilon": {"defense": Mad(0.6)},
    "defense": {"defense": RandomNoise(0.5)},
    "noise": {"defense": RandomNoise(0.5, scale=3)},
    "budget": {"attack": KnockoffNets(51)},
    "recovery": {"recovery": Argmax()},
    "pool": {"pool": Blobs(size=300)},
    "epochs": {"knockoff": Knockoff(trainer(), epochs=9)},
    "min_steps": {"knockoff": Knockoff(trainer(), min_steps=900)},
    "weight_decay": {"knockoff": Knockoff(trainer(), weight_decay=0.1)},
    "victim_seed": {"victim": victim(seed=1)},
    "victim_epochs": {"victim": victim(epochs=9)},
    "classes": {"victim": victim(5)},
}


def test_every_change_of_numbers_changes_the_name():
    names = [cell().fingerprint, *(cell(**change).fingerprint for change in CHANGES.values())]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "same",
    [
        {"defense": Mad(epsilon=0.5)},
        {"knockoff": Knockoff(trainer(), architecture=Tiny)},
        {"knockoff": Knockoff(trainer(epochs=3), epochs=8)},
        {"victim": victim(trainer=trainer(epochs=3), epochs=8)},
        {"pool": Blobs(shape=[1, 8, 8])},
    ],
)
def test_the_same_numbers_have_the_same_name(same):
    assert cell(**same).fingerprint == cell().fingerprint


def test_comparison_groups_differ_in_all_but_defense_and_seeds():
    same = ("seed", "epsilon", "defense", "noise", "victim_seed")
    for name, change in CHANGES.items():
        assert (cell(**change).comparison_group == cell().comparison_group) == (name in same), name


def composed(*overrides):
    config = compose(*overrides)
    return Cell(**{part: build(config[part]) for part in PARTS}, seed=config.seed)


def test_places_stay_out_of_the_name():
    plain = composed("victim=mnist", "pool=fashion_mnist")
    moved = composed("victim=mnist", "pool=fashion_mnist", "data_root=/else", "outputs=there", "device=cpu")
    assert moved.fingerprint == plain.fingerprint
    assert composed("victim=mnist", "pool=kmnist").fingerprint != plain.fingerprint


@dataclass(frozen=True)
class Labelled(Blobs):
    """A pool with labels."""

    def labels(self):
        return self.split("pool").labels


@dataclass(frozen=True)
class Filed(Blobs):
    """A pool whose images are not in its fields."""

    place: int = field(default=0, compare=False)

    def images(self, shape):
        return super().images(shape) // (1 + self.place)


def noise(version):
    """Return random noise of a version of its class."""
    kind = type("RandomNoise", (RandomNoise,), {"version": version, "kind": "noise"})
    kind.__module__, kind.__qualname__ = RandomNoise.__module__, RandomNoise.__qualname__
    return kind(0.5)


def test_a_defense_group_is_all_of_a_defense_but_its_strength():
    usual = cell(defense=Mad(0.5)).defense_group
    assert usual == cell(defense=Mad(0.9)).defense_group == cell(defense=Mad(0.5), seed=1).defense_group
    assert usual == cell(victim=victim(seed=1)).defense_group
    surrogates = [RandomSurrogate(Tiny), *(TrainedSurrogate(trainer=trainer(epochs=each)) for each in (1, 2))]
    others = [Mad(0.5, surrogate=each) for each in surrogates]
    others += [RandomNoise(0.5), RandomNoise(0.5, scale=3), RandomNoise(None, scale=3), noise(7)]
    others += [AdaptiveMisinformation(outliers=Blobs(size=size)) for size in (40, 50)]
    others += [AdaptiveMisinformation(outliers=Filed(place=place)) for place in (0, 1)]
    groups = {cell(defense=each).defense_group for each in others}
    assert len(groups | {usual}) == len(others) + 1
    assert cell(defense=RandomNoise(None, scale=9)).defense_group in groups


def test_a_theft_group_is_of_the_victim_but_for_its_seed_and_of_the_pools_images():
    usual = cell()
    same = ("seed", "epsilon", "defense", "noise", "budget", "recovery", "epochs", "min_steps", "weight_decay")
    for name, change in CHANGES.items():
        assert (cell(**change).theft_group == usual.theft_group) == (name in (*same, "victim_seed")), name
    plain, labelled = (cell(pool=Labelled(), attack=each) for each in (KnockoffNets(50), KnockoffAdaptive(50)))
    assert labelled.contents() != plain.contents()  # it uses the labels
    assert labelled.theft_group == plain.theft_group
    assert cell(pool=Filed()).theft_group != cell(pool=Filed(place=1)).theft_group


def test_the_victims_seed_is_recorded_where_it_is_not_the_cells():
    assert [about(each)["victim_seed"] for each in (cell(), cell(seed=1), cell(seed=1, victim=victim(seed=1)))] == [
        None,
        0,
        None,
    ]


READING = """
import functools, os, torch

model, scale, rows, label, where, cache, loaded, calls = None, 3, (1, 2), "a", os.path.abspath("x"), {}, None, 0
width = 3
height: int = 28
texts = None

def plain(images):
    return images.width

def direct(images):
    return model(images)

@torch.no_grad()
@functools.lru_cache
def decorated(images):
    return [model(each) for each in images]

def helped(images):
    return direct(images)

def closed():
    return lambda images: model(images)

inner = closed()

class Owner:
    @classmethod
    def method(cls, images):
        return model(images)

def literal(images):
    return images * width / height

def caching(images):
    global calls
    calls += 1
    cache[calls] = images
    return lazy()(images), __file__, where, texts

def lazy():
    global loaded
    loaded = loaded or torch.nn.Linear(2, 2)
    return loaded
"""


@pytest.fixture
def reading(tmp_path, monkeypatch):
    (tmp_path / "reading_toy.py").write_text(READING)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "reading_toy", raising=False)
    yield importlib.import_module("reading_toy")
    del sys.modules["reading_toy"]


MODELS = [(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), (torch.zeros(2), torch.ones(2)), (np.zeros(2), np.ones(2))]


@pytest.mark.parametrize("which", ["direct", "decorated", "helped", "inner", "method"])
@pytest.mark.parametrize(("one", "other"), [*MODELS, (2, 2.5), ("a", "b"), ((1, 2), (1, 3))])
def test_what_a_function_reads_from_its_module_is_in_its_name(which, one, other, reading):
    function = reading.Owner.method if which == "method" else getattr(reading, which)
    found = [describe(function)]
    for reading.model in (one, other, copy.deepcopy(one)):
        found.append(describe(function))
    assert found[1] == found[3]
    assert len({str(each) for each in found}) == 3


def test_what_the_source_tells_or_a_function_keeps_for_itself_is_no_further_part_of_its_name(reading):
    for name in ("plain", "direct", "literal", "caching"):
        assert isinstance(describe(getattr(reading, name)), str)
    reading.caching(torch.zeros(1, 2))
    reading.where, reading.texts = "/elsewhere", np.array(["a"])
    assert isinstance(describe(reading.caching), str)
    reading.width = 4
    assert describe(reading.literal)["globals"] == {"reading_toy.width": 4}
