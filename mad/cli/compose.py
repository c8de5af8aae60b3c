"""Building a cell from a composed config."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from mad.cell import Cell
from mad.cli import chained, configs
from mad.errors import MadError

PARTS = ("victim", "pool", "defense", "attack", "recovery", "knockoff")
APART = ("outputs", "data_root", "force", "device", "export", "plan")  # settings of the run, not of the cell
INNER = ("victim.dataset", "victim.architecture", "victim.trainer", "knockoff.trainer", "defense.surrogate")


def cell_of(config: DictConfig, words: Iterable[str] = ()) -> Cell:
    """Build the cell that a config describes; nothing is run.

    Args:
        config: the composed config.
        words: the overrides that it was composed with, for the cell's record.
    """
    if config.get("grid"):
        raise MadError("this experiment is a grid of cells, not one: choose no second experiment beside it, and say -m")
    for name in (*PARTS, *INNER):
        part = OmegaConf.select(config, name)
        if part is not None and not OmegaConf.is_config(part):
            raise MadError(
                f"{name}={part}: {name} has keys of its own, so a word cannot stand for it; set one of them, "
                f"or choose another {name.partition('.')[0]}, as mad-run --help lists them"
            )
        if part is not None and "_target_" not in part:
            raise MadError(f"the YAML of {name} has no _target_: add the class, such as _target_: my_module.MyClass")
    config = chained.expanded(config)
    found = {name: None if config[name] is None else configs.at_home(config[name], name) for name in PARTS}
    parts: dict[str, Any] = {"attack": hydra.utils.instantiate(found["attack"], _convert_="all")}
    if not getattr(parts["attack"], "needs_pool", True):
        found["pool"] = None  # victim=own has one whose path nobody sets for an attack without a pool
    parts |= {name: hydra.utils.instantiate(found[name], _convert_="all") for name in PARTS if name != "attack"}
    what = [word for word in words if word.partition("=")[0].lstrip("+~") not in APART]
    return Cell(**parts, seed=config.seed, probe=config.probe, overrides=shlex.join(what))
