"""The jobs of a sweep: every line of an experiment's ``grid``, each times what the command line sweeps over."""

from __future__ import annotations

import shlex
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from mad.errors import MadError

Job = list[str]
SWEEPER = "hydra_plugins.mad_grid.GridSweeper"
LAID_OUT = "grid=[]"  # said to every job of a grid: it is one cell


def chosen(config: DictConfig) -> bool:
    """Return whether a sweep's cells are known before it starts; other sweepers choose them as they go."""
    return bool(config.hydra.sweeper._target_ == SWEEPER)


def jobs(config: DictConfig, overrides: Job) -> list[Job]:
    """Return the overrides of each job of a sweep, every one once, in the order of their launch.

    Args:
        config: the sweep's config with its ``hydra`` node: ``grid`` are its lines, none of them a sweep without lines.
        overrides: the command line's; they come after a line's, and win.

    Raises:
        MadError: if a line of the grid is not overrides as the command line takes them.
    """
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    grid = config.get("grid") or OmegaConf.create([])
    lines = [words(line) for line in (grid if OmegaConf.is_list(grid) else [grid])]
    last = [LAID_OUT] if lines else []
    found = [job for line in lines or [[]] for job in split([*params, *line, *overrides, *last])]
    return list({tuple(sorted(job)): job for job in found}.values())


def split(overrides: Job) -> list[Job]:
    """Return one list of overrides a job: the product of all that is swept over; of one key, the last counts."""
    loader = GlobalHydra.instance().config_loader()  # knows the choices that glob(*) means
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(overrides)
    (every,) = BasicSweeper.split_arguments(parsed, None)
    return every


def words(line: Any) -> Job:
    """Return the overrides of a grid's line."""
    try:
        if not isinstance(line, str):
            raise ValueError("not text")
        found = shlex.split(line)
        for each in OverridesParser.create().parse_overrides(found):
            if each.get_key_element().lstrip("+~").startswith(("hydra.", "hydra/")):
                raise ValueError("hydra's overrides go on the command line")
    except (ValueError, HydraException) as error:
        like = "overrides, like defense=mad seed=0,1"
        raise MadError(f"a line of the grid must be {like}; got {line!r}: {str(error).splitlines()[0]}") from error
    return found
