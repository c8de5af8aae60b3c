"""What an author writes outside this package belongs to the name of what it makes."""

import copy
import importlib
import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from toys import Tiny, cell

from mad.architectures.lenet import LeNet
from mad.defenses.mad import Mad
from mad.errors import MadError
from mad.storage.fingerprint import describe, digest, settings
from mad.storage.source import source

PLUGIN = """
from dataclasses import dataclass

import torch
from mad.defenses import Defense
from plug_base import Base


@dataclass
class Flatten(Base):
    name = "flatten"
    epsilon: float | None = 0.5

    def perturb(self, images, clean):
        from plug_late import amount

        return torch.full_like(clean, amount / clean.shape[1])


class Net(torch.nn.Module):
    @classmethod
    def small(cls, shape, classes):
        return cls()


class Other(Net):
    pass


def net(shape, classes, width=64):
    return Net()
"""
FILES = {
    "plug": PLUGIN,
    "plug_base": "from mad.defenses import Defense\n\n\nclass Base(Defense):\n    pass\n",
    "plug_late": "from plug_pack import deep\n\namount = 1\n",
    "plug_pack/__init__": "",
    "plug_pack/deep": "from . import deeper\n",
    "plug_pack/deeper": "import plug_pack.deep\n",
    "plug_aside": "",
}
LIGHT = "class Net:\n    pass\n"  # imports no torch


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "plug_pack").mkdir()
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(text)
    yield tmp_path
    forget()


def forget():
    """Leave sys.modules as in a process that starts."""
    for name in [name for name in sys.modules if name.startswith("plug")]:
        del sys.modules[name]
    importlib.invalidate_caches()


def flatten():
    forget()
    return importlib.import_module("plug").Flatten()


def edit(folder, name, text="\nmore = 1\n"):
    file = folder / f"{name}.py"
    file.write_text(file.read_text() + text)


@pytest.mark.parametrize("name", FILES)
def test_an_edit_is_another_name_wherever_the_author_wrote_it(name, folder):
    before = cell(defense=flatten())
    names = before.fingerprint, before.comparison_group, settings(before.defense)
    edit(folder, name)
    assert (before.fingerprint, before.comparison_group) == names[:2]  # a cell that is being made keeps its name
    after = cell(defense=flatten())
    assert (after.fingerprint != names[0]) == (name != "plug_aside")
    assert (settings(after.defense) != names[2]) == (name != "plug_aside")  # it is no further seed of the same curve
    assert after.comparison_group == names[1]
    assert after.reference.fingerprint == cell().reference.fingerprint


