"""One training loop, for victims (labels) and knockoffs (posteriors) alike."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, Optimizer, lr_scheduler

from mad import simplex
from mad.augmentation import SMALL, augmented, mixed
from mad.datasets import Images, batch_limit, batches, to_device, to_unit_range
from mad.device import choose, fast_bfloat16, keep_freed_memory, warn_of_emulation
from mad.errors import MadError, SettingError, check_choice, check_number
from mad.progress import bar
from mad.seeds import generator, seeded
from mad.storage.fingerprint import ADDED

OPTIMIZERS = ("sgd", "momentum", "adam", "adagrad")
SCHEDULES = ("one_cycle", "step", "constant", "cooldown")
AUGMENTATIONS = ("none", "crop", "crop_flip", "resized_crop_flip", "warp")
PRECISIONS = ("auto", "float32", "bfloat16", "fast")
USUAL_RATES = {"sgd": 0.1, "momentum": 0.01, "adam": 0.001, "adagrad": 0.01}  # of each optimizer
EVALUATION_BATCH = 1000
ALONE = "is trained on one image at a time, of which a batch norm has no statistics: take two, and batch_size=2"
Self = TypeVar("Self", bound="Trainer")


class DivergedError(MadError):
    """A training ended in weights or answers that are not finite."""


@dataclass(frozen=True)
class Trainer:
    """A training recipe. The network of the last epoch is used; no best epoch is selected.

    Args:
        epochs: passes over the training images.
        batch_size: images per step.
        optimizer: ``sgd``, ``momentum`` (SGD with momentum), ``adam`` or ``adagrad``.
        learning_rate: the highest rate of the schedule.
        momentum: used by the optimizer ``momentum`` only.
        weight_decay: L2 penalty.
        schedule: ``one_cycle`` (up, then down to zero); ``step`` (divided by ten every ``step_epochs`` epochs, as in
            the paper); ``constant``; or ``cooldown`` (constant for three quarters of the steps, then linearly to zero).
        step_epochs: see ``schedule``; grows in proportion if ``min_steps`` leads to more epochs.
        min_steps: the least number of steps; small data sets get more epochs to reach it.
        augment: ``none``; ``crop`` (random crops of the padded image); ``crop_flip`` (also mirrored half of the time);
            ``resized_crop_flip`` (a random part, enlarged, and mirrored half of the time; usual for ImageNet); or
            ``warp`` (turned, scaled, moved and bent a little: see ``mad.augmentation.WARP``).
        precision: precision of the forward pass. ``float32``; ``bfloat16`` (weights stay float32); ``fast``, the
            faster of the two on this machine (see ``fast_bfloat16``), which the fingerprint then names; or ``auto``,
            the faster of the two on GPUs and float32 on CPUs, so that results do not depend on the kind of CPU. A
            record names the precision that was used.
        mixup: alpha of mixup (Zhang et al., ICLR 2018), at least 0: each step learns from sums of two images, with
            shares drawn from Beta(alpha, alpha), and the same sums of their targets. 0: none. Usual: 0.1 to 1.
        knockoff: fields that differ in the recipe of a stolen model. Posteriors take longer to learn than labels, and
            perturbed posteriors longer still.
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
    knockoff: dict[str, Any] = field(default_factory=dict, compare=False)  # fields of the knockoff's own recipe
    mixup: float = field(default=0.0, metadata=ADDED)
    version: ClassVar[int] = 2  # version 1 rounded the weight updates differently

    def __post_init__(self) -> None:
        check_number("epochs", self.epochs, 1, whole=True)
        check_number("batch_size", self.batch_size, 1, whole=True)
        check_number("learning_rate", self.learning_rate, 1e-9)
        check_number("momentum", self.momentum, 0, 1)
        check_number("weight_decay", self.weight_decay, 0)
        check_number("min_steps", self.min_steps, 0, whole=True)
        check_number("step_epochs", self.step_epochs, 1, whole=True)
        check_number("mixup", self.mixup, 0)
        for name, value, choices in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("augment", self.augment, AUGMENTATIONS),
            ("precision", self.precision, PRECISIONS),
        ):
            check_choice(name, value, choices)
        if self.precision == "fast":  # now, so that the fingerprint names the precision that is used
            found = "bfloat16" if fast_bfloat16(choose("auto")) else "float32"
            object.__setattr__(self, "precision", found)
        known = [each.name for each in fields(self) if each.name != "knockoff"]
        for name in self.knockoff:
            check_choice("a key of trainer.knockoff", name, tuple(known))
        try:
            _ = self.knockoff and self.for_knockoffs()
        except SettingError as error:  # now, not after the victim is trained
            raise SettingError(f"trainer.knockoff.{error.name}", error.what) from error

    @property
    def amended(self) -> str | None:
        """See ``mad.storage.fingerprint``: many shares of a small alpha once were one half."""
        return "small shares of mixup" if 0 < self.mixup < SMALL else None

    def but(self, **changes: Any) -> Trainer:
        """Return this recipe with the changes that are not None; they also hold for ``for_knockoffs``.

        ``min_steps`` still applies to changed ``epochs``. A changed optimizer without a learning rate takes its usual
        rate (``USUAL_RATES``).
        """
        given = {name: value for name, value in changes.items() if value is not None}
        given["knockoff"] = {name: value for name, value in self.knockoff.items() if name not in given}
        optimizer = given.get("optimizer", self.optimizer)
        if optimizer != self.optimizer and optimizer in OPTIMIZERS:
            given.setdefault("learning_rate", USUAL_RATES[optimizer])
        return replace(self, **given)

    @classmethod
    def like(cls: type[Self], recipe: Trainer, **changes: Any) -> Self:
        """Return this kind of recipe, which may minimize another loss, with the fields of another, and changes.

        The recipe's changes for knockoffs do not come along.
        """
        taken = {each.name: getattr(recipe, each.name) for each in fields(Trainer)}
        return cls(**{**taken, "knockoff": {}, **changes})

    def for_knockoffs(self) -> Trainer:
        """Return the recipe for a stolen model: this one with the changes in ``knockoff``."""
        return replace(self, knockoff={}).but(**self.knockoff)

    def fit(self, model: nn.Module, images: Images, targets: Tensor, **how: Any) -> None:
        """Train ``model`` in place and leave it in eval mode on its device; for ``how``, see ``epochs_of``.

        Raises:
            DivergedError: if the final weights, or the answers to a batch of ``images``, are not finite.
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
        """Train ``model`` in place, in train mode on ``device``; after each epoch, yield the number of epochs done.

        Args:
            model: images in [0, 1] to logits (B, K).
            images: uint8 or float in [0, 1], (N, C, H, W).
            targets: int64 labels (B,), or posteriors (B, K) for the soft-label cross-entropy
                -sum_k y_k log p_k that the paper's adversaries minimize.
            seed: determines the order of the images, their augmentation, and dropout.
            device: where to train.
            task: the name in the progress bar; with the seed, it determines the random draws.
            rows: int64 (B,), the image of each target; None for all images in order.

        Raises:
            MadError: if a batch is one image, and a batch norm of the network takes no single one.
        """
        if self.arithmetic(device) == "bfloat16" and not fast_bfloat16(device):
            warn_of_emulation(device)
        images = to_device(images, device) if isinstance(images, Tensor) else images
        rows, targets = torch.arange(len(images)) if rows is None else rows, targets.to(device)
        if self.mixup and not targets.is_floating_point():
            classes = logits_of(place(model, device).eval(), images, device, rows[:1]).shape[1]
            targets = F.one_hot(targets, classes).float()
        place(model, device).train()
        order, draw = generator(seed, f"order of {task}"), generator(seed, f"augmentation of {task}")
        parts = [len(part) for part in torch.arange(len(rows)).split(self.batch_size)]
        if len(parts) > 1 and parts[-1] == 1 < self.batch_size and refuses_one(model, images.shape[1:]):
            parts[-2:] = [self.batch_size + 1]
        steps = len(parts)
        optimizer = self._optimizer(model, device)
        epochs = max(self.epochs, -(-self.min_steps // steps))
        scheduler = self._scheduler(optimizer, steps, epochs)
        with bar(task, epochs * len(rows)) as progress:
            for epoch in range(1, epochs + 1):
                turn = torch.randperm(len(rows), generator=order)
                wanted = turn.to(device).split(parts)
                with seeded(seed, f"dropout of {task}, epoch {epoch}"):
                    for some, batch in zip(wanted, batches(images, rows[turn], parts, device), strict=True):
                        seen, wished = augmented(batch, self.augment, draw), targets[some]
                        if self.mixup:
                            seen, wished = mixed(seen, wished, self.mixup)
                        try:
                            loss = self.loss(model, seen, wished)
                        except ValueError as error:
                            if len(seen) > 1 or not refuses_one(model, seen.shape[1:]):
                                raise
                            raise MadError(f"{task} {ALONE}") from error
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

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return a batch's mean cross-entropy; subclasses may minimize another loss. Images are uint8 or in [0, 1]."""
        return F.cross_entropy(self.logits(model, images), targets)

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return float32 logits (B, K), computed in this recipe's precision. Images are uint8 or in [0, 1]."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.arithmetic(images.device) == "bfloat16"):
            logits: Tensor = model(to_unit_range(images).contiguous(memory_format=torch.channels_last))
        return logits.float() if logits.dtype == torch.bfloat16 else logits

    def _optimizer(self, model: nn.Module, device: torch.device) -> Optimizer:
        common: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        common["fused"] = device.type in ("cpu", "cuda")  # one pass over the weights, not one per operation
        if self.optimizer == "adam":
            return Adam(model.parameters(), **common)
        if self.optimizer == "adagrad":
            common["fused"] = device.type == "cpu"  # not all versions of torch have a fused one on GPUs
            return Adagrad(model.parameters(), **common)
        return SGD(model.parameters(), **common, momentum=self.momentum if self.optimizer == "momentum" else 0.0)

    def _scheduler(self, optimizer: Optimizer, steps: int, epochs: int) -> lr_scheduler.LRScheduler:
        """Return a scheduler that is stepped after each batch, over ``epochs`` epochs of ``steps`` batches."""
        total = epochs * steps
        if self.schedule == "step":
            return lr_scheduler.StepLR(optimizer, round(self.step_epochs * total / self.epochs))
        warm = max(1, round(0.25 * total)) if self.schedule == "one_cycle" else 1
        held = {"one_cycle": warm, "cooldown": round(0.75 * total), "constant": total}[self.schedule]
        return lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / warm, max(0.0, (total - step) / max(1, total - held)))
        )


