"""The parts of ``defense=chain``: each name of a choice becomes the config of that choice."""

from __future__ import annotations

from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from mad.cli import configs
from mad.cli.messages import choose, one_line
from mad.errors import MadError

KEY = "defense.parts"
FORMS = "a name such as prada, a name with its changed settings such as {mad: {epsilon: 0.5}}, or an object's _target_"


def named(config: DictConfig) -> bool:
    """Return whether a defense of a config has parts that are given by name, so that other files say what they are."""
    parts = OmegaConf.select(config, KEY)
    return parts is not None and not all(OmegaConf.is_dict(part) and "_target_" in part for part in parts)


def expanded(config: DictConfig) -> DictConfig:
    """Return a config in which the parts of the defense are configs that can be built.

    Raises:
        MadError: if a part is no choice, or changes a key that its choice does not have.
    """
    parts = OmegaConf.select(config, KEY)
    if not isinstance(parts, ListConfig):
        return config  # a chain refuses anything else itself
    found = config.copy()
    OmegaConf.set_struct(found, False)
    found.defense.parts = [expanded_part(part) for part in OmegaConf.to_container(parts, resolve=False) or []]
    return found


def expanded_part(part: Any) -> dict[str, Any]:
    """Return the config, not resolved, of one part."""
    if isinstance(part, str):
        part = {part: {}}
    if isinstance(part, dict) and "_target_" in part:
        return part
    if not isinstance(part, dict) or len(part) != 1 or not isinstance(next(iter(part.values())) or {}, dict):
        raise MadError(f"a part in {KEY} is {FORMS}, got {part!r}")
    ((name, changes),) = part.items()
    changes = dict(changes or {})
    chosen = [f"defense={name}"]
    for key in [key for key in changes if f"defense/{key}" in configs.groups() and isinstance(changes[key], str)]:
        chosen.append(f"defense/{key}={changes.pop(key)}")
    found = choice(chosen)
    change(found, changes, f"part {name} of {KEY}")
    if isinstance(found.get("parts"), list):
        found["parts"] = [expanded_part(each) for each in found["parts"]]
    return found


def change(found: dict[str, Any], changes: dict[str, Any], where: str) -> None:
    """Set keys of a choice's config in place."""
    for key, value in changes.items():
        if key not in found:
            known = [each for each in found if not each.startswith("_")]
            raise MadError(f"unknown key {key!r} in {where}: {choose(str(key), known)}")
        if isinstance(found[key], dict) and isinstance(value, dict) and "_target_" not in value:
            change(found[key], value, f"{key} of {where}")
        else:
            found[key] = value


def choice(words: list[str]) -> dict[str, Any]:
    """Return the config, not resolved, of a choice of a defense, with what it chooses by default."""
    folders = [str(folder) for folder in configs.FURTHER]
    if HydraConfig.initialized():  # a job of a sweep may run in a process of its own
        sources = HydraConfig.get().runtime.config_sources
        folders += [source.path for source in sources if source.schema == "file" and source.provider != "main"]
    search = [f"hydra.searchpath=[{','.join(repr(folder) for folder in dict.fromkeys(folders))}]"] if folders else []
    configs.register_aliases()
    try:
        with (
            configs.own_hydra(),
            configs.quiet(),
            hydra.initialize_config_dir(str(configs.config_dir()), version_base="1.3"),
        ):
            found = OmegaConf.to_container(hydra.compose("config", [*search, *words]).defense, resolve=False)
    except Exception as error:  # Hydra's and OmegaConf's errors have many lines
        raise MadError(f"{KEY}: {one_line(error)}") from error
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}