def test_the_place_of_a_plugin_is_no_part_of_its_name(folder, tmp_path, monkeypatch):
    here = describe(flatten())
    other = tmp_path / "other"
    other.mkdir()
    for name in FILES:
        (other / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.py").rename(other / f"{name}.py")
    monkeypatch.syspath_prepend(other)
    assert describe(flatten()) == here


def test_another_process_gives_the_same_name(folder):
    code = "import sys; sys.path[:0] = sys.argv[1:]; from mad.storage.fingerprint import *"
    code += "; import plug_aside, plug_late, plug"
    code += "; print(digest(describe([plug.Flatten(), plug.net])))"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    made = flatten()
    assert done.stdout.strip() == digest(describe([made, sys.modules["plug"].net]))


def test_an_edit_counts_once_it_is_loaded(folder):
    """The process goes on with what it has imported, and names that."""
    first, fresh = flatten(), describe
    before = fresh(first)
    edit(folder, "plug")
    assert describe(first) == before
    again = importlib.reload(sys.modules["plug"]).Flatten()
    assert describe(again) != before


PROVIDED = (LeNet, Mad, torch.nn.ReLU, torch.nn.functional.relu, len, dict, partial, subprocess.run)


@pytest.mark.parametrize("thing", PROVIDED)
def test_what_is_provided_is_named_alone(thing):
    assert source(thing) is None
    assert describe(thing) == f"{thing.__module__}.{thing.__qualname__}" + (" version 2" if thing is LeNet else "")


def test_a_module_that_hides_one_of_pythons_is_the_users(tmp_path, monkeypatch):
    (tmp_path / "this.py").write_text("def net(shape, classes):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "this", raising=False)
    from mad.storage.source import provided

    provided.cache_clear()
    assert source(importlib.import_module("this").net)
    provided.cache_clear()
    del sys.modules["this"]


def test_installed_plugins_are_named_by_their_own_package(tmp_path, monkeypatch):
    place = tmp_path / "site-packages"
    for package in ("plug_own", "plug_foreign"):
        (place / package).mkdir(parents=True)
        (place / package / "__init__.py").write_text("from plug_own import part\nimport plug_foreign\n")
        (place / package / "part.py").write_text("def net(shape, classes):\n    pass\n")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(place)

    def name():
        forget()
        return source(importlib.import_module("plug_own.part").net)

    names = [name()]
    edit(place, "plug_foreign/__init__")
    names.append(name())
    edit(place, "plug_own/__init__")
    names.append(name())
    forget()
    assert names[0] == names[1] != names[2]


SCRIPT = """
from multiprocessing import get_context
from mad.storage.fingerprint import describe
from plug_light import Net


class Wide(Net):
    def forward(self, images):
        return images


class Bare(Net):
    factor = 2


def both():
    return describe([Wide, Bare, lambda shape, classes: None])


if __name__ == "__main__":
    with get_context("spawn").Pool(1) as pool:
        assert pool.apply(both) == both()
    print(both())
"""


def test_a_script_is_named_by_its_file_in_its_workers_too(folder):
    said = []
    for text, light in ((SCRIPT, LIGHT), (SCRIPT, LIGHT), (SCRIPT + "\n# edited", LIGHT), (SCRIPT, LIGHT + "# edited")):
        (folder / "script.py").write_text(text)
        (folder / "plug_light.py").write_text(light)
        done = subprocess.run([sys.executable, str(folder / "script.py")], capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1]
    assert len(set(said)) == 3


def test_what_was_written_in_no_file_is_one_line():
    code = "from mad.storage.fingerprint import *\nclass Net: pass\n"
    code += "try: describe(Net)\nexcept Exception as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Net was not written in a file")
    assert len(done.stdout.splitlines()) == 1


def made(width, *, late=1):
    def net(shape, classes, layers=width):
        return Tiny(shape, (classes, width, late))

    class Wide(Tiny):
        layers = late

        def forward(self, images):
            return images * width

    return net, Wide, lambda shape, classes, width=width: width


@pytest.mark.parametrize("which", range(3))
def test_what_is_made_inside_a_function_is_told_apart_by_what_it_took_along(which):
    names = [digest(describe(made(width, late=late)[which])) for width, late in ((8, 1), (9, 1), (8, 1))]
    assert names[0] == names[2] != names[1]


def test_methods_are_told_apart_by_whose_they_are(folder):
    flatten()
    plug = sys.modules["plug"]
    assert describe(plug.Net.small) != describe(plug.Other.small)
    assert describe(partial(plug.Net.small, width=3)) != describe(partial(plug.Other.small, width=3))


def test_none_may_mean_something_to_a_plugin(folder):
    flatten()
    net = sys.modules["plug"].net
    assert describe(partial(net, width=None)) != describe(partial(net))
    assert describe(partial(LeNet, weights=None)) == describe(partial(LeNet))


def test_an_argument_that_is_no_field_is_refused():
    class Hidden(Mad):
        def __init__(self, strength, epsilon=0.5):
            super().__init__(epsilon)
            self.strength_ = strength

    with pytest.raises(MadError, match="Hidden takes strength, which"):
        cell(defense=Hidden(3)).fingerprint  # noqa: B018


def test_a_network_is_named_by_its_class_layers_and_weights():
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert describe(one) == describe(copy.deepcopy(one)) != describe(other)
    assert describe(torch.nn.Dropout(0.1)) != describe(torch.nn.Dropout(0.2))


def test_what_has_no_name_is_one_line():
    with pytest.raises(MadError, match="cannot fingerprint"):
        describe([torch.Generator()])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_description_is_always_json(value):
    assert digest(describe([value])) == digest([str(value)])


def test_a_file_that_a_plugin_reads_belongs_to_its_name(tmp_path):
    @dataclass
    class Noise:
        table: str
        name: str = "noise"

    def described(content):
        (tmp_path / "noise.npy").write_bytes(content)
        return describe(Noise(str(tmp_path / "noise.npy")))

    first = described(b"one")
    assert described(b"another") != first
    assert described(b"one") == first
    assert "contents" not in describe(Noise("no such file"))
