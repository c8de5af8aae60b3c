"""Networks that are files by themselves: TorchScript, ``torch.export`` and ONNX. They need no architecture."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mad.datasets import batch_limit
from mad.errors import MadError
from mad.weights import first_line

LOCATION = re.compile(rb"\n\x08location\x12([\x01-\x7f])([^\x00-\x1f]{1,127})")  # of weights in other files

SIZES = (2, 4, 8, 16, 32, 64, 128, 256)  # of batches that are tried
LARGEST = 1024  # images that are asked about at once
PRECISIONS = (torch.float64, torch.float16, torch.bfloat16)


class Takes(NamedTuple):
    """What images a program takes."""

    most: int | None = None  # at once; None for any number
    exactly: bool = False  # whether it takes no fewer: it gets black images beside them, whose answers are dropped
    dtype: torch.dtype = torch.float32


class Program(nn.Module):
    """A network of unknown insides: images (B, C, H, W) to what it answers, for any B.

    Args:
        run: the program, images to answers.
        takes: what images it takes.
    """

    def __init__(self, run: Callable[[Tensor], Any], takes: Takes) -> None:
        super().__init__()
        self.run, self.takes = [run], takes  # in a list: a program's own train() and to() may refuse to be called

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the program's first output: floats, or labels as they are."""
        most, exactly, _ = self.takes
        if most is None:
            return self._first(images)
        parts = []
        for some in images.split(most):
            lacking = most - len(some) if exactly else 0
            filled = torch.cat([some, some.new_zeros(lacking, *some.shape[1:])]) if lacking else some
            parts.append(self._first(filled)[: len(some)])
        return torch.cat(parts)

    def _first(self, images: Tensor) -> Tensor:
        found = self.run[0](images.to(self.takes.dtype).contiguous())
        while isinstance(found, (tuple, list)) and found:
            found = found[0]
        if not isinstance(found, Tensor):
            raise MadError(f"its program answers with {type(found).__name__}, expected a tensor of logits (B, K)")
        labels = found.dim() > 0 and found.shape[1:].numel() == 1 and not found.is_floating_point()
        return found if labels else found.float()


def kind(name: str, content: bytes) -> str | None:
    """Return what a file holds: ``torchscript``, ``export`` or ``onnx``; None for weights, or what is unknown."""
    if content[:2] == b"PK":
        try:
            names = zipfile.ZipFile(io.BytesIO(content)).namelist()
        except zipfile.BadZipFile:
            return None
        if any("/code/" in each for each in names):
            return "torchscript"
        marks = ("models/model.json", "serialized_exported_program.json", "archive_format")
        return "export" if any(each.endswith(marks) for each in names) else None
    return "onnx" if name.lower().endswith(".onnx") else None


def beside(file: Path) -> list[Path]:
    """Return the files next to an ONNX file that hold its weights; large networks are saved so."""
    if file.suffix.lower() != ".onnx":
        return []
    names = {found[2][: found[1][0]].decode(errors="replace") for found in LOCATION.finditer(file.read_bytes())}
    return [file.parent / name for name in sorted(names)]


def opened(which: str, file: Path, content: bytes, shape: tuple[int, int, int], device: torch.device) -> nn.Module:
    """Return the network of a file of a ``kind``, on a device; ONNX is opened by path, for the files beside it.

    Raises:
        MadError: if it cannot be opened or does not take such images; the text goes on a sentence that names the file.
    """
    try:
        run = onnx(file) if which == "onnx" else {"torchscript": script, "export": exported}[which](content, device)
    except MadError:
        raise
    except Exception as error:
        raise MadError(f"cannot be opened as {which} ({first_line(error)}): is it whole?") from error
    return Program(run, taken(run, shape, device))


def script(content: bytes, device: torch.device) -> Callable[[Tensor], Any]:
    """Return a TorchScript program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of torch call the format old
        found: Any = torch.jit.load(io.BytesIO(content), map_location=device)
    return found.eval()


def exported(content: bytes, device: torch.device) -> Callable[[Tensor], Any]:
    """Return a program of ``torch.export``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(io.BytesIO(content))
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        return program.module()


def onnx(file: Path) -> Callable[[Tensor], Any]:
    """Return an ONNX program, run by onnxruntime on the CPU."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MadError("needs onnxruntime: pip install 'mad[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors come as exceptions
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    if len(names) != 1:
        raise MadError(f"takes {len(names)} inputs ({', '.join(names)}), expected one, the images")
    dtype = {"tensor(float16)": "float16", "tensor(double)": "float64"}.get(session.get_inputs()[0].type, "float32")

    def run(images: Tensor) -> Tensor:
        values = images.detach().cpu().numpy()
        found = session.run(None, {names[0]: values.astype(dtype, copy=False)})
        return torch.from_numpy(found[0]).to(images.device)

    return run


def taken(run: Callable[[Tensor], Any], shape: tuple[int, int, int], device: torch.device) -> Takes:
    """Return what images of a shape a program takes: it may fix or bound their number, and be of another precision.

    Raises:
        MadError: if it takes no images of the shape; it names the number of channels that the program does take.
    """
    held, dtypes = precisions(run)
    failures = {}
    for dtype in dtypes:
        for size in (3, 1, *SIZES):
            if (error := failure(run, (size, *shape), device, dtype)) is None:
                return Takes(size, True, dtype) if size != 3 else Takes(bound(run, shape, device, dtype), dtype=dtype)
            failures[dtype, size] = error
    channels = 1 if shape[0] == 3 else 3
    advice = "channels come first; see victim.dataset.channels and victim.dataset.size"
    others = [(size, channels, *shape[1:]) for size in (3, 1)]
    if any(failure(run, size, device, dtype) is None for size in others for dtype in dtypes):
        advice = f"it takes {channels} channels: set victim.dataset.channels={channels}"
    raise MadError(f"takes no images of {shape} ({first_line(failures[held, 1])}): {advice}")


def bound(
    run: Callable[[Tensor], Any], shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype
) -> int | None:
    """Return the most images that a program takes at once which takes three; None if it takes the largest batches."""
    largest = batch_limit(LARGEST, shape)
    sizes = [largest, *(size for size in reversed(SIZES) if 3 < size < largest)]
    found = next((size for size in sizes if failure(run, (size, *shape), device, dtype) is None), 3)
    return None if found >= largest else found


def precisions(run: Callable[[Tensor], Any]) -> tuple[torch.dtype, list[torch.dtype]]:
    """Return the precision of a program's weights, float32 if it is unknown, and those of images to try in turn."""
    if not isinstance(run, nn.Module):  # an ONNX program is given what it asks for
        return torch.float32, [torch.float32]
    held = dict.fromkeys(each.dtype for each in run.parameters() if each.is_floating_point())
    return next(iter(held), torch.float32), list(dict.fromkeys([torch.float32, *(held or PRECISIONS)]))


def failure(
    run: Callable[[Tensor], Any], size: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> Exception | None:
    """Return the error that a program raises on black images (B, C, H, W); None if it takes them."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(torch.zeros(size, device=device, dtype=dtype))
    except Exception as error:
        return error
    return None
