"""One training loop, for victims (labels) and knockoffs (posteriors) alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, Optimizer, lr_scheduler

from mad.datasets import unit
from mad.errors import MadError, number
from mad.progress import bar
from mad.seeds import generator

OPTIMIZERS = ("sgd", "momentum", "adam", "adagrad")
SCHEDULES = ("one_cycle", "step")
EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class Trainer:
    """How a network is trained, from the first to the last epoch; there is no selection of a best one.

    Args:
        epochs: passes over the training images.
        batch_size: images per step.
        optimizer: ``sgd``, ``momentum`` (SGD with momentum), ``adam`` or ``adagrad``.
        learning_rate: the peak of ``one_cycle``, the start of ``step``.
        momentum: of ``momentum`` alone.
        weight_decay: L2 penalty.
        schedule: ``one_cycle`` (up, then down to zero) or ``step`` (a tenth every ``step_epochs``, the paper's).
        step_epochs: see ``schedule``.
        min_steps: sets too small to fill these many batches in ``epochs`` get more epochs.
    """

    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    momentum: float
    weight_decay: float
    schedule: str
    step_epochs: int = 50
    min_steps: int = 0

    def __post_init__(self) -> None:
        number("epochs", self.epochs, 1, whole=True)
        number("batch_size", self.batch_size, 1, whole=True)
        number("learning_rate", self.learning_rate, 1e-9)
        number("momentum", self.momentum, 0, 1)
        number("weight_decay", self.weight_decay, 0)
        number("min_steps", self.min_steps, 0, whole=True)
        number("step_epochs", self.step_epochs, 1, whole=True)
        for name, value, choices in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
        ):
            if value not in choices:
                raise MadError(f"{name} must be one of {', '.join(choices)}, got {value!r}")

    def but(self, **changes: Any) -> Trainer:
        """Return this recipe with the changes that are not None; epochs asked for by name are final."""
        given = {name: value for name, value in changes.items() if value is not None}
        if "epochs" in given:
            given["min_steps"] = 0
        return replace(self, **given)

    def fit(
        self, model: nn.Module, images: Tensor, targets: Tensor, *, seed: int, device: torch.device, task: str
    ) -> None:
        """Train ``model`` in place and leave it in eval mode on ``device``.

        Args:
            model: images in [0, 1] to logits (B, K).
            images: uint8 or float in [0, 1], (N, C, H, W).
            targets: int64 labels (N,), or posteriors (N, K) for the soft-label cross-entropy
                -sum_k y_k log p_k that the paper's adversaries minimise.
            seed: fixes the order of the images.
            device: where to train.
            task: what the progress bar calls this.
        """
        place(model, device).train()
        images, targets = images.to(device), targets.to(device)
        order = generator(seed, f"order of {task}")
        steps = -(-len(images) // self.batch_size)
        optimizer = self._optimizer(model)
        epochs = max(self.epochs, -(-self.min_steps // steps))
        scheduler = self._scheduler(optimizer, steps, epochs)
        with bar(task, epochs * len(images)) as progress:
            for epoch in range(epochs):
                for rows in torch.randperm(len(images), generator=order).to(device).split(self.batch_size):
                    batch = unit(images[rows]).contiguous(memory_format=torch.channels_last)
                    loss = F.cross_entropy(model(batch), targets[rows])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    scheduler.step()
                    progress(len(rows), f"epoch {epoch + 1}/{epochs}", loss)
        model.eval()

    def _optimizer(self, model: nn.Module) -> Optimizer:
        common: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        if self.optimizer == "adam":
            return Adam(model.parameters(), **common)
        if self.optimizer == "adagrad":
            return Adagrad(model.parameters(), **common)
        return SGD(model.parameters(), **common, momentum=self.momentum if self.optimizer == "momentum" else 0.0)

    def _scheduler(self, optimizer: Optimizer, steps: int, epochs: int) -> lr_scheduler.LRScheduler:
        """Return a scheduler that is stepped once a batch."""
        if self.schedule == "step":
            return lr_scheduler.StepLR(optimizer, self.step_epochs * steps)
        total = epochs * steps
        warm = max(1, round(0.25 * total))
        return lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warm, max(0.0, (total - step) / max(1, total - warm)))
        )


def place(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a model to a device, channels last: small convolutions run two to three times as fast so on CPUs."""
    return model.to(device).to(memory_format=torch.channels_last)


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """Return the logits (N, K), on the CPU, of a model in eval mode; images uint8 or float, (N, C, H, W)."""
    batches = images.split(EVALUATION_BATCH)
    return torch.cat([model(unit(batch.to(device))).cpu() for batch in batches])
