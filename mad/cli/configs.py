"""Where the configs lie, what can be chosen among them, and how the paths in them are read."""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from mad.errors import MadError

ALIASES = {
    "knockoff/architecture": "architecture",
    "defense/surrogate/architecture": "architecture",
    "defense/surrogate/dataset": "dataset",
}
FURTHER: list[Path] = []  # the user's folder of configs, where the command line names one
HOME = re.compile(r"([\w./@+]+)=(~[^'\"(){}\[\],]*)")  # which Hydra reads only in quotes


def config_dir() -> Path:
    """Return the folder of configs: inside an installed wheel, or at the top of a clone."""
    package = Path(__file__).parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def register_aliases() -> None:
    """Let every choice of ``ALIASES`` be made in further places, with no second file."""
    for group, source in ALIASES.items():
        for file in sorted((config_dir() / source).glob("*.yaml")):
            node = {"defaults": [f"/{source}/{file.stem}@_here_"]}
            ConfigStore.instance().store(group=group, name=file.stem, node=node)


@functools.cache
def groups() -> list[str]:
    """Return what a command line chooses among: ``victim``, ``defense/surrogate`` and the like."""
    defaults = OmegaConf.load(config_dir() / "config.yaml").defaults
    chosen = [str(key) for line in defaults if OmegaConf.is_dict(line) for key in line]
    return sorted({*(key for key in chosen if " " not in key), *ALIASES, "defense/surrogate"})


def experiments() -> list[str]:
    """Return the experiments, also those in folders of their own and of the user's, as ``experiment=`` takes them."""
    places = [folder / "experiment" for folder in (config_dir(), *FURTHER)]
    return sorted({file.relative_to(at).with_suffix("").as_posix() for at in places for file in at.rglob("*.yaml")})


def home(name: str, value: Any) -> str:
    """Return a path with a leading ``~`` spelled out, as a shell would.

    Raises:
        MadError: if it is no path, or of a user who is not there.
    """
    if not isinstance(value, (str, int)) or isinstance(value, bool) or value == "":
        raise MadError(f"{name} must be a path, got {value!r}")
    found = os.path.expanduser(str(value))
    if found.startswith("~"):
        raise MadError(f"{name}={value}: there is no such user; write ./{value} for a folder of that name")
    return found


def at_home(part: DictConfig, name: str) -> DictConfig:
    """Return a part of a config, its interpolations resolved, with ``~`` spelled out at the beginning of each text."""

    def spelled(value: Any, name: str) -> Any:
        if isinstance(value, dict):
            return {key: spelled(each, f"{name}.{key}") for key, each in value.items()}
        if isinstance(value, list):
            return [spelled(each, name) for each in value]
        return home(name, value) if isinstance(value, str) and value.startswith("~") else value

    return OmegaConf.create(spelled(OmegaConf.to_container(part, resolve=True), name))


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what Hydra says of the launchers' own schemas beside conf/hydra/launcher: those files are whole."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")
        yield


def outputs_of(config: DictConfig) -> Path:
    """Return the outputs folder that a config names."""
    return Path(home("outputs", config.outputs))


def further(folder: str | None) -> Path | None:
    """Take the user's folder of configs, and return its place.

    Raises:
        MadError: if there is none.
    """
    FURTHER.clear()
    if folder is None:
        return None
    place = Path(home("--config-dir", folder)).absolute()
    if not place.is_dir():
        raise MadError(f"--config-dir {folder}: there is no such folder; it holds one folder a group, like defense/")
    FURTHER.append(place)
    return place


def quoted(words: list[str]) -> list[str]:
    """Return the words of a command line with values that begin with ``~`` in the quotes that Hydra wants."""
    found = ((word, HOME.fullmatch(word)) for word in words)
    return [f"{match[1]}='{match[2]}'" if match else word for word, match in found]
