"""The jobs of a sweep: each line of an experiment's ``grid``, combined with the command line's sweeps."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from mad.cli.configs import groups
from mad.cli.messages import unfit
from mad.errors import MadError

Job = list[str]
SWEEPER = "hydra_plugins.mad_grid.GridSweeper"
LAID_OUT = "grid=[]"  # an override for each job: it has no grid of its own


def leaves_out(error: BaseException, job: Iterable[str]) -> bool:
    """Return whether a grid leaves a job out for an error: an experiment asks for it, the user does not."""
    return LAID_OUT in job and unfit(error)


def chosen(config: DictConfig) -> bool:
    """Return whether a sweep's cells are known before it starts; some sweepers choose them while they run."""
    return bool(config.hydra.sweeper._target_ == SWEEPER)


def jobs(config: DictConfig, overrides: Job) -> list[Job]:
    """Return the overrides of each job of a sweep, without duplicates, in the order of launch: undefended cells first.

    They are the references of the others, whose jobs would otherwise run them while their own jobs wait.

    Args:
        config: the sweep's config with its ``hydra`` node; ``grid`` holds the lines, and may be empty.
        overrides: the overrides of the command line; they come after a line's, and win. If they choose an option of a
            group, such as ``defense=mad``, only the cells of the grid with the same choice are run, if there are any.

    Raises:
        MadError: if a line of the grid does not hold overrides, if an option that the command line chooses lacks keys
            that all lines set, or if there are several outputs folders.
    """
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    grid = config.get("grid") or OmegaConf.create([])
    lines = [words(line) for line in (grid if OmegaConf.is_list(grid) else [grid])]
    last = [LAID_OUT] if lines else []
    asked: dict[str, set[str]] = {}
    for each in split(overrides):
        for key, value in choices(each).items():
            asked.setdefault(key, set()).add(value)
    if len(asked.pop("outputs", ())) > 1:
        raise MadError("outputs cannot be swept over: a sweep has one outputs folder; give one command each")
    cells = [own for line in lines or [[]] for own in split([*params, *line])]
    met = {key for key, values in asked.items() if any(choices(own).get(key) in values for own in cells)}
    found = []
    for own in cells:
        chosen = {key: value for key, value in choices(own).items() if key in asked}
        if any(chosen[key] not in asked[key] for key in chosen if key in met):
            continue
        for key in chosen:
            if key not in met and any(word.startswith((f"{key}.", f"{key}/")) for word in own):
                check(own, overrides, key)
        for job in split([*own, *overrides, *last]):
            wanted = choices(job)
            if all(wanted[key] == chosen[key] for key in chosen if key in met):
                found.append(job)
    if not found:
        raise MadError(f"this sweep has no cell: nothing that there is fits {' '.join(overrides)}")
    distinct = {tuple(sorted(job)): job for job in found}.values()
    return sorted(distinct, key=lambda job: choices(job).get("defense") != "none")


def choices(job: Job) -> dict[str, str]:
    """Return the option that a job's overrides choose in each group, and ``outputs``; one value per key."""
    given = dict(word.partition("=")[::2] for word in job)
    return {key: value for key, value in given.items() if key in groups() or key == "outputs"}


def check(own: Job, overrides: Job, group: str) -> None:
    """Check that an option chosen on the command line has the keys that a line of the grid sets.

    Raises:
        MadError: if it lacks one.
    """
    try:
        hydra.compose("config", overrides=split([*own, *overrides, LAID_OUT])[0])
    except HydraException as error:
        mine, given = choices(own)[group], choices(split(overrides)[0])[group]
        raise MadError(
            f"{group}={given} fits no line of the grid: they choose others, and {' '.join(own)} sets keys that "
            f"{given} does not have, as {mine} does; leave {group}={given} out, or choose one of the grid's"
        ) from error


def split(overrides: Job) -> list[Job]:
    """Return one list of overrides per job: the product of all sweeps; of a repeated key, the last one counts."""
    loader = GlobalHydra.instance().config_loader()  # finds the options that glob(*) matches
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
            if each.get_key_element() == "outputs":
                raise ValueError("outputs= goes on the command line")
    except (ValueError, HydraException) as error:
        like = "overrides, like defense=mad seed=0,1"
        raise MadError(f"a line of the grid must be {like}; got {line!r}: {str(error).splitlines()[0]}") from error
    return found
