"""Toy parts, small enough to train in milliseconds, and a way to compose the shipped configs."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from functools import cache

import hydra
import numpy as np
import torch
from hydra.core.global_hydra import GlobalHydra
from scipy import optimize
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mad.architectures.resnet import BasicBlock, ResNet
from mad.attacks.knockoff_nets import KnockoffNets
from mad.cli import configs
from mad.defenses.mad import Mad
from mad.errors import MadError
from mad.knockoff import Knockoff
from mad.pipeline import Cell
from mad.recoveries import AsAnswered
from mad.testing import Blobs
from mad.training import Trainer
from mad.victim import Victim

CPU = torch.device("cpu")


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


@dataclass(frozen=True)
class Others(Blobs):
    """A pool of images like those of ``Blobs``, of none of its four classes."""

    classes: int = 7
    name: str = "others"

    def images(self, shape):
        drawn = self.split("pool")
        return drawn.images[drawn.labels >= 4]


class SmallNet(ResNet):
    """A residual network of one block, with batch norms."""

    block, depths = BasicBlock, (1, 0, 0, 0)


class Tiny(nn.Module):
    """One linear layer."""

    def __init__(self, shape, classes):
        super().__init__()
        self.head = nn.Linear(torch.Size(shape).numel(), classes)

    def forward(self, images):
        return self.head(images.flatten(1))


class Warm(Tiny):
    """A factory that loads weights, such as the victim's."""

    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        with torch.no_grad():
            self.head.weight.copy_(torch.linspace(-1, 1, self.head.weight.numel()).view_as(self.head.weight))


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
        "attack": KnockoffNets(budget),
        "recovery": AsAnswered(),
        "knockoff": Knockoff(trainer()),
    }
    return Cell(**{**parts, **changes})


def compose(*overrides: str):
    """Return the config that mad-run would compose from a command line, for a test to change as it likes."""
    GlobalHydra.instance().clear()
    return copy.deepcopy(composed(*overrides))


@cache
def composed(*overrides: str):
    """Return what ``compose`` copies: Hydra takes a tenth of a second."""
    configs.register_aliases()
    with hydra.initialize_config_dir(str(configs.config_dir()), version_base="1.3"):
        return hydra.compose("config", overrides=list(overrides))


def composed_choices(group: str):
    """Return the config of each choice of a group by its name, all from one composition."""
    every = compose(*(f"+{group}@every.{name}={name}" for name in choices(group))).every
    return {name: every[name] for name in choices(group)}


def build(node, **changes):
    return hydra.utils.instantiate(node, _convert_="all", **changes)


def choices(group: str) -> list[str]:
    return sorted(file.stem for file in (configs.config_dir() / group).glob("*.yaml"))


def exit_code(monkeypatch, main, *line):
    """Enter a command in this process, by the words of its line; return its exit code."""
    monkeypatch.setattr(sys, "argv", list(map(str, line)))
    try:
        main()
    except SystemExit as ended:
        return ended.code
    return 0


def program(scores, y, epsilon):
    """Return the highest <scores, q> over the simplex and the L1 ball, by a general solver; q = y + up - down."""
    classes = len(y)
    found = optimize.linprog(
        np.concatenate([-scores, scores]),
        A_ub=np.vstack([np.ones(2 * classes), np.hstack([-np.eye(classes), np.eye(classes)])]),
        b_ub=np.concatenate([[epsilon], y]),
        A_eq=np.concatenate([np.ones(classes), -np.ones(classes)])[None],
        b_eq=[0.0],
    )
    return float(scores @ y - found.fun)
