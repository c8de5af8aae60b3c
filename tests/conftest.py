"""What all tests share: fixtures, and which tests are left out."""

from __future__ import annotations

import gc
import os
import sys

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hypothesis import settings
from toys import exit_code

from mad.cli import data
from mad.cli import run as run_command
from mad.cli.command import OBJECTS
from mad.environment import TRACEBACK
from mad.training import Trainer

gc.set_threshold(OBJECTS)  # as in the commands
settings.register_profile("plain", deadline=None, database=None, max_examples=60)
settings.load_profile("plain")


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
        return exit_code(monkeypatch, data.main, "mad-data", *arguments)

    return call


@pytest.fixture
def mad_run(tmp_path, monkeypatch, capfd):
    """Run mad-run in this process, in an empty folder; return its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("HYDRA_FULL_ERROR", TRACEBACK, "MAD_DATA"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)

    def call(*arguments):
        GlobalHydra.instance().clear()
        wishes = {name: os.environ.get(name) for name in ("HYDRA_FULL_ERROR", TRACEBACK)}
        code = exit_code(monkeypatch, run_command.main, "mad-run", *arguments)
        for name, value in wishes.items():  # mad-run changes them for the rest of its process
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        return code, *capfd.readouterr()

    yield call
    GlobalHydra.instance().clear()
