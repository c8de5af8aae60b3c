"""Requests of the Open Inference Protocol v2 to images, and answers to responses; REST and gRPC."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import torch
from torch import Tensor

from mad.datasets import to_unit_range
from mad.progress import err
from mad.serve.sdk import InferOutput, InferResponse, RequestedOutput, to_http_parameters

INPUT, POSTERIORS, LABELS = "images", "posteriors", "labels"
DATATYPES = {"FP32": "<f4", "FP64": "<f8", "FP16": "<f2", "UINT8": "u1"}
TYPED = {"FP32": "fp32_contents", "FP64": "fp64_contents", "UINT8": "uint_contents"}  # in a gRPC message
VALUE = 32  # bytes that a number may take in JSON, with what stands around it
ROOM = 65536  # bytes of a request beside its numbers
SHOWN = 80  # characters of a foreign value in a message
LONGEST_ID = 128


class Refused(Exception):
    """A request that is not answered: a status of HTTP, one line, and headers."""

    def __init__(
        self, status: int, text: str, wait: float | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, text, dict(headers or {})
        if wait is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(wait)))


@dataclass(frozen=True)
class Shape:
    """What a model takes and gives.

    Args:
        image: (C, H, W).
        classes: K.
        most: the most images of a request.
        largest: the most bytes of a request's body.
    """

    image: tuple[int, int, int]
    classes: int
    most: int
    largest: int

    @property
    def bytes(self) -> int:
        """The most bytes of a body: as many as it can need, and no more than ``largest``."""
        return min(self.largest, ROOM + VALUE * self.most * math.prod(self.image))


@dataclass(frozen=True)
class Question:
    """A request: images, float32 (B, C, H, W), its id, the outputs that it asks for, and whether they are binary."""

    images: Tensor
    id: str
    outputs: tuple[tuple[str, bool], ...]

    def response(self, name: str, answers: Tensor, grpc: bool = False) -> InferResponse:
        """Return the response with answers (B, K) on the CPU."""
        kinds = {POSTERIORS: ("FP32", lambda: answers), LABELS: ("INT64", lambda: answers.argmax(dim=1))}
        found = []
        for output, _ in self.outputs:
            datatype, values = kinds[output]
            array = values().numpy()
            found.append(InferOutput(output, list(array.shape), datatype, data=array))
        asked = [RequestedOutput(output, {"binary_data": binary}) for output, binary in self.outputs]
        return InferResponse(self.id, name, found, model_version="1", from_grpc=grpc, requested_outputs=asked)


def of_rest(body: bytes, json_length: str | None, shape: Shape) -> Question:
    """Return the question in the body of an HTTP request.

    Args:
        body: JSON, or JSON with the bytes of tensors after it.
        json_length: the header ``Inference-Header-Content-Length``: how many bytes are JSON; None for all.
        shape: what the model takes.

    Raises:
        Refused: with 400, if it is no valid request.
    """
    end = len(body)
    if json_length is not None:
        if not json_length.isascii() or not json_length.isdigit() or not 0 < int(json_length[:9]) <= len(body):
            raise refused(f"Inference-Header-Content-Length must be 1 to {len(body)}, got {shown(json_length)}")
        end = int(json_length[:9])
    try:
        found = orjson.loads(memoryview(body)[:end])
    except orjson.JSONDecodeError as error:
        raise refused(f"the body is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise refused("the body must be a JSON object with inputs")
    given = only_input(found.get("inputs"))
    parameters = mapping(given.get("parameters"), "the input's parameters")
    size = checked(given.get("name"), given.get("datatype"), given.get("shape"), shape)
    if "binary_data_size" in parameters:
        if parameters["binary_data_size"] != len(body) - end or given.get("data") is not None:
            raise refused(f"binary_data_size must be the {len(body) - end} bytes after the JSON, without data")
        images = of_bytes(given["datatype"], size, memoryview(body)[end:])
    else:
        if end != len(body):
            raise refused(f"{len(body) - end} bytes come after the JSON, and no binary_data_size says what they are")
        images = of_numbers(given["datatype"], size, given.get("data"))
    whole = mapping(found.get("parameters"), "parameters")
    outputs = found.get("outputs") or []
    if not isinstance(outputs, list) or not all(isinstance(each, dict) for each in outputs):
        raise refused("outputs must be a list of objects with a name")
    asked = [(each.get("name"), mapping(each.get("parameters"), "an output's parameters")) for each in outputs]
    return Question(images, identity(found.get("id")), wanted(asked, whole))


def of_grpc(request: Any, shape: Shape) -> Question:
    """Return the question in a ``ModelInferRequest``.

    Raises:
        Refused: with 400, if it is no valid request.
    """
    if len(request.inputs) != 1:
        raise refused(f"a request has one input, {INPUT}; got {len(request.inputs)}")
    given = request.inputs[0]
    size = checked(given.name, given.datatype, list(given.shape), shape)
    raw = request.raw_input_contents
    if len(raw) > 1 or (raw and given.HasField("contents")):
        raise refused(f"a request has the contents of one input, raw or typed; got {len(raw)} raw ones")
    if raw:
        images = of_bytes(given.datatype, size, memoryview(raw[0]))
    elif given.datatype not in TYPED:
        raise refused(f"{given.datatype} comes in raw_input_contents")
    else:
        images = of_numbers(given.datatype, size, list(getattr(given.contents, TYPED[given.datatype])))
    asked = [(each.name, to_http_parameters(each.parameters)) for each in request.outputs]
    return Question(images, identity(request.id or None), wanted(asked, to_http_parameters(request.parameters)))


def only_input(inputs: Any) -> dict[str, Any]:
    """Return the only input of a request."""
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise refused(f"inputs must be a list of one object, the tensor {INPUT}")
    return inputs[0]


def checked(name: Any, datatype: Any, size: Any, shape: Shape) -> tuple[int, ...]:
    """Return the shape (B, C, H, W) of a request's images.

    Raises:
        Refused: if the name, datatype or shape is another than the model's.
    """
    if name != INPUT:
        raise refused(f"the input must be named {INPUT}, got {shown(name)}")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise refused(f"the input's datatype must be one of {', '.join(DATATYPES)}, got {shown(datatype)}")
    expected = ", ".join(map(str, shape.image))
    whole = isinstance(size, list) and all(isinstance(each, int) and not isinstance(each, bool) for each in size)
    if not whole or tuple(size[1:]) != shape.image:
        raise refused(f"the input's shape must be [images, {expected}], got {shown(size)}")
    if not 1 <= size[0] <= shape.most:
        raise refused(f"a request has 1 to {shape.most} images, got {shown(size[0])}")
    return tuple(size)


def of_bytes(datatype: str, size: Sequence[int], content: memoryview) -> Tensor:
    """Return images from their little-endian bytes."""
    kind = np.dtype(DATATYPES[datatype])
    if len(content) != math.prod(size) * kind.itemsize:
        raise refused(
            f"{datatype} images of shape {list(size)} are {math.prod(size) * kind.itemsize} bytes, got {len(content)}"
        )
    return unit(np.frombuffer(content, kind), size)


def of_numbers(datatype: str, size: Sequence[int], data: Any) -> Tensor:
    """Return images from numbers, in a flat or nested list."""
    if datatype == "FP16":
        raise refused("FP16 comes as binary data, not as JSON")
    if not isinstance(data, list):
        raise refused(f"the input's data must be a list of {math.prod(size)} numbers")
    try:
        values = np.array(data)
    except (ValueError, OverflowError) as error:  # rows of several lengths
        raise refused(f"the input's data must be {math.prod(size)} numbers, in rows of one length") from error
    if values.dtype.kind not in "fiu" or values.size != math.prod(size):
        raise refused(f"the input's data must be {math.prod(size)} numbers, got {values.size} of {values.dtype}")
    if not sides(values.shape) <= sides(size):
        raise refused(f"the input's data is nested as {list(values.shape)}, and its shape is {list(size)}")
    if datatype == "UINT8" and (values.dtype.kind == "f" or values.min() < 0 or values.max() > 255):
        raise refused("UINT8 data must be whole numbers from 0 to 255")
    with np.errstate(over="ignore"):
        return unit(values.astype("u1" if datatype == "UINT8" else "<f4"), size)


def sides(shape: Sequence[int]) -> set[int]:
    """Return how many numbers the lists of each depth hold; some of those of the whole shape if only rows are flat."""
    return {math.prod(shape[depth:]) for depth in range(len(shape) + 1)}


def unit(values: np.ndarray, size: Sequence[int]) -> Tensor:
    """Return numbers as images in [0, 1]; those of UINT8 are divided by 255."""
    with np.errstate(over="ignore"):
        plain = values if values.dtype == np.uint8 else values.astype(np.float32)
    return to_unit_range(torch.from_numpy(plain.reshape(size).copy()))


def wanted(
    asked: Sequence[tuple[Any, Mapping[str, Any]]], parameters: Mapping[str, Any]
) -> tuple[tuple[str, bool], ...]:
    """Return which outputs a request asks for, and whether each is to be binary.

    Without a list it is the posteriors, or the labels where the parameter ``labels`` is true.
    """
    binary = parameters.get("binary_data_output", False) is True
    if not asked:
        return ((LABELS if parameters.get("labels", False) is True else POSTERIORS, binary),)
    names = [name for name, _ in asked]
    if not all(isinstance(name, str) and name in (POSTERIORS, LABELS) for name in names) or len({*names}) < len(names):
        raise refused(f"outputs are {POSTERIORS} and {LABELS}, each once; got {shown(names)}")
    return tuple((name, about.get("binary_data", binary) is True) for name, about in asked)


def mapping(found: Any, what: str) -> dict[str, Any]:
    """Return parameters, {} for none."""
    if found is not None and not isinstance(found, dict):
        raise refused(f"{what} must be an object, got {shown(found)}")
    return found or {}


def identity(found: Any) -> str:
    """Return a request's id; one is made if it has none."""
    if found is None:
        return str(uuid.uuid4())
    if not isinstance(found, str) or len(found) > LONGEST_ID or not found.isprintable():
        raise refused(f"id must be a text of up to {LONGEST_ID} characters, got {shown(found)}")
    return found


def refused(text: str) -> Refused:
    """Return the refusal of a request that is not valid."""
    return Refused(400, text)


def shown(found: Any) -> str:
    """Return a foreign value in a few printable characters."""
    if isinstance(found, (list, dict)):
        found = found[:8] if isinstance(found, list) else [*found][:8]
    text = repr(found if not isinstance(found, str) else found[:SHOWN])
    return "".join(each if each.isprintable() else " " for each in text)[:SHOWN]


def say(line: str) -> None:
    """Print a line of the server's on stderr."""
    err.print(f"mad-serve: {line}", soft_wrap=True, markup=False)
