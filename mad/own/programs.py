"""Networks that are files by themselves: TorchScript, ``torch.export`` and ONNX. They need no architecture."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mad.errors import MadError
from mad.weights import first_line

LOCATION = re.compile(rb"\n\x08location\x12([\x01-\x7f])([^\x00-\x1f]{1,127})")  # of weights in other files


class Program(nn.Module):
    """A network of unknown insides: images (B, C, H, W) to what it answers, for any B.

    Args:
        run: the program, images to answers.
        size: how many images it takes at once, if it takes only so many; None for any number. Fewer are filled up
            with black images, whose answers are dropped.
    """

    def __init__(self, run: Callable[[Tensor], Any], size: int | None = None) -> None:
        super().__init__()
        self.run, self.size = [run], size  # in a list: a program's own train() and to() may refuse to be called

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the program's first output: floats, or labels as they are."""
        if self.size is None:
            return self._first(images)
        parts = []
        for some in images.split(self.size):
            filled = torch.cat([some, some.new_zeros(self.size - len(some), *some.shape[1:])])
            parts.append(self._first(filled)[: len(some)])
        return torch.cat(parts)

    def _first(self, images: Tensor) -> Tensor:
        found = self.run[0](images.contiguous())
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
    half = session.get_inputs()[0].type == "tensor(float16)"

    def run(images: Tensor) -> Tensor:
        values = images.detach().cpu().numpy()
        found = session.run(None, {names[0]: values.astype("float16") if half else values})
        return torch.from_numpy(found[0]).to(images.device)

    return run


def taken(run: Callable[[Tensor], Any], shape: tuple[int, int, int], device: torch.device) -> int | None:
    """Return how many images a program takes at once: None if it takes any number; programs may fix it.

    Raises:
        MadError: if it takes no images of the shape; it names the number of channels that the program does take.
    """
    failures = []
    for size in (3, 1, 2, 4, 8, 16, 32, 64, 128, 256):
        if (error := failure(run, (size, *shape), device)) is None:
            return None if size == 3 else size
        failures.append(error)
    channels = 1 if shape[0] == 3 else 3
    advice = "channels come first; see victim.dataset.channels and victim.dataset.size"
    if any(failure(run, (size, channels, *shape[1:]), device) is None for size in (3, 1)):
        advice = f"it takes {channels} channels: set victim.dataset.channels={channels}"
    raise MadError(f"takes no images of {shape} ({first_line(failures[1])}): {advice}")


def failure(run: Callable[[Tensor], Any], size: tuple[int, ...], device: torch.device) -> Exception | None:
    """Return the error that a program raises on black images (B, C, H, W); None if it takes them."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(torch.zeros(size, device=device))
    except Exception as error:
        return error
    return None
