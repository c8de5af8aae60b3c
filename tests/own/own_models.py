"""One model of an owner, and the kinds of files that it is kept in."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from toys import CPU, Blobs, trainer, victim

from mad.architectures.pixels import Standardize
from mad.own import Own


@dataclass(frozen=True)
class Named(Blobs):
    """Blobs whose classes have names."""

    @property
    def names(self):
        return ["ant", "bee", "cat", "dog"]


class Conv(nn.Module):
    """A small network with a batch norm and dropout, which a program must have in eval mode."""

    def __init__(self, shape, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(shape[0], 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(6 * shape[1] * shape[2], classes)

    def forward(self, images):
        return self.head(self.body(images).flatten(1))


class Inside(Conv):
    """A network with a normalization of its own."""

    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.normalize = Standardize(1, [0.5], [0.5])

    def forward(self, images):
        return super().forward(self.normalize(images))


RECIPE = victim(architecture=Conv, dataset=Named())
MODEL = RECIPE.train(CPU).to(memory_format=torch.contiguous_format)


def own(**given):
    return Own(name="own", dataset=Named(), architecture=Conv, trainer=trainer(), **given)


def dtype_of(model):
    return next(model.parameters()).dtype


def state_dict(file):
    torch.save(MODEL.state_dict(), file)


def checkpoint(file):
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in MODEL.state_dict().items()}}, file)


def legacy(file):
    torch.save(MODEL.state_dict(), file, _use_new_zipfile_serialization=False)


def safetensors(file):
    save_file({name: value.contiguous() for name, value in MODEL.state_dict().items()}, file)


def torchscript(file, model=MODEL):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, torch.zeros(1, 1, 8, 8, dtype=dtype_of(model))).save(str(file))


def exported(file, batch=None, model=MODEL, most=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        size = ({0: torch.export.Dim("batch", max=most)},) if batch is None else None
        some = torch.zeros(batch or 4, 1, 8, 8, dtype=dtype_of(model))
        torch.export.save(torch.export.export(model, (some,), dynamic_shapes=size), file)


def onnx(file, batch=None, model=MODEL):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        size = ({0: torch.export.Dim("batch")},) if batch is None else None
        some = torch.zeros(batch or 4, 1, 8, 8, dtype=dtype_of(model))
        torch.onnx.export(model, (some,), str(file), dynamo=True, dynamic_shapes=size, verbose=False)


FILES = {
    "w.safetensors": safetensors,
    "w.pt": state_dict,
    "checkpoint.pth": checkpoint,
    "legacy.bin": legacy,
    "w.ts": torchscript,
    "w.pt2": exported,
    "fixed.pt2": lambda file: exported(file, 2),
    "w.onnx": onnx,
    "fixed.onnx": lambda file: onnx(file, 1),
}


@torch.no_grad()
def predict(images):
    """What a service of the model would answer."""
    return torch.softmax(MODEL(images), dim=1).numpy()
