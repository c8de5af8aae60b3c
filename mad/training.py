"""One training loop, for victims (labels) and knockoffs (posteriors) alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, Optimizer, lr_scheduler

from mad import simplex
from mad.augmentation import augmented
from mad.datasets import Images, batch_limit, batches, to_device, to_unit_range
from mad.device import choose, fast_bfloat16, keep_freed_memory, warn_of_emulation
from mad.errors import MadError, check_choice, check_number
from mad.progress import bar
from mad.seeds import generator, seeded

OPTIMIZERS = ("sgd", "momentum", "adam", "adagrad")
SCHEDULES = ("one_cycle", "step", "constant", "cooldown")
AUGMENTATIONS = ("none", "crop", "crop_flip", "resized_crop_flip")
PRECISIONS = ("auto", "float32", "bfloat16", "fast")
USUAL_RATES = {"sgd": 0.1, "momentum": 0.01, "adam": 0.001, "adagrad": 0.01}  # of each optimizer
EVALUATION_BATCH = 1000


class DivergedError(MadError):
    """A training has ended in weights or answers that are no finite numbers."""


@dataclass(frozen=True)
class Trainer:
    """How a network is trained, from the first to the last epoch; there is no selection of a best one.

    Args:
        epochs: passes over the training images.
        batch_size: images per step.
        optimizer: ``sgd``, ``momentum`` (SGD with momentum), ``adam`` or ``adagrad``.
        learning_rate: the highest of the schedule.
        momentum: of the optimizer ``momentum`` only.
        weight_decay: L2 penalty.
        schedule: ``one_cycle`` (up, then down to zero); ``step`` (a tenth every ``step_epochs``, the paper's);
            ``constant``; or ``cooldown`` (constant for three quarters of the steps, then straight down to zero).
        step_epochs: see ``schedule``; more in proportion where ``min_steps`` makes more epochs.
        min_steps: sets too small to fill these many batches in ``epochs`` get more epochs.
        augment: ``none``; ``crop`` (random crops of the padded image); ``crop_flip`` (and mirrored half of the time);
            or ``resized_crop_flip`` (random parts of it, enlarged, and mirrored half of the time: ImageNet's usual).
        precision: ``float32``; ``bfloat16`` (weights stay float32); ``fast``: whichever of them is faster here, see
            ``fast_bfloat16``, and called so from then on, in fingerprints, too; or ``auto``: the faster on GPUs, and
            float32 on CPUs, whose numbers then do not depend on their units. A record says which it was.
        knockoff: the fields that a stolen model's recipe has otherwise: posteriors take longer to learn than labels,
            and poisoned ones longer still.
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
    augment: str = "none"
    precision: str = "auto"
    knockoff: dict[str, Any] = field(default_factory=dict, compare=False)  # a knockoff's recipe has them as its own
    version: ClassVar[int] = 2  # 1 updated the weights in other roundings

    def __post_init__(self) -> None:
        check_number("epochs", self.epochs, 1, whole=True)
        check_number("batch_size", self.batch_size, 1, whole=True)
        check_number("learning_rate", self.learning_rate, 1e-9)
        check_number("momentum", self.momentum, 0, 1)
        check_number("weight_decay", self.weight_decay, 0)
        check_number("min_steps", self.min_steps, 0, whole=True)
        check_number("step_epochs", self.step_epochs, 1, whole=True)
        for name, value, choices in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("augment", self.augment, AUGMENTATIONS),
            ("precision", self.precision, PRECISIONS),
        ):
            check_choice(name, value, choices)
        if self.precision == "fast":  # now, so that the fingerprint says what it is here
            found = "bfloat16" if fast_bfloat16(choose("auto")) else "float32"
            object.__setattr__(self, "precision", found)
        known = [each.name for each in fields(self) if each.name != "knockoff"]
        for name in self.knockoff:
            check_choice("a key of trainer.knockoff", name, tuple(known))
        try:
            _ = self.knockoff and self.for_knockoffs()
        except MadError as error:  # now, and not once the victim is trained
            raise MadError(f"trainer.knockoff: {error}") from error

    def but(self, **changes: Any) -> Trainer:
        """Return this recipe, a knockoff's, too, with the changes that are not None; ``min_steps`` stays a floor.

        Another optimizer that comes without a learning rate takes its usual one.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        given["knockoff"] = {name: value for name, value in self.knockoff.items() if name not in given}
        optimizer = given.get("optimizer", self.optimizer)
        if optimizer != self.optimizer and optimizer in OPTIMIZERS:
            given.setdefault("learning_rate", USUAL_RATES[optimizer])
        return replace(self, **given)

    def for_knockoffs(self) -> Trainer:
        """Return the recipe for a transfer set; another optimizer without a rate of its own takes its usual one."""
        return replace(self, knockoff={}).but(**self.knockoff)

    def fit(self, model: nn.Module, images: Images, targets: Tensor, **how: Any) -> None:
        """Train ``model`` in place, as ``epochs_of`` does, and leave it in eval mode on its device.

        Raises:
            DivergedError: if it ends in weights, or in answers to a batch of ``images``, that are not finite.
        """
        for _ in self.epochs_of(model, images, targets, **how):
            pass
        rows = how.get("rows")
        some = torch.arange(len(images))[: self.batch_size] if rows is None else rows[: self.batch_size]
        sound = all(value.isfinite().all() for value in model.state_dict().values())
        if not sound or not answering(logits_of(model.eval(), images, how["device"], some)):
            raise DivergedError(
                f"the training of {how['task']} diverged at learning_rate={self.learning_rate:g}: "
                "its weights or answers are not finite; lower that rate"
            )

    def epochs_of(
        self,
        model: nn.Module,
        images: Images,
        targets: Tensor,
        *,
        seed: int,
        device: torch.device,
        task: str,
        rows: Tensor | None = None,
    ) -> Iterator[int]:
        """Train ``model`` in place, in train mode on ``device``, and yield after each epoch how many are done.

        Args:
            model: images in [0, 1] to logits (B, K).
            images: uint8 or float in [0, 1], (N, C, H, W).
            targets: int64 labels (B,), or posteriors (B, K) for the soft-label cross-entropy
                -sum_k y_k log p_k that the paper's adversaries minimise.
            seed: fixes the order of the images, their augmentation, and what the network draws, such as dropout.
            device: where to train.
            task: what the progress bar calls this.
            rows: int64 (B,), which images the targets are of; None for all of them.
        """
        if self.arithmetic(device) == "bfloat16" and not fast_bfloat16(device):
            warn_of_emulation(device)
        place(model, device).train()
        images = to_device(images, device) if isinstance(images, Tensor) else images
        rows, targets = torch.arange(len(images)) if rows is None else rows, targets.to(device)
        order, draw = generator(seed, f"order of {task}"), generator(seed, f"augmentation of {task}")
        steps = -(-len(rows) // self.batch_size)
        optimizer = self._optimizer(model, device)
        epochs = max(self.epochs, -(-self.min_steps // steps))
        scheduler = self._scheduler(optimizer, steps, epochs)
        with bar(task, epochs * len(rows)) as progress:
            for epoch in range(1, epochs + 1):
                turn = torch.randperm(len(rows), generator=order)
                wanted = turn.to(device).split(self.batch_size)
                with seeded(seed, f"dropout of {task}, epoch {epoch}"):
                    for some, batch in zip(wanted, batches(images, rows[turn], self.batch_size, device), strict=True):
                        loss = self._loss(model, augmented(batch, self.augment, draw), targets[some])
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
                        scheduler.step()
                        progress(len(some), f"epoch {epoch}/{epochs}", loss)
                yield epoch

    def arithmetic(self, device: torch.device) -> str:
        """Return the precision of the forward pass on a device: ``float32`` or ``bfloat16``."""
        if self.precision == "auto" and device.type != "cpu":
            return "bfloat16" if fast_bfloat16(device) else "float32"
        return "float32" if self.precision == "auto" else self.precision

    def _loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of a batch, uint8 or float; the forward pass in the chosen precision."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.arithmetic(images.device) == "bfloat16"):
            logits = model(to_unit_range(images).contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits.float() if logits.dtype == torch.bfloat16 else logits, targets)

    def _optimizer(self, model: nn.Module, device: torch.device) -> Optimizer:
        common: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        common["fused"] = device.type in ("cpu", "cuda")  # one pass over the weights instead of one an operation
        if self.optimizer == "adam":
            return Adam(model.parameters(), **common)
        if self.optimizer == "adagrad":
            common["fused"] = device.type == "cpu"  # not all versions of torch have it on GPUs
            return Adagrad(model.parameters(), **common)
        return SGD(model.parameters(), **common, momentum=self.momentum if self.optimizer == "momentum" else 0.0)

    def _scheduler(self, optimizer: Optimizer, steps: int, epochs: int) -> lr_scheduler.LRScheduler:
        """Return a scheduler that is stepped once a batch."""
        total = epochs * steps
        if self.schedule == "step":
            return lr_scheduler.StepLR(optimizer, round(self.step_epochs * total / self.epochs))
        warm = max(1, round(0.25 * total)) if self.schedule == "one_cycle" else 1
        held = {"one_cycle": warm, "cooldown": round(0.75 * total), "constant": total}[self.schedule]
        return lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / warm, max(0.0, (total - step) / max(1, total - held)))
        )


def place(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a model to a device, channels last: small convolutions run two to three times as fast so on CPUs."""
    if device.type == "cpu":
        keep_freed_memory()
    return model.to(device).to(memory_format=torch.channels_last)


@torch.no_grad()
def logits_of(model: nn.Module, images: Images, device: torch.device, rows: Tensor | None = None) -> Tensor:
    """Return the logits (B, K), on the CPU, of a model in eval mode.

    Args:
        model: images in [0, 1] to logits.
        images: uint8 or float, (N, C, H, W).
        device: where the model lies.
        rows: int64 (B,), which images; None for all of them.
    """
    size = batch_limit(EVALUATION_BATCH, images.shape[1:])
    return torch.cat([model(to_unit_range(batch)).cpu() for batch in batches(images, rows, size, device)])


def answering(logits: Tensor) -> bool:
    """Whether all logits (B, K) make posteriors: one NaN or +inf makes none."""
    return simplex.are_posteriors(torch.softmax(logits, dim=1))
