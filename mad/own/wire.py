"""The Open Inference Protocol v2 in JSON: images to a request, an answer to posteriors. Nothing is sent here.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mad import simplex
from mad.errors import MadError
from mad.own.answering import LEAST, scaled
from mad.own.transport import Malformed

ANSWERS = ("posteriors", "logits", "labels")
LAYOUTS = ("nchw", "nhwc")
DATATYPES = {"FP32": torch.float32, "FP64": torch.float64, "FP16": torch.float16, "UINT8": torch.uint8}
BELOW = 1e-6  # how far below 0 a probability may be
MENDED = "Once it is mended, remove its file in outputs/answers, where its answers are kept"


@dataclass(frozen=True)
class Wire:
    """How images go to one model, and how its answers are read.

    Args:
        where: the address, for errors.
        shape: (C, H, W) of the images.
        classes: K.
        answers: what a row of an answer is: ``posteriors``, ``logits``, or ``labels``.
        input: the name of the model's input.
        output: the name of its output; None for the only one.
        chosen: whether the output must be asked for, since the model has several.
        layout: ``nchw`` or ``nhwc``.
        datatype: one of ``DATATYPES``.
        most: images that the model takes a request; None for any number.
    """

    where: str
    shape: tuple[int, int, int]
    classes: int
    answers: str
    input: str
    output: str | None
    chosen: bool
    layout: str
    datatype: str
    most: int | None

    def encoded(self, images: Tensor) -> np.ndarray:
        """Return images (B, C, H, W) as they are sent, in layout and datatype.

        UINT8 is round(255 * x), and what leaves [0, 1] is cut off.

        Raises:
            MadError: if they have another shape, are not floats, or are not finite, which JSON cannot hold.
        """
        if images.dim() != 4 or tuple(images.shape[1:]) != self.shape:
            raise MadError(f"{self.where} is asked about images (B, {self.shape}), got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise MadError(f"{self.where} is asked about float images, got {images.dtype}: divide by 255")
        there = images.detach().cpu()
        there = there.permute(0, 2, 3, 1) if self.layout == "nhwc" else there
        if not there.isfinite().all():
            raise MadError(f"{self.where} is asked about images that are not finite: look for NaN in them")
        if self.datatype == "UINT8":
            there = (there * 255).round().clamp(0, 255)
        return there.to(DATATYPES[self.datatype]).contiguous().numpy()

    def request(self, sent: np.ndarray) -> bytes:
        """Return the body that asks about images which are ``encoded``. Floats are written out exactly."""
        data = {"name": self.input, "shape": list(sent.shape), "datatype": self.datatype, "data": sent.ravel().tolist()}
        body: dict[str, Any] = {"inputs": [data]}
        if self.chosen:
            body["outputs"] = [{"name": self.output}]
        return json.dumps(body, allow_nan=False).encode()

    def rows(self, answer: Any, count: int) -> np.ndarray:
        """Return the rows of an answer as they came: float32 (count, K), or (count, 1) for labels.

        Raises:
            Malformed: if it holds no numbers, or others than it says.
            MadError: if they are of another shape.
        """
        try:
            found = [each for each in answer["outputs"] if self.output in (None, each["name"])]
            names = ", ".join(str(each["name"]) for each in answer["outputs"])
            if not names:
                raise Malformed("answers without an output, expected one")
            if len(found) != 1:
                raise MadError(f"{self.where} answers with outputs {names}: set victim.service.output to one")
            shape = tuple(int(each) for each in found[0]["shape"])
            with np.errstate(over="ignore"):
                values = np.asarray(found[0]["data"], dtype=np.float64).astype("<f4").ravel()
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise Malformed("answers with no numbers as the v2 protocol has them") from error
        if any(each < 0 for each in shape) or len(values) != np.prod(shape, dtype=object):
            raise Malformed(f"answers with {len(values)} numbers, and says their shape is {shape}")
        if not shape or shape[0] != count:
            raise MadError(f"{self.where} answers with shape {shape} to {count} images: expected a row an image")
        width = 1 if len(shape) == 1 else shape[1]
        if len(shape) > 2 or width not in (1, self.classes):
            raise MadError(f"{self.where} answers with shape {shape}, expected ({count}, {self.classes}) or labels")
        return values.reshape(count, width)

    def posteriors(self, rows: Sequence[np.ndarray]) -> Tensor:
        """Return the posteriors, float32 (B, K), that rows of answers stand for.

        Posteriors that were rounded, see ``simplex.nearly_one``, are rescaled to a sum of 1, logits go through softmax,
        labels become one-hot.

        Raises:
            MadError: if the rows are something else than ``answers`` says.
        """
        width = 1 if self.answers == "labels" else self.classes
        if any(len(row) != width for row in rows):
            raise self._looks_like("labels" if width > 1 else "posteriors")
        values = torch.from_numpy(np.array(rows, dtype=np.float64).reshape(len(rows), width))
        if self.answers == "labels":
            labels = values[:, 0].long()
            if (labels != values[:, 0]).any() or ((labels < 0) | (labels >= self.classes)).any():
                low, high = values.min().item(), values.max().item()
                raise MadError(
                    f"{self.where} answers with {low:g} to {high:g}: expected labels 0 to {self.classes - 1}"
                )
            return torch.nn.functional.one_hot(labels, self.classes).float()
        least, sums = values.amin(dim=1), values.sum(dim=1)
        if self.answers == "logits":
            few = len(values) < LEAST  # they may have such sums by chance
            near = (sums - 1).abs() <= simplex.ROUNDED if few else simplex.nearly_one(values)
            if len(values) and ((least >= -BELOW) & near).all():
                raise self._looks_like("posteriors")
            if (what := scaled(values, LEAST)) is not None:
                raise MadError(f"{self.where} answers with {what}. {MENDED}")
            return torch.softmax(values, dim=1).float()
        if not ((least >= -BELOW) & simplex.nearly_one(values.clamp(min=0))).all():
            if (what := scaled(values, 2)) is not None:
                raise MadError(f"{self.where} answers with {what}. {MENDED}")
            if ((values < -BELOW) | (values > 1 + simplex.ROUNDED)).any():
                raise self._looks_like("logits")
            low, high = sums.min().item(), sums.max().item()
            raise MadError(
                f"{self.where} answers with sums of {low:.3g} to {high:.3g}: these are no posteriors (rounded ones "
                f"need two decimals or more). {MENDED}"
            )
        values = values.clamp(min=0)
        return (values / values.sum(dim=1, keepdim=True)).float()

    def _looks_like(self, other: str) -> MadError:
        return MadError(f"{self.where}: answers look like {other}: set victim.answers={other}")


def answered(row: np.ndarray) -> bool:
    """Return whether a row is an answer: no NaN, no plus infinity (minus infinity is a logit)."""
    return not bool(np.isnan(row).any() or np.isposinf(row).any() or np.isneginf(row).all())


def agreed(
    metadata: Any,
    where: str,
    shape: tuple[int, int, int],
    classes: int,
    *,
    answers: str,
    input: str | None,
    output: str | None,
    layout: str | None,
    datatype: str | None,
) -> Wire:
    """Return how to speak with the model that v2 metadata describes; what is not None goes before the metadata.

    Raises:
        MadError: if the model takes other images or has other classes, or if the metadata leaves something open.
    """
    metadata = metadata if isinstance(metadata, dict) else {}
    taken: dict[str, dict[str, Any]] = {}
    sides: dict[str, list[str]] = {}
    for side, wanted in (("input", input), ("output", output)):
        listed = metadata.get(f"{side}s") or []
        if not isinstance(listed, list) or not all(isinstance(each, dict) and "name" in each for each in listed):
            raise MadError(f"{where} has no v2 metadata: it describes no {side}s")
        sides[side] = names = [str(each["name"]) for each in listed]
        if names and (len(names) > 1 if wanted is None else wanted not in names):
            raise MadError(f"{where} has the {side}s {', '.join(names)}: set victim.service.{side} to one of them")
        taken[side] = next((each for each in listed if wanted in (None, each["name"])), {})
    name = input or taken["input"].get("name")
    if name is None:
        raise MadError(f"{where} describes no inputs: set victim.service.input, .layout and .datatype")
    kind = datatype or str(taken["input"].get("datatype"))
    if kind not in DATATYPES:
        raise MadError(f"{where} takes {kind}: set victim.service.datatype to one of {', '.join(DATATYPES)}")
    places, most = arranged(dimensions(taken["input"]), where, shape, layout)
    measured(dimensions(taken["output"]), where, classes, answers)
    chosen = output or taken["output"].get("name")
    several = len(sides["output"]) > 1
    return Wire(where, shape, classes, answers, name, chosen, several, places, kind, most)


def dimensions(tensor: dict[str, Any]) -> list[int] | None:
    """Return the shape that metadata has for a tensor, -1 for what is open; None if it has none."""
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not shape:
        return None
    return [each if isinstance(each, int) and each > 0 else -1 for each in shape]


def arranged(
    dims: list[int] | None, where: str, shape: tuple[int, int, int], layout: str | None
) -> tuple[str, int | None]:
    """Return the layout of images (C, H, W) and how many a request takes, by the shape of a model's input.

    Raises:
        MadError: if the images do not fit, or fit both layouts.
    """
    open_ = f"{where} leaves the layout of its images open: set victim.service.layout=nchw or nhwc"
    if dims is None:
        if layout is None:
            raise MadError(open_)
        return layout, None
    forms = {"nchw": shape, "nhwc": (shape[1], shape[2], shape[0])}
    fit = [
        name
        for name, form in forms.items()
        if layout in (None, name) and len(dims) == 4 and all(a in (-1, b) for a, b in zip(dims[1:], form, strict=True))
    ]
    if not fit:
        images = "nor ".join(f"{list(form)} " for name, form in forms.items() if layout in (None, name))
        advice = "see victim.dataset.size and victim.dataset.channels"
        raise MadError(f"{where} takes {dims}, which is no batch of {images}images: {advice}")
    if len(fit) > 1:
        raise MadError(open_)
    if dims[0] > 1:
        raise MadError(f"{where} takes {dims[0]} images a request, no fewer: serve the model with an open batch size")
    return fit[0], 1 if dims[0] == 1 else None


def measured(dims: list[int] | None, where: str, classes: int, answers: str) -> None:
    """Check the shape of a model's output.

    Raises:
        MadError: if it is not that of ``answers``.
    """
    if dims is None:
        return
    width = dims[1] if len(dims) == 2 else 1 if len(dims) == 1 else None
    if width == 1 and answers != "labels" and classes > 1:
        raise MadError(f"{where}: answers look like labels: set victim.answers=labels")
    if width not in (-1, 1, classes):
        raise MadError(f"{where} answers with {dims}, expected {classes} classes")
    if width == classes > 1 and answers == "labels":
        raise MadError(f"{where} answers with {dims}, not with labels: set victim.answers=posteriors or logits")
