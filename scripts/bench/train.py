"""The training loop against a plain one, on MNIST: images per second, seconds to 99.0 %, accuracy in the end.

The plain loop is what one writes first: torchvision's data set with a transform an image, a DataLoader of batches
of 64, contiguous float32, and the paper's recipe. Both train the same LeNet on the same machine, in turn, each in a
process of its own, since this project's loop also changes how the C library keeps memory.

    python scripts/bench/train.py --data-root DATA --part speed,target
    python scripts/bench/train.py --data-root DATA --part final --json outputs/bench/train.json

``final`` compares recipes, not loops: it trains the paper's recipe with ``trainer=paper``, whose weights are a plain
loop's (tests/test_training.py) in a third of the time. What it has finished it keeps beside the JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import arguments, ratio, report, seconds, several
from hydra.utils import instantiate
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

import mad
from mad.architectures.lenet import LeNet
from mad.cli.command import command
from mad.cli.configs import composed
from mad.datasets import Split
from mad.datasets.vision import Vision
from mad.errors import whole_numbers
from mad.evaluation import accuracy
from mad.seeds import seeded
from mad.storage.fingerprint import describe, digest
from mad.training import Trainer, logits_of

TARGET = 0.99
PLAIN = {"epochs": 30, "batch_size": 64, "learning_rate": 0.1, "momentum": 0.5, "weight_decay": 5e-4, "step_epochs": 50}
Epochs = Iterator[nn.Module]  # the model, after each epoch


class Plain:
    """The loop that one writes first."""

    def __init__(self, root: str, workers: int, device: str, size: int | None = None) -> None:
        steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
        images = datasets.MNIST(root, train=True, transform=steps)
        self.images = Subset(images, range(size)) if size else images
        self.workers, self.device = workers, device

    def epochs(self, seed: int, epochs: int = PLAIN["epochs"]) -> Epochs:
        """Train a fresh LeNet, a step of the generator an epoch."""
        model = lenet(seed, mean=0.0, std=1.0).to(self.device).train()  # the transform normalises
        order = torch.Generator().manual_seed(seed)
        loader: DataLoader[Any] = DataLoader(
            self.images,
            PLAIN["batch_size"],
            shuffle=True,
            generator=order,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )
        rates = {"lr": PLAIN["learning_rate"], "momentum": PLAIN["momentum"], "weight_decay": PLAIN["weight_decay"]}
        optimizer = SGD(model.parameters(), **rates)
        scheduler = StepLR(optimizer, PLAIN["step_epochs"], gamma=0.1)
        for _ in range(epochs):
            for images, labels in loader:
                images, labels = images.to(self.device), labels.to(self.device)
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
            scheduler.step()
            yield model

    def accuracy(self, model: nn.Module, test: Split) -> float:
        """Return the share of test images that are classified rightly."""
        normal = test.images.float().div(255).sub(0.1307).div(0.3081)
        found = judged(model, normal, self.device)
        return accuracy(found, test.labels)


class Ours:
    """The loop of this project: a trainer by its name, or the ``knockoff``'s, which learns soft answers."""

    def __init__(self, trainer: str, split: Split, device: str, size: int | None = None) -> None:
        self.split, self.device = Split(*(part[:size] for part in split)), device
        if trainer == "knockoff":
            self.trainer = knockoff()
            self.split = Split(self.split.images, F.one_hot(self.split.labels, 10).float().mul(0.9).add(0.01))
        else:
            self.trainer = instantiate(composed([f"trainer={trainer}"]).trainer, _convert_="all")

    def epochs(self, seed: int, epochs: int | None = None) -> Epochs:
        """Train a fresh LeNet, a step of the generator an epoch."""
        model = lenet(seed)
        recipe = self.trainer.but(epochs=epochs)
        for _ in recipe.epochs_of(model, *self.split, seed=seed, device=torch.device(self.device), task="bench"):
            yield model

    def accuracy(self, model: nn.Module, test: Split) -> float:
        """Return the share of test images that are classified rightly."""
        return accuracy(judged(model, test.images, self.device), test.labels)


def knockoff() -> Trainer:
    """Return the recipe of the stolen model."""
    return mad.load("victim=mnist", "pool=fashion_mnist").knockoff.trainer


def lenet(seed: int, **normalisation: float) -> nn.Module:
    """Return an untrained LeNet for MNIST."""
    with seeded(seed, "bench"):
        return LeNet((1, 28, 28), 10, **normalisation)


def judged(model: nn.Module, images: torch.Tensor, device: str) -> torch.Tensor:
    """Return the predicted classes (N,), and leave the model in the mode it was in."""
    mode = model.training
    found = logits_of(model.eval(), images, torch.device(device)).argmax(dim=1)
    model.train(mode)
    return found


class Apart:
    """A loop in a process of its own, started once."""

    def __init__(self, name: str, given: argparse.Namespace, workers: int = 0, size: int | None = None) -> None:
        self.settings = (name, given.data_root, given.device, workers, size)
        self.process = ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (given.threads,))

    def run(self, task: Callable[..., Any], *arguments: Any) -> Any:
        """Return what the task returns there."""
        return self.process.submit(task, self.settings, *arguments).result()


@functools.cache
def loop_of(settings: tuple[Any, ...]) -> Plain | Ours:
    """Return this process's loop."""
    name, root, device, workers, size = settings
    return Plain(root, workers, device, size) if name == "plain" else Ours(name, mnist(root, "train"), device, size)


