"""A file's weights into a network: which of its tensors belong where, and whether they are fit to be loaded."""

from __future__ import annotations

import io
import pickle
import re
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mad.architectures.library import last_layer
from mad.errors import MadError

WRAPPERS = re.compile(r"((module|model|network|_orig_mod)\.)+")  # what may stand before the names of weights
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTER = "num_batches_tracked"  # no answer depends on it, and older files lack it
SHOWN = 3
SHORT = 150  # characters of another library's message
KINDS = "safetensors or a state dict of torch.save; victim.weights also takes TorchScript, torch.export and *.onnx"
NESTED = (
    "state_dict",
    "model_state_dict",
    "model",
    "network",
    "net",
    "weights",
    "params",
)  # where checkpoints hold them
DEEPEST = 5  # of these in one another


def read(content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or of a state dict that ``torch.save`` wrote, by name.

    A state dict may lie inside a checkpoint, under one of the names in ``NESTED``. No code of the file is run.

    Raises:
        MadError: if the file is neither; the text goes on a sentence that names the file.
    """
    from safetensors.torch import load

    if not content:
        raise MadError("is empty: write it anew")
    archive_or_pickle = content[:2] == b"PK" or content[:1] == b"\x80"
    length_and_json = content[8:9] == b"{"  # what a safetensors file begins with
    if not archive_or_pickle and not length_and_json:
        raise MadError(f"is no model file of a known kind: expected {KINDS}")
    if length_and_json:
        try:
            return load(content)
        except Exception as error:
            advice = "save it with safetensors.torch.save_file"
            raise MadError(f"cannot be read as safetensors ({error}): is it whole? {advice}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles by other programs
            found: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise MadError(
            "holds more than tensors, and opening it could run any code: where it was made, write the weights only, "
            "with safetensors.torch.save_file(model.state_dict(), FILE)"
        ) from error
    except Exception as error:
        raise MadError(f"cannot be read as a file of torch.save ({first_line(error)}): is it whole?") from error
    tensors = inner(found)
    if not tensors:
        raise MadError("holds no state dict: save model.state_dict()")
    return tensors


def inner(found: Any, depth: int = DEEPEST) -> dict[str, Tensor]:
    """Return the tensors of a state dict, or of one inside a checkpoint, which may hold others beside: an accuracy."""
    if not isinstance(found, Mapping) or not depth:
        return {}
    own = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    below = next(filter(None, (inner(found.get(name), depth - 1) for name in NESTED)), {})
    return below if len(below) > len(own) else own


def first_line(error: Exception) -> str:
    """Return the beginning of an error's text, at most 150 characters; of TorchScript's, which is a traceback, its end.

    It ends with a sentence, or in three dots.
    """
    text = str(error).strip()
    if "TorchScript" in text and (said := re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception): .*", text, re.MULTILINE)):
        text = said[-1]
    text = " ".join(text.split())
    if len(text) > SHORT:
        text = text[:SHORT].rpartition(". ")[0] or f"{text[:SHORT].rstrip()}..."
    return text or type(error).__name__


def load_into(model: nn.Module, content: bytes, *, whole: bool = False) -> str:
    """Load the weights of a file into a network; return what was loaded and what was not.

    All but the last layer must be there, in the network's shapes; the last layer is loaded whole or left as it was.
    Names may have a prefix of ``WRAPPERS``, in the file or in the network.

    Args:
        model: changed in place, or not at all.
        content: the file's, as ``read`` takes it.
        whole: the last layer must be there, too.

    Raises:
        MadError: if the file does not hold that; the text goes on a sentence that names the file.
    """
    given = read(content)
    own, last = model.state_dict(), last_path(model) + "."
    named = pairs(given, own)
    fits = {name: theirs for name, theirs in named.items() if given[theirs].shape == own[name].shape}
    absent = [name for name in own if name not in fits]
    needed = [name for name in absent if (whole or not name.startswith(last)) and not name.endswith(COUNTER)]
    if needed:
        why = [f"{name} {shape(own[name])} {fault(given, named.get(name))}" for name in needed]
        what = "must fit all of them" if whole else "must fit all but the last layer's"
        head = whole and all(name.startswith(last) and name in named for name in needed)
        advice = "is it of another number of classes?" if head else "give weights of this architecture"
        raise MadError(f"fits {len(fits)} of the network's {len(own)} tensors, and {what}: {few(why)}; {advice}")
    if any(name.startswith(last) for name in absent):
        fits = {name: theirs for name, theirs in fits.items() if not name.startswith(last)}
    if not fits:
        raise MadError(f"has no tensor that fits the network, such as {few([f'{n} {shape(own[n])}' for n in own])}")
    model.load_state_dict(own | {name: value(theirs, given[theirs], own[name]) for name, theirs in fits.items()})
    return told(fits, given, own)


def last_path(model: nn.Module) -> str:
    """Return the path of a network's last layer: its ``head``, or else what was registered last."""
    head = getattr(model, "head", None)
    return next((path for path, part in model.named_modules() if part is head), None) or last_layer(model)[0]


def pairs(given: Collection[str], own: Collection[str]) -> dict[str, str]:
    """Return the file's name of each tensor of the network that it holds, prefixes aside.

    Raises:
        MadError: if two names of the file are one.
    """
    bare = {plain(name): name for name in own}
    found: dict[str, str] = {}
    for theirs in sorted(given):
        name = theirs if theirs in own else bare.get(plain(theirs))
        if name is None:
            continue
        if name in found:
            raise MadError(f"has two tensors for {name}, {found[name]!a} and {theirs!a}: leave one")
        found[name] = theirs
    return found


def plain(name: str) -> str:
    """Return a tensor's name without the prefixes of wrappers."""
    match = WRAPPERS.match(name)
    return name[match.end() :] if match else name


def value(name: str, given: Tensor, own: Tensor) -> Tensor:
    """Return a tensor of the file as the network takes it: floats of any common width, or the same whole numbers.

    Raises:
        MadError: if it is of another kind, or not finite as the network takes it.
    """
    if given.dtype != own.dtype and not (given.dtype in FLOATS and own.dtype in FLOATS):
        raise MadError(f"holds {name!a} as {kind(given)}, the network takes {kind(own)}: convert it")
    made = given.to(own.dtype)
    if not made.isfinite().all():
        raise MadError(f"holds NaN or infinite values in {name!a}: give weights that were trained without diverging")
    return made


def told(fits: Mapping[str, str], given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Return in words what was loaded, from where, and what was not."""
    said = [f"{len(fits)} of {len(own)} tensors loaded"]
    prefixed = [f"{fits[name]!a} as {name}" for name in own if fits.get(name, name) != name]
    left, unused = [name for name in own if name not in fits], [f"{name!a}" for name in given.keys() - fits.values()]
    cast = sorted({kind(given[theirs]) for name, theirs in fits.items() if given[theirs].dtype != own[name].dtype})
    said += [f"{len(prefixed)} of them named with or without a prefix, such as {prefixed[0]}"] if prefixed else []
    said += [f"converted from {', '.join(cast)}"] if cast else []
    said += [f"left as drawn: {few(left)}"] if left else []
    said += [f"in the file but not in the network: {few(sorted(unused))}"] if unused else []
    return "; ".join(said)


def few(names: list[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def fault(given: Mapping[str, Tensor], name: str | None) -> str:
    """Return why a tensor of the network finds none in the file."""
    return "is absent" if name is None else f"is {shape(given[name])} there"


def shape(tensor: Tensor) -> str:
    """Return a tensor's shape as text."""
    return str(tuple(tensor.shape))


def kind(tensor: Tensor) -> str:
    """Return the name of a tensor's type."""
    return str(tensor.dtype).removeprefix("torch.")
