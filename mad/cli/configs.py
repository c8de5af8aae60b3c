"""The folders of configs, the choices in them, and the paths in their values."""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from mad.cli import sources
from mad.errors import MadError

ALIASES = {
    "knockoff/architecture": "architecture",
    "defense/surrogate/architecture": "architecture",
    "defense/surrogate/dataset": "dataset",
    "defense/surrogate/pool": "pool",
    "defense/outliers": "pool",
}
FURTHER: list[Path] = []  # the user's folder of configs, if the command line names one
SCHEMA = r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema"  # how a warning of Hydra's begins
OWN = re.compile(r"^victim\.architecture=([\w,]+)$")
HOME = re.compile(r"([\w./@+]+)=(~[^'\"(){}\[\],]*)")  # a value with ~, which Hydra needs in quotes


def config_dir() -> Path:
    """Return the folder of configs: inside an installed wheel, or at the top of a clone."""
    package = Path(__file__).parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


@functools.cache
def register_aliases() -> None:
    """Make the choices of some config groups available in other groups (``ALIASES``), without copies of files."""
    sources.register()
    for group, source in ALIASES.items():
        for file in sorted((config_dir() / source).glob("*.yaml")):
            node = {"defaults": [f"/{source}/{file.stem}@_here_"]}
            ConfigStore.instance().store(group=group, name=file.stem, node=node)


@functools.cache
def groups() -> list[str]:
    """Return the config groups, such as ``victim`` and ``defense/surrogate``."""
    defaults = OmegaConf.load(config_dir() / "config.yaml").defaults
    chosen = [str(key) for line in defaults if OmegaConf.is_dict(line) for key in line]
    return sorted({*(key for key in chosen if " " not in key), *ALIASES, "defense/surrogate"})


def experiments() -> list[str]:
    """Return the names of all experiments, as ``experiment=`` takes them; also those in subfolders and the user's."""
    places = [folder / "experiment" for folder in (config_dir(), *FURTHER)]
    return sorted({file.relative_to(at).with_suffix("").as_posix() for at in places for file in at.rglob("*.yaml")})


def sweeps(name: str) -> bool:
    """Return whether an experiment's YAML says that it is a sweep; False if there is no such experiment."""
    for file in (folder / "experiment" / f"{name}.yaml" for folder in (*FURTHER, config_dir())):
        with suppress(Exception):  # a file that cannot be read is told of where it is chosen
            return bool(OmegaConf.select(OmegaConf.load(file), "hydra.mode") == "MULTIRUN")
    return False


def choices_with(full_key: str) -> list[str]:
    """Return the choices, such as ``victim=own``, whose YAML sets a key, such as ``victim.weights`` or ``data``."""
    found = []
    for file in (file for folder in (config_dir(), *FURTHER) for file in sorted(folder.glob("*/*.yaml"))):
        group = file.parent.name
        with suppress(Exception):  # a file that cannot be read is told of where it is chosen
            whole = "# @package _global_" in file.read_text(encoding="utf-8")
            if group not in groups() or not (whole or full_key.startswith(f"{group}.")):
                continue
            part = OmegaConf.load(file)
            above, _, key = (full_key if whole else full_key.removeprefix(f"{group}.")).rpartition(".")
            within = OmegaConf.select(part, above) if above else part
            found += [f"{group}={file.stem}"] if isinstance(within, DictConfig) and key in within else []
    return found


def home(name: str, value: Any) -> str:
    """Return a path with a leading ``~`` expanded, as a shell does.

    Raises:
        MadError: if the value is not a path, or if the user does not exist.
    """
    if not isinstance(value, (str, int)) or isinstance(value, bool) or value == "":
        raise MadError(f"{name} must be a path, got {value!r}")
    found = os.path.expanduser(str(value))
    if found.startswith("~"):
        raise MadError(f"{name}={value}: there is no such user; write ./{value} for a folder of that name")
    return found


def at_home(part: DictConfig, name: str) -> DictConfig:
    """Return a part of a config, with interpolations resolved and a leading ``~`` of each string expanded."""

    def spelled(value: Any, name: str) -> Any:
        if isinstance(value, dict):
            return {key: spelled(each, f"{name}.{key}") for key, each in value.items()}
        if isinstance(value, list):
            return [spelled(each, name) for each in value]
        return home(name, value) if isinstance(value, str) and value.startswith("~") else value

    return OmegaConf.create(spelled(OmegaConf.to_container(part, resolve=True), name))


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress Hydra's warnings about the launchers' schemas: the files in conf/hydra/launcher are complete."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=SCHEMA)
        yield


@contextmanager
def own_hydra() -> Iterator[None]:
    """Replace Hydra's global state for the block, and restore it afterwards: a caller may use Hydra itself."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().clear()
        GlobalHydra.instance().hydra = before


def outputs_of(config: DictConfig) -> Path:
    """Return the outputs folder that a config names."""
    return Path(home("outputs", config.outputs))


def further(folder: str | None) -> Path | None:
    """Set the user's folder of configs, and return its path.

    Raises:
        MadError: if the folder does not exist.
    """
    FURTHER.clear()
    if folder is None:
        return None
    place = Path(home("--config-dir", folder)).absolute()
    if not place.is_dir():
        raise MadError(f"--config-dir {folder}: there is no such folder; it holds one folder a group, like defense/")
    FURTHER.append(place)
    return place


def folder_of(given: list[str]) -> Path | None:
    """Take ``--config-dir FOLDER`` from a command line, in place; return the folder, None if none is said.

    Raises:
        MadError: if there is no such folder.
    """
    place = next((number for number, word in enumerate(given) if word.partition("=")[0] == "--config-dir"), None)
    if place is None:
        return None
    _, equals, folder = given.pop(place).partition("=")
    if not equals and place == len(given):
        raise MadError("--config-dir needs the folder that holds one folder a group, like defense/")
    return further(folder if equals else given.pop(place))


def composed(words: Sequence[str], place: Path | None = None) -> DictConfig:
    """Return the config of a command line's words.

    Args:
        words: the overrides, as ``mad-run`` takes them.
        place: the user's folder of configs, from ``further``.
    """
    search = [] if place is None else [f"hydra.searchpath=['{place}']"]
    register_aliases()
    with quiet(), hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return hydra.compose("config", [*search, *quoted(list(words))])


def quoted(words: list[str]) -> list[str]:
    """Return the overrides of a command line as Hydra needs them.

    Values that begin with ``~`` get quotes. ``victim.architecture=NAME`` is the choice ``architecture=NAME``.
    """
    words = [OWN.sub(r"architecture=\1", word) for word in words]
    found = ((word, HOME.fullmatch(word)) for word in words)
    return [f"{match[1]}='{match[2]}'" if match else word for word, match in found]
