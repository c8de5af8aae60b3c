"""Building a cell from command-line overrides, in Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hydra
from omegaconf import OmegaConf

from mad.cell import Cell
from mad.cli import configs, grid
from mad.cli.compose import cell_of
from mad.cli.messages import one_line, unfit
from mad.errors import RAISED, MadError, UnfitError, check_kind

ELSEWHERE = ("outputs", "device", "threads", "force", "export")


def load(*words: str, config_dir: str | Path | None = None) -> Cell:
    """Return the cell that ``mad-run`` would run for the same overrides; nothing is run.

    Args:
        words: one override each, such as ``"defense=mad"``; sweeps are not allowed.
        config_dir: an additional folder of configs, for plug-ins of your own.

    Raises:
        MadError: if the overrides do not describe a cell; the text says which one is wrong and what to do. UnfitError
            if the adversary does not go with the victim, its data or the pool.
    """
    for word in words:
        check_kind("an override", word, str, "'defense=mad', one an argument")
        key = word.partition("=")[0].lstrip("+~")
        if key == "plan":
            raise MadError(f"{word}: a plan is mad-run's; a cell is what determines the numbers")
        if key in ELSEWHERE:
            raise MadError(f"{word}: say {key} to mad.run or mad.deploy; a cell is what determines the numbers")
    try:
        place = configs.further(None if config_dir is None else str(config_dir))
        with configs.own_hydra():
            return replace(cell_of(configs.composed(words, place), words), config_dir=place)
    except RAISED as error:  # Hydra's and OmegaConf's errors have many lines
        raise (UnfitError if unfit(error) else MadError)(one_line(error)) from error


def members() -> list[list[str]]:
    """Return the overrides of each member of the panel, as ``conf/experiment/panel.yaml`` lists them."""
    lines = OmegaConf.load(configs.config_dir() / "experiment" / "panel.yaml").grid
    with configs.own_hydra(), hydra.initialize_config_dir(str(configs.config_dir()), version_base="1.3"):
        return [member for line in lines for member in grid.split(grid.words(line))]
