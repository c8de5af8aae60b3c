"""Results to take away, as safetensors and a recipe in JSON: no pickle, no data. Here the folder, and a stolen model.

A folder holds ``weights.safetensors`` and ``recipe.json``. The recipe names code to import (see ``mad.recipes``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from mad import __version__
from mad.architectures import imagenet
from mad.datasets.content import place as path_of
from mad.errors import RAISED, MadError
from mad.recipes import Absent, absent, made, recipe_of
from mad.seeds import generator
from mad.storage.files import advising, check_writable, write
from mad.training import place
from mad.victim import Architecture

WEIGHTS, RECIPE, STOLEN = "weights.safetensors", "recipe.json", "stolen"
TRIED, CLOSE = 8, 1e-6  # random images on which what was exported must answer as before, this closely
ELSEWHERE = "export to another folder"  # where one cannot be written
SCORES = (
    *("victim_accuracy", "defended_accuracy", "l1_mean", "stolen_accuracy", "agreement", "learned"),
    *("victim", "defense", "strength", "attack", "budget", "seed", "chance"),
)


def check(folder: Path, architecture: Architecture | None, fingerprint: str) -> None:
    """Check, before anything is trained, that a network can be exported to a folder, which is made.

    Raises:
        MadError: if the folder cannot be written or holds something else, or if the architecture cannot be imported by
            name.
    """
    recipe_of(architecture, "the stolen model's architecture")
    refuse(folder, "model", fingerprint)
    with advising(ELSEWHERE):
        check_writable(folder / WEIGHTS)


def refuse(folder: Path, kind: str, fingerprint: str) -> None:
    """Raise MadError if a folder holds anything but an earlier export of the same thing."""
    try:
        there = {each.name for each in folder.iterdir() if not each.name.endswith(".tmp")}
    except FileNotFoundError:
        return
    except OSError as error:
        raise MadError(f"{folder} cannot be exported to ({error.strerror}): choose another folder") from error
    there -= {STOLEN} if kind == "deployment" else set()
    if not there:
        return
    other = sorted(there - {WEIGHTS, RECIPE})
    try:
        found = json.loads((folder / RECIPE).read_text())
        same = (found["kind"], found["fingerprint"]) == (kind, fingerprint)
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if other or not same:
        what = other[0] if other else "another export"
        raise MadError(f"{folder} holds something else ({what}): choose another folder, or remove it")


def holds(folder: Path, fingerprint: str) -> bool:
    """Return whether a folder holds the whole model of a cell."""
    try:
        recipe, _ = read(folder, "model")
    except MadError:
        return False
    return bool(recipe["fingerprint"] == fingerprint)


def written(folder: Path, recipe: dict[str, Any], content: bytes) -> None:
    """Write the recipe with the checksum of the weights, then these: what was broken off between is told as its own.

    Raises:
        MadError: if the folder holds something else, or cannot be written.
    """
    refuse(folder, recipe["kind"], recipe["fingerprint"])
    recipe = recipe | {"weights_sha256": hashlib.sha256(content).hexdigest()}
    for name, each in ((RECIPE, json.dumps(recipe, indent=2).encode()), (WEIGHTS, content)):
        with advising(ELSEWHERE):
            write(folder / name, each)


def read(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the recipe and the tensors in a folder.

    Raises:
        MadError: if there are none of this kind, or if they are damaged.
    """
    try:
        recipe = json.loads((folder / RECIPE).read_text())
        content = (folder / WEIGHTS).read_bytes()
        found, right = recipe["kind"], recipe["weights_sha256"]
    except OSError as error:
        raise MadError(f"{folder} holds no exported {kind}: {error.filename} {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise MadError(f"{folder / RECIPE} is damaged: export it again") from error
    if found != kind:
        raise MadError(f"{folder} holds an exported {found}, not a {kind}: mad.open_{found} opens it")
    if hashlib.sha256(content).hexdigest() != right:
        raise MadError(f"{folder / WEIGHTS} is damaged (its checksum does not hold): export it again")
    try:
        return recipe, load(content)
    except Exception as error:  # whatever safetensors raises
        raise MadError(f"{folder / WEIGHTS} cannot be read as safetensors ({error}): export it again") from error


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors as the content of a safetensors file."""
    return save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()})


def loaded(make: Architecture, size: tuple[tuple[int, int, int], int], tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a network of an architecture with weights, on the CPU in eval mode.

    Raises:
        MadError: if it cannot be built, or if the weights do not fit.
    """
    try:
        with imagenet.left_out():
            network = make(shape=size[0], classes=size[1])
        network.load_state_dict(dict(tensors))
        return network.eval()
    except MadError:
        raise
    except RAISED as error:  # whatever an architecture raises
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise MadError(f"the exported network cannot be made again ({why})") from error


def size_of(recipe: Mapping[str, Any]) -> tuple[tuple[int, int, int], int]:
    """Return the shape (C, H, W) and the number of classes in a recipe."""
    channels, height, width = recipe["shape"]
    return (channels, height, width), recipe["classes"]


def write_model(
    folder: Path, network: nn.Module, architecture: Architecture, dataset: Any, record: Mapping[str, Any]
) -> None:
    """Write a stolen model; ``open_model`` reads it.

    Args:
        folder: where to; it is made.
        network: images in [0, 1] to logits (B, K), in eval mode.
        architecture: what built it.
        dataset: the victim's; its ``shape`` and ``classes`` are kept.
        record: the record of its cell.

    Raises:
        MadError: if it cannot be made again from what is written, or if the folder holds something else.
    """
    told = absent(dataset)
    recipe = {
        "kind": "model",
        "architecture": recipe_of(architecture, "the stolen model's architecture"),
        "shape": list(told.shape),
        "classes": told.classes,
        "fingerprint": record["fingerprint"],
        "scores": {name: record[name] for name in SCORES if name in record},
        "mad": __version__,
        "torch": torch.__version__,
    }
    content, images = packed(network.state_dict()), trial(told)
    again = loaded(made(recipe["architecture"], "the model"), size_of(recipe), load(content))
    device = next(network.parameters(), images).device
    with torch.no_grad():
        ours, theirs = (torch.softmax(each(images.to(device)), dim=1) for each in (network, place(again, device)))
    if not torch.allclose(ours, theirs, rtol=0, atol=CLOSE):
        raise MadError("the stolen model cannot be exported: made again from its weights, it answers something else")
    written(folder, recipe, content)


def open_model(folder: str | Path) -> nn.Module:
    """Return an exported stolen model, images (B, C, H, W) in [0, 1] to logits (B, K), on the CPU in eval mode.

    The recipe names the architecture's code, which is imported: open folders that you trust.

    Args:
        folder: what ``mad-run export=FOLDER`` was given, or ``FOLDER/stolen``.

    Raises:
        MadError: if it holds no whole model, or if the architecture cannot be imported.
    """
    there = path_of(folder, "the folder of a model")
    there = there / STOLEN if (there / STOLEN / RECIPE).is_file() else there
    recipe, tensors = read(there, "model")
    try:
        return loaded(made(recipe["architecture"], str(there)), size_of(recipe), tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise MadError(f"{there / RECIPE} is damaged: export it again") from error


def trial(dataset: Absent) -> Tensor:
    """Return random images in [0, 1], (B, C, H, W)."""
    return torch.rand(TRIED, *dataset.shape, generator=generator(0, "trial of an export"))
