"""What the lists, dicts and sets hold that a function reads from its module."""

import importlib
import json
import linecache
import sys

import pytest
import torch

from mad.storage.fingerprint import describe
from mad.storage.reading import read_globals, untold

HOLDING = """
import torch

table = {"a": 1}
scales = [1, 2]
nested = {"a": [1, {"b": None}]}
names = {"x", "y"}
computed = list(range(3))
cache, seen, lent, filled = {}, [], {}, dict()

def reads(images):
    scale = table["a"] + scales[0] + len(nested["a"])
    images[0] = scales[1]
    return images * scale * ("x" in names)

def computes(images):
    return images * sum(computed)

def caches(images):
    cache.setdefault("a", []).append(1)
    known = seen
    known[:] = [1.0]
    filled["a"] = 1
    return given()

def given():
    return lent
"""


@pytest.fixture
def holding(tmp_path, monkeypatch):
    (tmp_path / "holding_toy.py").write_text(HOLDING)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("holding_toy")
    del sys.modules["holding_toy"]


def test_what_lists_and_dicts_hold_is_in_the_name_of_a_function_that_reads_them(holding):
    usual = describe(holding.reads)
    assert isinstance(usual, str)  # what the source says is told by its hash
    found = [usual]
    for name, value in (
        ("table", {"a": 2}),
        ("table", {"a": 1, "b": None}),
        ("table", {"a": True, "b": None}),
        ("scales", [1, 2.5]),
        ("nested", {"a": [1, {"b": "c"}]}),
        ("nested", {"a": [1, {"b": (1, None)}]}),
        ("names", {"x", "z"}),
        ("names", frozenset("xyz")),
    ):
        setattr(holding, name, value)
        found.append(json.dumps(describe(holding.reads)))
    assert len({*found}) == len(found)
    assert describe(holding.computes)["globals"] == {"holding_toy.computed": [0, 1, 2]}
    holding.computed.append(7)
    assert describe(holding.computes)["globals"] == {"holding_toy.computed": [0, 1, 2, 7]}


def test_sets_are_told_in_one_order(holding):
    holding.names = {f"name {number}" for number in range(50)}
    one = describe(holding.reads)
    holding.names = set(sorted(holding.names, reverse=True))
    assert describe(holding.reads) == one


def test_what_a_function_fills_itself_or_what_does_not_tell_is_no_part_of_its_name(holding):
    usual = describe(holding.caches)
    assert isinstance(usual, str)
    holding.caches(torch.zeros(1))
    holding.lent["a"] = 1
    assert (holding.cache, holding.seen, holding.filled) == ({"a": [1]}, [1.0], {"a": 1})
    assert describe(holding.caches) == usual
    reads = describe(holding.reads)
    holding.table = {"a": 1, "b": print, object(): 1, "c": [], "d": "/elsewhere", "e": {}}
    assert describe(holding.reads) == reads
    holding.table = [0] * 20_000
    assert describe(holding.reads) == reads
    holding.table = [1]
    holding.table.append(holding.table)
    assert describe(holding.reads) == reads


def test_a_function_without_a_source_may_fill_what_it_reads():
    space = {"__name__": "__main__", "table": [1]}
    exec("def reads(images):\n    return images * table[0]", space)
    assert read_globals(space["reads"]) == {}
    cell = "<cell 1>"
    linecache.cache[cell] = (1, None, ["def reads(images):\n", "    return images * table[0]\n"], cell)
    exec(compile("".join(linecache.cache[cell][2]), cell, "exec"), space)
    assert read_globals(space["reads"]) == {"__main__.table": [1]}


OBJECTS = """
import logging
from pathlib import Path

import torch
from numpy import dtype, exp

class Model:
    def __call__(self, images):
        return images

log, place, name, weights, network = logging.getLogger("a"), Path("a"), "/a", torch.ones(2), torch.nn.Linear(2, 2)
model, other, unread, lazy = Model(), Model(), Model(), None
device, form, kind = torch.device("cpu"), torch.float32, dtype("float32")

def reads(images):
    log.debug(f"{place} {name} {weights} {network} {exp(0)} {device} {form} {kind}")
    return helps(model(images))

def helps(images):
    global lazy
    lazy = lazy or Model()
    return other(images)
"""


def test_objects_that_nothing_tells_are_named(tmp_path, monkeypatch):
    (tmp_path / "objects_toy.py").write_text(OBJECTS)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    toy = importlib.import_module("objects_toy")
    assert untold(toy.reads) == {"model": "Model", "other": "Model"}
    assert untold(toy.helps) == {"other": "Model"}
    del sys.modules["objects_toy"]
