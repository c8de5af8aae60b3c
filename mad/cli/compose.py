"""Building a cell from a composed config."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, Node, OmegaConf

from mad.cell import Cell
from mad.cli import chained, configs
from mad.cli.messages import causes
from mad.errors import MadError, SettingError

PARTS = ("victim", "pool", "defense", "attack", "recovery", "knockoff")
APART = ("outputs", "data_root", "force", "device", "export", "plan")  # settings of the run, not of the cell
INNER = ("victim.dataset", "victim.architecture", "victim.trainer", "knockoff.trainer", "defense.surrogate")


class NoPool:
    """Stands for the pool of a cell that is only deployed: an API has no adversary."""

    name = "none"


def cell_of(config: DictConfig, words: Iterable[str] = (), *, deployed: bool = False) -> Cell:
    """Build the cell that a config describes; nothing is run.

    Args:
        config: the composed config.
        words: the overrides that it was composed with, for the cell's record.
        deployed: whether only its victim and defense are wanted; its pool need not be there then.
    """
    if config.get("grid"):
        raise MadError(
            "this experiment is a grid of cells, not one: mad-run -m runs it, without a second one beside it"
        )
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
    parts: dict[str, Any] = {"attack": built(config, "attack", found["attack"])}
    if deployed or not getattr(parts["attack"], "needs_pool", True):
        found["pool"] = None  # victim=own has one whose path nobody sets for an attack without a pool
    parts |= {name: built(config, name, found[name]) for name in PARTS if name != "attack"}
    if deployed:
        parts["pool"] = NoPool()
    what = [word for word in words if word.partition("=")[0].lstrip("+~") not in APART]
    return Cell(**parts, seed=config.seed, probe=config.probe, overrides=shlex.join(what))


def built(config: DictConfig, name: str, part: DictConfig | None) -> Any:
    """Return the object that a part of a config describes.

    Raises:
        MadError: if a setting of it has a wrong value; the line has its key as the command line takes it.
    """
    try:
        return hydra.utils.instantiate(part, _convert_="all")
    except InstantiationException as error:
        wrong = next((each for each in causes(error) if isinstance(each, SettingError)), None)
        if wrong is None:
            raise
        _, _, inside = str(error).partition("\nfull_key: ")
        key = ".".join(filter(None, (name, inside.strip(), wrong.name)))
        if not there(config, key):
            raise
        raise SettingError(typed(config, key), wrong.what) from error


def there(config: DictConfig, key: str) -> bool:
    """Return whether a config has a key, whatever its value."""
    above, _, last = key.rpartition(".")
    part = OmegaConf.select(config, above)
    return isinstance(part, DictConfig) and last in part


def typed(config: DictConfig, key: str) -> str:
    """Return a key as the command line takes it: one that another key stands for is set by that key."""
    words = key.split(".")
    for count in range(1, len(words) + 1):
        part = OmegaConf.select(config, ".".join(words[: count - 1])) if count > 1 else config
        node = part._get_node(words[count - 1]) if isinstance(part, DictConfig) else None
        source = re.fullmatch(r"\$\{([\w.]+)\}", str(node._value())) if isinstance(node, Node) else None
        if source:
            return typed(config, ".".join([source[1], *words[count:]]))
    return key
