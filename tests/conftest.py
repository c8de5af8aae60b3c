"""Toy parts, small enough to train in milliseconds, and a way to compose the shipped configs."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hypothesis import settings
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mad import cli, data
from mad.attacks.knockoff import KnockoffRandom
from mad.datasets import Split
from mad.defenses.mad import Mad
from mad.errors import MadError
from mad.knockoff import Knockoff
from mad.pipeline import Cell
from mad.recoveries import AsAnswered
from mad.seeds import generator
from mad.training import Trainer
from mad.victim import Victim

CPU = torch.device("cpu")
settings.register_profile("plain", deadline=None, database=None, max_examples=60)
settings.load_profile("plain")


@dataclass(frozen=True)
class Blobs:
    """Noisy copies of one random image a class; as a pool, the same in other noise."""

    classes: int = 4
    shape: tuple[int, int, int] = (1, 8, 8)
    size: int = 200
    name: str = "blobs"

    def __post_init__(self):
        object.__setattr__(self, "shape", tuple(self.shape))

    def train(self) -> Split:
        return self._split("train")

    def test(self) -> Split:
        return self._split("test")

    def images(self, shape):
        return self._split("pool").images

    def _split(self, part: str) -> Split:
        centres = torch.randint(0, 200, (self.classes, *self.shape), generator=generator(0, "centres"))
        labels = torch.arange(self.size) % self.classes
        noise = torch.randint(0, 56, (self.size, *self.shape), generator=generator(0, part))
        return Split((centres[labels] + noise).to(torch.uint8), labels)


@dataclass(frozen=True)
class Streamed:
    """The images of a tensor, as a stream; row ``broken`` cannot be read."""

    images: torch.Tensor
    broken: int | None = None

    @property
    def shape(self):
        return tuple(self.images.shape)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        if row == self.broken:
            raise MadError(f"row {row} cannot be read")
        return self.images[row]


class Tiny(nn.Module):
    """One linear layer."""

    def __init__(self, shape, classes):
        super().__init__()
        self.head = nn.Linear(torch.Size(shape).numel(), classes)

    def forward(self, images):
        return self.head(images.flatten(1))


class Moves(TorchDispatchMode):
    """How many images each copy to the device ``meta`` takes there: one that holds nothing, where there is no GPU."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        made = function(*arguments, **(named or {}))
        moved = function is torch.ops.aten._to_copy.default and made.device != arguments[0].device
        if moved and made.dim() == 4:
            self.sizes.append(len(made))
        return made


def trainer(**changes) -> Trainer:
    recipe = {
        "epochs": 8,
        "batch_size": 20,
        "optimizer": "momentum",
        "learning_rate": 0.05,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "schedule": "one_cycle",
    }
    return Trainer(**{**recipe, **changes})


def victim(classes: int = 4, shape=(1, 8, 8), architecture=Tiny, **changes) -> Victim:
    parts = {"name": "toy", "dataset": Blobs(classes, shape), "trainer": trainer()}
    return Victim(architecture=architecture, **{**parts, **changes})


def cell(epsilon: float = 0.5, budget: int | None = 50, **changes) -> Cell:
    parts = {
        "victim": victim(),
        "pool": Blobs(),
        "defense": Mad(epsilon),
        "attack": KnockoffRandom(budget),
        "recovery": AsAnswered(),
        "knockoff": Knockoff(trainer()),
    }
    return Cell(**{**parts, **changes})


def compose(*overrides: str):
    """Return the config that mad-run would compose from a command line."""
    GlobalHydra.instance().clear()
    cli.register_aliases()
    with hydra.initialize_config_dir(str(cli.config_dir()), version_base="1.3"):
        return hydra.compose("config", overrides=list(overrides))


def build(node, **changes):
    return hydra.utils.instantiate(node, _convert_="all", **changes)


def choices(group: str) -> list[str]:
    return sorted(file.stem for file in (cli.config_dir() / group).glob("*.yaml"))


def pytest_collection_modifyitems(config, items):
    """Leave the long fault tests out unless they are named: -m faults."""
    if "faults" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("faults")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def fits(monkeypatch):
    """The names of the trainings that happen."""
    happened = []
    fit = Trainer.fit

    def counting(self, *arguments, **named):
        happened.append(named["task"])
        return fit(self, *arguments, **named)

    monkeypatch.setattr(Trainer, "fit", counting)
    return happened


@pytest.fixture
def mad_data(monkeypatch):
    """Start mad-data in this process, and return its exit code."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["mad-data", *map(str, arguments)])
        try:
            data.main()
        except SystemExit as ended:
            return ended.code
        return 0

    return call


@pytest.fixture
def mad_run(tmp_path, monkeypatch, capfd):
    """Run mad-run in this process, in an empty folder; return its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("HYDRA_FULL_ERROR", cli.TRACEBACK, "MAD_DATA"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)

    def call(*arguments):
        GlobalHydra.instance().clear()
        wishes = {name: os.environ.get(name) for name in ("HYDRA_FULL_ERROR", cli.TRACEBACK)}
        monkeypatch.setattr(sys, "argv", ["mad-run", *arguments])
        code = 0
        try:
            cli.run()
        except SystemExit as exit_:
            code = exit_.code
        for name, value in wishes.items():  # mad-run changes them for the rest of its process
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        return code, *capfd.readouterr()

    yield call
    GlobalHydra.instance().clear()
