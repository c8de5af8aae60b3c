"""The review of a defense: each planted defect is found by its check, and what is shipped passes."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from defects import FOUND, LATER, Global, Good, OverBudget, Raising
from toys import build, compose, composed_choices

from mad.errors import MadError
from mad.lint.memory import held_bytes
from mad.lint.review import CHECKS, FIRST, review
from mad.lint.subject import Subject, ask
from mad.storage.store import Store
from mad.testing import Blobs, toy_victim

QUICK = {  # training settings that do for a promise
    "dp_sgd": {"min_steps": 1, "epochs": 1},
    "edm": {"networks": 2, "outliers": {"size": 50}},
    "ini": {"outliers": {"size": 50}, "epochs": 1},
    "queen": {"shadows": 1, "map_steps": 5},
}
NODES = composed_choices("defense") | {
    "gradient_redirection": compose(
        "defense=gradient_redirection", "defense/surrogate=random", "defense/surrogate/architecture=mlp"
    ).defense
}


def reviewed(defense, store=None, images=40, queries=120):
    given = Subject(toy_victim(4), defense, Blobs(), store=store, second=store, images=images, queries=queries)
    return {each.check: each for each in review(given)}


@pytest.fixture(scope="module")
def good():
    return reviewed(Good())


def test_what_keeps_its_promises_passes(good):
    assert list(good) == [*FIRST, *CHECKS]
    assert {name: each.reason for name, each in good.items() if each.verdict != "pass" and name != "cost"} == {}


@pytest.mark.parametrize("kind", FOUND, ids=lambda kind: kind.__name__)
def test_a_planted_defect_is_found_by_its_check(kind, good):
    found = reviewed(kind())
    for verdict, check, reason in (FOUND[kind], *([LATER[kind]] if kind in LATER else [])):
        assert found[check].verdict == verdict, found[check].reason
        assert re.search(reason, found[check].reason), found[check].reason
        assert good[check].verdict == "pass"


def test_what_cannot_be_called_ends_the_review():
    found = reviewed(Raising())
    assert list(found) == [*FIRST, "other checks"]
    assert found["other checks"].reason == f"{len(CHECKS)} are not run until this is mended"


@pytest.mark.parametrize("name", NODES)
def test_what_is_shipped_fails_no_check(name, tmp_path):
    defense = build(NODES[name], **QUICK.get(name, {}))
    found = reviewed(defense, Store(tmp_path))
    assert {check: each.reason for check, each in found.items() if each.verdict == "fail"} == {}
    if name in ("mad", "permuted", "argmax", "none"):
        assert found["export"].verdict == "pass"


@dataclass
class Refusing(Good):
    name = "refusing"

    def check(self, victim):
        if victim.dataset.classes > 10:
            raise MadError("at most 10 classes")


def test_a_refused_number_of_classes_is_a_note():
    found = reviewed(Refusing())["2 and 100 classes"]
    assert (found.verdict, found.reason) == ("note", "100 classes are refused (at most 10 classes)")
    assert reviewed(Good())["2 and 100 classes"].verdict == "pass"


def test_global_generators_are_left_as_they_were():
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    reviewed(Global())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


def test_raw_answers_are_those_before_the_repair():
    clean = torch.tensor([[0.7, 0.3], [0.4, 0.6]])
    ready = OverBudget(0.1)
    seen = ask(ready, torch.zeros(2, 1, 8, 8), clean, size=1)
    assert torch.equal(seen.rows, clean.flip(1))
    assert len(seen.raw) == 2
    assert torch.allclose((seen.answers - clean).abs().sum(dim=1), torch.tensor([0.1, 0.1]))
    assert not seen.wrote
    assert "perturb" not in vars(ready)


def test_memory_counts_what_attributes_refer_to():
    class Slotted:
        __slots__ = ("held",)

    class Owner:
        shared = []  # noqa: RUF012

    owner = Owner()
    empty = held_bytes(owner)
    owner.held = {"a": [torch.zeros(1000), (np.zeros(500),)]}
    once = held_bytes(owner)
    assert 8000 < once - empty < 9000
    owner.same = owner.held["a"][0][:10]  # a view of what is counted
    assert held_bytes(owner) - once < 500
    slotted = Slotted()
    slotted.held = torch.zeros(1000)
    owner.more = slotted
    Owner.shared.append(torch.zeros(1000))
    assert 8000 < held_bytes(owner) - once < 9500
