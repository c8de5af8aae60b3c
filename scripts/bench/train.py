"""The training loop against a plain one, on MNIST: images per second, seconds to 99.0 %, accuracy in the end.

The plain loop is what one writes first: torchvision's data set with a transform an image, a DataLoader of batches
of 64, contiguous float32, and the paper's recipe. Both train the same LeNet, on the same machine, alternately.

    python scripts/bench/train.py --data-root DATA --part speed
    python scripts/bench/train.py --data-root DATA --part final --json outputs/bench/train.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import Run, arguments, paired, ratio, report
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from mad.architectures.lenet import LeNet
from mad.cli import config_dir, register_aliases
from mad.datasets import Split
from mad.datasets.vision import Vision
from mad.evaluation import accuracy
from mad.fingerprint import describe, digest
from mad.seeds import seeded
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


class Fast:
    """The loop of this project, with ``trainer=fast``."""

    def __init__(self, split: Split, device: str, size: int | None = None) -> None:
        self.split, self.device = Split(*(part[:size] for part in split)), device
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            self.trainer: Trainer = instantiate(compose("config").trainer, _convert_="all")

    def epochs(self, seed: int, epochs: int | None = None) -> Epochs:
        """Train a fresh LeNet, a step of the generator an epoch."""
        model = lenet(seed)
        recipe = self.trainer.but(epochs=epochs)
        for _ in recipe.epochs_of(model, *self.split, seed=seed, device=torch.device(self.device), task="fast"):
            yield model

    def accuracy(self, model: nn.Module, test: Split) -> float:
        """Return the share of test images that are classified rightly."""
        return accuracy(judged(model, test.images, self.device), test.labels)


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


def speed(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Time an epoch over the same few images with each loop, in turn."""
    loops = both(given, given.images)
    times = paired({name: segment(loop) for name, loop in loops.items()}, given.repeats, given.device)
    rates = {name: given.images / statistics.median(measured) for name, measured in times.items()}
    gain = ratio(times["plain"], times["fast"])
    row = {"quantity": "images per second", **rates, "fast / plain": gain}
    return [{**row, "bar": ">= 3 x", "met": gain >= 3}]


def segment(loop: Plain | Fast) -> Run:
    """Return what trains an epoch a call; a loop's workers are started once and not once a call."""
    epochs = loop.epochs(0, 10**6)
    return lambda: next(epochs)


def workers(given: argparse.Namespace) -> int:
    """Return the plain loop's number of workers: the one asked for, or the faster of none and two, here and now."""
    if given.workers >= 0:
        return given.workers
    runs = {str(count): segment(Plain(given.data_root, count, given.device, given.images)) for count in (0, 2)}
    times = paired(runs, 3, given.device)
    return int(min(times, key=lambda count: statistics.median(times[count])))


def target(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the training until the test accuracy, after an epoch, first reaches the target, seed by seed."""
    loops, test = both(given), mnist(given, "test")
    rows = []
    for seed in seeds(given):
        taken = {name: seconds_to(loop, seed, test) for name, loop in loops.items()}
        gain = taken["plain"] / taken["fast"]
        rows.append({"quantity": f"seconds to {TARGET:.1%}, seed {seed}", **taken, "fast / plain": gain})
    gain = statistics.median(row["fast / plain"] for row in rows)
    middle = {name: statistics.median(row[name] for row in rows) for name in loops}
    row = {"quantity": f"seconds to {TARGET:.1%}, median", **middle, "fast / plain": gain}
    return [*rows, {**row, "bar": ">= 5 x", "met": gain >= 5}]


def seconds_to(loop: Plain | Fast, seed: int, test: Split) -> float:
    """Return the seconds of training, evaluation apart, until the target is reached; infinity if it never is."""
    taken, epochs = 0.0, loop.epochs(seed)
    while True:
        start = time.perf_counter()
        model = next(epochs, None)
        taken += time.perf_counter() - start
        if model is None:
            return float("inf")
        if loop.accuracy(model, test) >= TARGET:
            return taken


def final(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare the accuracies after the last epoch; what an earlier call finished is kept."""
    loops, test = both(given), mnist(given, "test")
    todo = [(name, seed) for seed in seeds(given) for name in loops if key(loops[name], seed) not in kept(given)]
    for name, seed in todo:
        loop = loops[name]
        if name in given.loops.split(","):
            keep(given, key(loop, seed), [loop.accuracy(model, test) for model in loop.epochs(seed)])
    if {name for name, _ in todo} - set(given.loops.split(",")):
        raise SystemExit(f"kept in {given.kept}; the other loop's are still to be trained")
    found = {name: [kept(given)[key(loop, seed)][-1] for seed in seeds(given)] for name, loop in loops.items()}
    rows = [
        {"quantity": f"last epoch, test %, seed {seed}", **{name: 100 * value[row] for name, value in found.items()}}
        for row, seed in enumerate(seeds(given))
    ]
    mean = {name: 100 * statistics.mean(value) for name, value in found.items()}
    off = mean["fast"] - mean["plain"]
    row = {"quantity": "last epoch, test %, mean", **mean, "fast - plain": off}
    return [*rows, {**row, "bar": "within 0.2", "met": abs(off) <= 0.2}]


def key(loop: Plain | Fast, seed: int) -> str:
    """Return the name of one finished training: another recipe is another training."""
    recipe = PLAIN if isinstance(loop, Plain) else describe(loop.trainer)
    return f"{type(loop).__name__.lower()} {digest(recipe)} seed {seed}"


def kept(given: argparse.Namespace) -> dict[str, list[float]]:
    """Return the test accuracies, epoch by epoch, of the trainings that earlier calls finished."""
    return json.loads(given.kept.read_text()) if given.kept.exists() else {}


def keep(given: argparse.Namespace, name: str, curve: list[float]) -> None:
    """Add one finished training to the file."""
    given.kept.parent.mkdir(parents=True, exist_ok=True)
    beside = given.kept.with_name(f".{given.kept.name}.{os.getpid()}")
    beside.write_text(json.dumps({**kept(given), name: curve}, indent=2) + "\n")
    beside.replace(given.kept)


def both(given: argparse.Namespace, size: int | None = None) -> dict[str, Plain | Fast]:
    """Return the two loops on the first ``size`` training images, or on all of them."""
    plain = Plain(given.data_root, given.workers, given.device, size)
    return {"plain": plain, "fast": Fast(mnist(given, "train"), given.device, size)}


def mnist(given: argparse.Namespace, part: str) -> Split:
    """Return a split of MNIST."""
    return getattr(Vision("mnist", "MNIST", given.data_root), part)()


def seeds(given: argparse.Namespace) -> list[int]:
    """Return the seeds asked for."""
    return [int(seed) for seed in given.seeds.split(",")]


PARTS = {"speed": speed, "target": target, "final": final}


def main() -> None:
    """Measure the parts asked for."""
    given = arguments(
        __doc__,
        part="all",
        data_root=os.environ.get("MAD_DATA", "data"),
        workers=-1,  # the faster of 0 and 2
        images=6400,
        seeds="0,1,2",
        loops="plain,fast",
    )
    given.kept = (given.json or Path("outputs/bench/train.json")).with_suffix(".kept.json")
    register_aliases()
    given.workers = 0 if given.part == "final" else workers(given)  # accuracies do not depend on it
    rows = [row for part in (PARTS if given.part == "all" else [given.part]) for row in PARTS[part](given)]
    report(f"Training LeNet on MNIST, {given.workers} workers in the plain loop", rows, given)


if __name__ == "__main__":
    main()
