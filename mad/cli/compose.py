"""From a composed config to the cell that it describes."""

from __future__ import annotations

from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from mad.cli import configs
from mad.errors import MadError
from mad.pipeline import Cell

PARTS = ("victim", "pool", "defense", "attack", "recovery", "knockoff")
INNER = ("victim.dataset", "victim.architecture", "victim.trainer", "knockoff.trainer", "defense.surrogate")


def cell_of(config: DictConfig) -> Cell:
    """Build the cell that a config describes; nothing is run."""
    from mad.pipeline import Cell

    if config.get("grid"):
        raise MadError("this experiment is a grid of cells, not one: choose no second experiment beside it, and say -m")
    for name in (*PARTS, *INNER):
        part = OmegaConf.select(config, name)
        if part is not None and not OmegaConf.is_config(part):
            raise MadError(
                f"{name}={part}: {name} has keys of its own, so a word cannot stand for it; set one of them, "
                f"or choose another {name.partition('.')[0]}, as mad-run --help lists them"
            )
    found = {name: configs.at_home(config[name], name) for name in PARTS}
    parts: dict[str, Any] = {name: hydra.utils.instantiate(found[name], _convert_="all") for name in PARTS}
    return Cell(**parts, seed=config.seed)
