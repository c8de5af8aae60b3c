"""Checks of the values that plug-ins return; an error names the plug-in, the expected value and the given one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mad import simplex
from mad.architectures import imagenet
from mad.errors import RAISED, MadError, check_flag, check_number
from mad.schema import Column
from mad.seeds import seeded


def kind(found: Any) -> str:
    """Return a text that describes a value: its type; of a tensor also shape, dtype and device."""
    if not isinstance(found, Tensor):
        return "None" if found is None else f"a {type(found).__module__}.{type(found).__qualname__}"
    return f"a tensor of {tuple(found.shape)}, {found.dtype} on {found.device}".replace("torch.", "")


def declared(who: str, part: Any, base: type) -> None:
    """Check what a plug-in's class says of itself, by what its base class has under the same names.

    Raises:
        MadError: if a flag is none, or a number is too small.
    """
    for name, usual in vars(base).items():
        if name.startswith("_") or not isinstance(usual, (bool, int, float, tuple)):
            continue
        value = getattr(part, name)
        if isinstance(usual, bool):
            check_flag(f"{who}: {name}", value)
        elif isinstance(usual, (int, float)):
            check_number(f"{who}: {name}", value, int(isinstance(usual, int)), whole=isinstance(usual, int))
        elif not isinstance(value, (tuple, list)):
            raise MadError(f"{who}: {name} must be a tuple, got {value!r}")
    if getattr(part, "max_batch", None) is not None:
        check_number(f"{who}: max_batch", part.max_batch, 1, whole=True)
    other = next((each for each in part.schema if not isinstance(each, Column)), None)
    if other is not None:
        raise MadError(f"{who}: schema must be a tuple of mad.schema.Column, got {other!r} in it")


def like(who: str, found: Any, wanted: Tensor) -> Tensor:
    """Return a plug-in's result for posteriors, detached and in their dtype, as a copy: it may use its memory again.

    Args:
        who: names the plug-in and its method, for the error.
        found: the value that the plug-in returned.
        wanted: the posteriors (B, K) that it was given.

    Raises:
        MadError: if ``found`` is not a float tensor of the shape and on the device of ``wanted``.
    """
    right = isinstance(found, Tensor) and found.shape == wanted.shape and found.device == wanted.device
    if not right or not found.is_floating_point():
        raise MadError(f"{who} must return {kind(wanted)}, like what it was given; got {kind(found)}")
    return found.detach().to(wanted.dtype, copy=True)


def unchanged(who: str, before: list[int], given: Sequence[Tensor]) -> None:
    """Check that a plug-in has not changed its arguments in place.

    Args:
        who: names the plug-in and its method, for the error.
        before: the ``versions`` of the tensors before the call.
        given: the tensors.

    Raises:
        MadError: if a tensor was changed.
    """
    if versions(given) != before:
        raise MadError(f"{who} changed in place what it was given: let it work on a copy, like x.clone()")


def versions(given: Sequence[Tensor]) -> list[int]:
    """Return torch's counts of in-place writes to each tensor; 0 for inference tensors, which have none."""
    return [0 if each.is_inference() else each._version for each in given]


def targets(who: str, found: Any, answers: Tensor) -> Tensor:
    """Return a recovery's training targets (B, K).

    Raises:
        MadError: if they are not posteriors of the answers' shape.
    """
    rows = like(who, found, answers)
    if not simplex.are_posteriors(rows):
        raise MadError(f"{who} must return rows that are at least 0 and sum to 1, got NaN, infinities or others")
    return rows


def choice(who: str, found: Any, count: int) -> Tensor:
    """Return which answers a recovery keeps, bool (B,), as a copy: it may use its memory again.

    Raises:
        MadError: if it is something else.
    """
    if not isinstance(found, Tensor) or found.dtype != torch.bool or tuple(found.shape) != (count,):
        raise MadError(f"{who} must return a tensor of bool, one for each of {count} answers, got {kind(found)}")
    return found.clone()


def transferred(who: str, transfer: Any, shape: Sequence[int], classes: int) -> None:
    """Check an attack's transfer set.

    Raises:
        MadError: if its images do not have the API's shape, if its rows are not rows of the images, or if its answers
            are not one posterior over K classes per row.
    """
    images, rows, answers = transfer.images, transfer.rows, transfer.answers
    if not len(images) or tuple(images.shape[1:]) != tuple(shape):
        raise MadError(f"{who} must return images of {tuple(shape)}, got {tuple(images.shape)}")
    if not (isinstance(rows, Tensor) and rows.dtype == torch.int64 and rows.dim() == 1 and len(rows)):
        raise MadError(f"{who} must return rows as a tensor of int64, one an answer; got {kind(rows)}")
    least, most = (int(bound) for bound in torch.aminmax(rows))
    if least < 0 or most >= len(images):
        raise MadError(f"{who} must return rows from 0 to {len(images) - 1}, got {least} to {most}")
    right = isinstance(answers, Tensor) and answers.is_floating_point() and answers.shape == (len(rows), classes)
    if not right or not simplex.are_posteriors(answers):
        wanted = f"{len(rows)} posteriors over {classes} classes"
        raise MadError(f"{who} must return {wanted}, got {kind(answers)}{' that are none' * right}")


def fits(who: str, architecture: Any, shape: Sequence[int], classes: int) -> None:
    """Try an architecture: build it, without pretrained weights, and run it on two black images.

    Raises:
        MadError: if it cannot be built, does not take such images, writes into them, or does not answer with logits
            (2, K).
    """
    images = torch.zeros(2, *shape)
    before = versions([images])
    try:
        with seeded(0, "trial"), imagenet.left_out(), torch.no_grad():
            network = architecture(shape=tuple(shape), classes=classes)
            found = network.eval()(images) if isinstance(network, nn.Module) else network
    except MadError:
        raise
    except RAISED as error:  # any error of a plug-in
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise MadError(f"{who} cannot take images of {tuple(shape)} to {classes} classes ({why})") from error
    right = isinstance(found, Tensor) and found.shape == (2, classes) and found.is_floating_point()
    if not right:
        raise MadError(
            f"{who} must answer images (2, {', '.join(map(str, shape))}) with logits (2, {classes}), got {kind(found)}"
        )
    unchanged(who, before, [images])