def refuses_one(model: nn.Module, shape: Sequence[int]) -> bool:
    """Return whether a network in train mode takes no single image (C, H, W): a batch norm of 1 x 1 maps does not."""
    trial = copy.deepcopy(model).train()
    one = torch.zeros(1, *shape, device=next(model.parameters()).device)
    try:
        with torch.no_grad(), seeded(0, "one image"):
            trial(one.contiguous(memory_format=torch.channels_last))
    except ValueError:
        return True
    return False


def extras(trainer: Trainer) -> str:
    """Return what a recipe does beyond plain training, as ``name=value`` joined by spaces; empty for nothing."""
    usual = {"augment": "none", "mixup": 0, "rotation": 0, "robust": None}
    found = {name: getattr(trainer, name, value) for name, value in usual.items()}
    return " ".join(f"{name}={value}" for name, value in found.items() if value != usual[name])


def place(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a model to a device in channels-last layout, which makes small convolutions 2 to 3 times as fast on CPUs."""
    if device.type == "cpu":
        keep_freed_memory()
    return model.to(device).to(memory_format=torch.channels_last)


@torch.no_grad()
def logits_of(model: nn.Module, images: Images, device: torch.device, rows: Tensor | None = None) -> Tensor:
    """Return the logits (B, K), on the CPU, of a model in eval mode.

    Args:
        model: images in [0, 1] to logits.
        images: uint8 or float, (N, C, H, W).
        device: the device of the model.
        rows: int64 (B,), which images; None for all of them.
    """
    size = batch_limit(EVALUATION_BATCH, images.shape[1:])
    return torch.cat([model(to_unit_range(batch)).cpu() for batch in batches(images, rows, size, device)])


def answering(logits: Tensor) -> bool:
    """Return whether the softmax of all logits (B, K) is a posterior; a row with NaN or +inf has none."""
    return simplex.are_posteriors(torch.softmax(logits, dim=1))
