"""A deployment to take away: its served model and its prepared defense, without the data that they were made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor, nn

from mad import __version__
from mad.api import BlackBox
from mad.architectures import imagenet
from mad.cached_network import CachedNetwork
from mad.context import AbsentContext
from mad.datasets.content import place as path_of
from mad.defenses import Defense
from mad.errors import RAISED, MadError
from mad.export import CLOSE, RECIPE, loaded, packed, read, size_of, trial, written
from mad.recipes import Absent, absent, made, recipe_of
from mad.storage.fingerprint import digest
from mad.training import Trainer, place
from mad.victim import Architecture, Victim

ARRAYS = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
NOTHING = Trainer(1, 1, "sgd", 0.1, 0.0, 0.0, "constant")  # nothing is trained on data that are not there


@dataclass(frozen=True)
class Exported(Victim):
    """The recipe of a victim that was exported; its network comes with its weights.

    Args:
        served: what builds the network that is served.
    """

    served: Architecture | None = None

    def rebuilt_by(self, architecture: Architecture) -> Architecture:
        """Return what builds the network that is served."""
        return self.served or architecture


@dataclass(frozen=True)
class Parts:
    """What a deployment is made of; see ``mad.deployment.Deployment``.

    Args:
        victim: the victim's recipe; in an opened one its data are ``Absent``.
        served: the model that is served.
        defense: the prepared defense.
        seed: the seed that it was prepared with.
        columns: the columns that it adds to a record.
        again: prepares it once more.
    """

    victim: Victim
    served: nn.Module
    defense: Defense
    seed: int
    columns: Mapping[str, Any]
    again: Callable[[], Defense] | None = None

    def answers(self, images: Tensor, device: torch.device) -> Tensor:
        """Return clean and defended posteriors, side by side (B, 2 K), on the CPU."""
        shape = absent(self.victim.dataset).shape
        return torch.cat(BlackBox(self.served, self.defense.session(), shape, None, device).answer(images), dim=1)


def bare(network: nn.Module) -> nn.Module:
    """Return a network without its cache."""
    return network.network if isinstance(network, CachedNetwork) else network


def write_deployment(folder: Path, parts: Parts, device: torch.device) -> None:
    """Write a deployment; see ``Deployment.export``."""
    victim, defense = parts.victim, parts.defense
    told, who = absent(victim.dataset), f"defense {defense.name}"
    own = prepared_values(defense)
    networks = {name: bare(value) for name, value in own.items() if isinstance(value, nn.Module)}
    tensors = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    arrays = {name: torch.from_numpy(value.copy()) for name, value in own.items() if numeric(value)}
    served, make = bare(parts.served), defense.served_architecture(victim)
    whole = recipe_of(victim.architecture, f"architecture of victim {victim.name}")
    recipe: dict[str, Any] = {
        "kind": "deployment",
        "victim": victim.name,
        "data": told.name,
        "shape": list(told.shape),
        "classes": told.classes,
        "victim_seed": getattr(victim, "seed", 0),
        "architecture": whole,
        "served": recipe_of(make, f"{who}: the served network"),
        "defense": recipe_of(defense, who),
        "seed": parts.seed,
        "values": {name: noted(value) for name, value in own.items() if plain(value)},
        "networks": sorted(networks),
        "tensors": sorted(tensors),
        **({"arrays": sorted(arrays)} if arrays else {}),
        "columns": dict(parts.columns),
    }
    if victim.class_names is not None:
        recipe["class_names"] = json.loads(victim.class_names)
    recipe |= {"fingerprint": digest(recipe), "mad": __version__, "torch": torch.__version__}
    held = {f"served.{name}": value for name, value in served.state_dict().items()} | tensors | arrays
    for name, network in networks.items():
        held |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
    content, images = packed(held), trial(told)
    try:
        again = opened(json.loads(json.dumps(recipe)), load(content), device)
    except MadError as error:
        raise MadError(f"{who} cannot be exported: {error}") from error
    ours, theirs = parts.answers(images, device), again.answers(images, device)
    if not torch.allclose(ours, theirs, rtol=0, atol=CLOSE):
        raise MadError(
            f"{who} cannot be exported: made again from its fields, networks and tensors, it answers something else; "
            "what it prepares must be networks, tensors, arrays, or numbers and texts in attributes that begin with _"
        )
    written(folder, recipe, content)


def opened(recipe: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device) -> Parts:
    """Return the parts of a deployment from its recipe and tensors."""
    size = size_of(recipe)
    data = Absent(recipe["data"], size[1], size[0], recipe.get("class_names"))
    architecture, make = made(recipe["architecture"], "the victim"), made(recipe["served"], "the served network")
    victim = Exported(recipe["victim"], data, architecture, NOTHING, seed=recipe["victim_seed"], served=make)
    served = place(loaded(make, size, below(tensors, "served")), device)
    defense: Defense = made(recipe["defense"], "the defense")
    again = partial(prepared, defense, AbsentContext(victim, served, recipe["seed"], device), recipe, tensors)
    return Parts(victim, served, again(), recipe["seed"], recipe["columns"], again)


def prepared(
    defense: Defense, context: AbsentContext, recipe: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Defense:
    """Return a defense that is prepared as it was: its networks' weights, tensors and numbers are loaded.

    Raises:
        MadError: if it needs data, or if a network of it does not fit.
    """
    try:
        with imagenet.left_out():
            ready = defense.prepared(context)
        for name in recipe["networks"]:
            owner, own = placed(ready, name)
            getattr(owner, own).load_state_dict(below(tensors, name))
        for name in recipe["tensors"]:
            owner, own = placed(ready, name)
            setattr(owner, own, tensors[name].clone().to(context.device))
    except MadError:
        raise
    except RAISED as error:  # whatever a plug-in raises
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise MadError(f"it cannot be prepared without its data ({why})") from error
    for name in recipe.get("arrays", ()):
        owner, own = placed(ready, name)
        setattr(owner, own, tensors[name].clone().numpy())
    for name, value in recipe["values"].items():
        owner, own = placed(ready, name)
        setattr(owner, own, made(value, "the defense"))
    return ready


def plain(value: Any, within: bool = False) -> bool:
    """Return whether a value is a number or a text, or a list, tuple or dict of these."""
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(plain(each, True) for each in value)
    if isinstance(value, dict):
        return type(value) is dict and all(plain(key, True) and plain(each, True) for key, each in value.items())
    value = value.item() if isinstance(value, np.generic) else value
    return isinstance(value, (bool, int, str, float)) or (within and value is None)


def noted(value: Any) -> Any:
    """Return the recipe, see ``mad.recipes.made``, of a ``plain`` value; numpy's numbers become Python's."""
    if isinstance(value, (list, tuple)):
        parts = [noted(each) for each in value]
        return parts if isinstance(value, list) else {"tuple": parts}
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {"dict": {key: noted(each) for key, each in value.items()}}
        return {"items": [[noted(key), noted(each)] for key, each in value.items()]}  # JSON would make texts of keys
    return value.item() if isinstance(value, np.generic) else value


def numeric(value: Any) -> bool:
    """Return whether a value is an array of numbers that torch takes."""
    return isinstance(value, np.ndarray) and value.dtype.isnative and value.dtype.name in ARRAYS


SAID = ("_said", "_told")  # whether a line was written on stderr


def prepared_values(defense: Defense) -> dict[str, Any]:
    """Return what a defense has prepared, by attribute; what its part 0 has prepared as ``0._attribute``."""
    own = {name: value for name, value in vars(defense).items() if name.startswith("_") and name not in SAID}
    for number, part in enumerate(defense.held()):
        own |= {f"{number}.{name}": value for name, value in prepared_values(part).items()}
    return own


def placed(defense: Defense, name: str) -> tuple[Defense, str]:
    """Return whose attribute a name of ``prepared_values`` is, and the attribute."""
    *numbers, own = name.split(".")
    for number in numbers:
        defense = defense.held()[int(number)]
    return defense, own


def below(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors of one network."""
    return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}.")}


def read_deployment(folder: str | Path, device: torch.device) -> Parts:
    """Return the parts of an exported deployment; see ``mad.open_deployment``."""
    recipe, tensors = read(path_of(folder, "the folder of a deployment"), "deployment")
    try:
        return opened(recipe, tensors, device)
    except (KeyError, TypeError, ValueError) as error:
        raise MadError(f"{Path(folder) / RECIPE} is damaged: export it again") from error