@functools.cache
def endless(settings: tuple[Any, ...]) -> Epochs:
    """Return one long training, so that a loop's workers are started once."""
    return loop_of(settings).epochs(0, 10**6)


def segment(settings: tuple[Any, ...]) -> float:
    """Return the seconds of one more epoch."""
    return seconds(lambda: next(endless(settings)), settings[2])


def seconds_to(settings: tuple[Any, ...], seed: int) -> float:
    """Return the seconds of training, evaluation apart, until the target is reached; infinity if it never is."""
    loop, test, taken = loop_of(settings), mnist(settings[1], "test"), 0.0
    epochs = loop.epochs(seed)
    while True:
        start = time.perf_counter()
        model = next(epochs, None)
        taken += time.perf_counter() - start
        if model is None:
            return float("inf")
        if loop.accuracy(model, test) >= TARGET:
            return taken


def curve(settings: tuple[Any, ...], seed: int) -> list[float]:
    """Return the test accuracy after each epoch."""
    loop, test = loop_of(settings), mnist(settings[1], "test")
    return [loop.accuracy(model, test) for model in loop.epochs(seed)]


def speed(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Time an epoch over the same few images with each loop, in turn; the plain one without and with workers."""
    names = {f"plain, {count} workers": ("plain", count) for count in (0, 2)} | {"fast": ("fast", 0)}
    loops = {label: Apart(name, given, count, given.images) for label, (name, count) in names.items()}
    times: dict[str, list[float]] = {label: [] for label in loops}
    for turn in range(given.repeats + 1):
        for label, loop in loops.items():
            taken = loop.run(segment)
            times[label] += [taken] * (turn > 0)
    rows = []
    for label in list(loops)[:-1]:
        gain = ratio(times[label], times["fast"])
        rates = [given.images / statistics.median(times[each]) for each in (label, "fast")]
        row = {"quantity": f"images per second, {label}", "plain": rates[0], "fast": rates[1], "ratio": gain}
        rows.append({**row, "bar": ">= 3 x", "met": gain >= 3})
    return rows


def target(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the training until the test accuracy, after an epoch, first reaches the target, seed by seed."""
    plain, fast = Apart("plain", given, given.workers), Apart("fast", given)
    rows = []
    for seed in seeds(given):
        taken = plain.run(seconds_to, seed), fast.run(seconds_to, seed)
        row = {"quantity": f"seconds to {TARGET:.1%}, seed {seed}", "plain": taken[0], "fast": taken[1]}
        rows.append({**row, "ratio": taken[0] / taken[1]})
    middle = {name: statistics.median(row[name] for row in rows) for name in ("plain", "fast", "ratio")}
    row = {"quantity": f"seconds to {TARGET:.1%}, median", **middle}
    return [*rows, {**row, "bar": ">= 5 x", "met": middle["ratio"] >= 5}]


def final(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare the accuracies after the last epoch; what an earlier call finished is kept."""
    loops = {name: Apart(name, given) for name in ("paper", "fast")}
    found: dict[str, list[float]] = {name: [] for name in loops}
    for seed in seeds(given):
        for name, loop in loops.items():
            label = f"{name} {digest(describe(loop_of(loop.settings).trainer))} seed {seed}"
            if label not in kept(given):
                keep(given, label, loop.run(curve, seed))
            found[name].append(100 * kept(given)[label][-1])
    rows = [
        {"quantity": f"last epoch, test %, seed {seed}", "plain": found["paper"][row], "fast": found["fast"][row]}
        for row, seed in enumerate(seeds(given))
    ]
    mean = {name: statistics.mean(values) for name, values in found.items()}
    off = mean["fast"] - mean["paper"]
    row = {"quantity": "last epoch, test %, mean", "plain": mean["paper"], "fast": mean["fast"]}
    return [*rows, {**row, "fast - plain": off, "bar": "within 0.2", "met": abs(off) <= 0.2}]


def kept(given: argparse.Namespace) -> dict[str, list[float]]:
    """Return the test accuracies, epoch by epoch, of the trainings that earlier calls finished."""
    return json.loads(given.kept.read_text()) if given.kept.exists() else {}


def keep(given: argparse.Namespace, name: str, values: list[float]) -> None:
    """Add one finished training to the file."""
    given.kept.parent.mkdir(parents=True, exist_ok=True)
    beside = given.kept.with_name(f".{given.kept.name}.{os.getpid()}")
    beside.write_text(json.dumps({**kept(given), name: values}, indent=2) + "\n")
    beside.replace(given.kept)


@functools.cache
def mnist(root: str, part: str) -> Split:
    """Return a split of MNIST."""
    return getattr(Vision("mnist", "MNIST", root), part)()


def seeds(given: argparse.Namespace) -> list[int]:
    """Return the seeds asked for."""
    return whole_numbers("--seeds", given.seeds)


PARTS = {"speed": speed, "target": target, "final": final}


@command
def main() -> None:
    """Measure the parts asked for."""
    given = arguments(
        __doc__,
        part="speed,target,final",
        data_root=os.environ.get("MAD_DATA", "data"),
        workers=0,  # of the plain loop, on its way to the target
        images=6400,
        seeds="0,1,2",
    )
    given.kept = (given.json or Path("outputs/bench/train.json")).with_suffix(".kept.json")
    seeds(given)  # a wrong one costs no training
    rows = [row for part in several("part", given.part, PARTS) for row in PARTS[part](given)]
    report("Training LeNet on MNIST", rows, given)


if __name__ == "__main__":
    main()
