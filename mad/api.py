"""The black-box API: the only access that an adversary has to the victim."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mad import plugins, simplex
from mad.datasets import batch_limit
from mad.defenses import Defense
from mad.errors import BudgetExceededError, MadError, check_number

BATCH = 256
LOW, HIGH = -1.0, 2.0  # bounds of accepted pixels: published attacks leave [0, 1] by a step or two
UNCHANGED = 1e-6  # an L1 distance that rescaling in float32 may cause


class BlackBox:
    """A victim behind its defense, which counts queries and the L1 distances of its answers. Thread-safe.

    Args:
        model: the served classifier, images in [0, 1] to logits (B, K), in eval mode.
        defense: the defense, prepared for ``model``.
        shape: (C, H, W) of the images that it takes.
        budget: query budget, one query per image; None for no limit, as in the defender's own measurements.
        device: the device of the model.
        watch: for studies only: called with the images and the clean and defended posteriors of each request.
        turn: lock held while a ``stateful`` defense answers. Sessions whose defenses share state share the lock; None
            makes a new one.
        classes: the victim's number of classes K, which replayed answers must have; None for any.

    Attributes:
        most: the most images that it answers at once; a larger request is answered in parts.
    """

    def __init__(
        self,
        model: nn.Module,
        defense: Defense,
        shape: tuple[int, int, int],
        budget: int | None,
        device: torch.device,
        watch: Callable[[Tensor, Tensor, Tensor], None] | None = None,
        turn: AbstractContextManager[Any] | None = None,
        classes: int | None = None,
    ) -> None:
        if any(part.training for part in model.modules()):
            raise MadError("the served model, or a part of it, is in train mode; call model.eval()")
        if budget is not None:
            check_number("attack.budget", budget, 1, whole=True)
        self._model, self._defense, self._device = model, defense, device
        self._watch, self._lock = watch, threading.Lock()
        self._turn = (turn or threading.Lock()) if defense.stateful else nullcontext()
        self.most = min(batch_limit(BATCH, shape), defense.max_batch or BATCH)
        self._moved: list[Tensor] = []  # how far answers were moved that the counters below lack
        self._waiting = 0  # images of these
        self._l1_total = 0.0
        self._targets = torch.zeros(0, dtype=torch.int64)  # changed answers per class that was raised most
        self.shape, self.budget, self.classes = tuple(shape), budget, classes
        self.queries = 0
        self._answered = 0  # images whose answers are in the counters above
        self._since = time.perf_counter()

    def __call__(self, images: Tensor) -> Tensor:
        """Return the defended posteriors, float32 (B, K) on the images' device, of images (B, C, H, W) in [0, 1].

        A request is counted in full before it is answered, and stays counted if answering fails. A request for more
        images than the budget has left is refused as a whole. Floats of any precision are answered as float32.

        Raises:
            BudgetExceededError: if fewer queries are left than images were sent; none is counted.
            MadError: if ``check`` refuses the images; none is counted. Also if the victim or its defense fails.
        """
        self._charge(images)
        return self._told(images, *self.answer(images))

    def replayed(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return what the defense makes of answers that were given before; the model is not asked.

        Each image counts as one query, as in a call.

        Args:
            images: (B, C, H, W) in [0, 1].
            clean: the answers without a defense, posteriors, float32 (B, K) on the images' device.

        Raises:
            BudgetExceededError: as in a call.
            MadError: as in a call, or if there is not one posterior over the victim's classes an image; nothing is
                counted then.
        """
        self.check(images)
        right = isinstance(clean, Tensor) and clean.dim() == 2 and len(clean) == len(images)
        right = right and self.classes in (None, clean.shape[1])
        if not right or not simplex.are_posteriors(clean):
            wanted = f"{len(images)} images need as many posteriors (B, {self.classes or 'K'})"
            raise MadError(f"{wanted}, got {plugins.kind(clean)}{' that are none' * right}")
        self._charge(images)
        return self._told(images, *self.answer(images, clean))

    def check(self, images: Tensor) -> None:
        """Check a request; nothing is counted.

        Raises:
            MadError: if the images are no tensor, have another shape, are not floats, or leave [``LOW``, ``HIGH``].
        """
        if not isinstance(images, Tensor):
            how = "torch.from_numpy(x)" if isinstance(images, np.ndarray) else "torch.stack or torch.as_tensor of it"
            raise MadError(f"the API takes a float tensor (B, C, H, W), got {plugins.kind(images)}: give {how}")
        if tuple(images.shape[1:]) != self.shape:
            raise MadError(f"the API takes images of {self.shape}, got {tuple(images.shape[1:])}")
        if not images.is_floating_point():
            raise MadError(f"the API takes float images in [0, 1], got {images.dtype}: divide by 255")
        if len(images):
            low, high = (bound.item() for bound in images.aminmax())
            if not (low >= LOW and high <= HIGH):  # NaN compares false
                hint = "divide by 255" if high <= 255 else "look for what is not finite"
                raise MadError(f"the API takes float images in [0, 1], got {low:g} to {high:g}: {hint}")

    def _charge(self, images: Tensor) -> None:
        """Check a request, and count its images."""
        self.check(images)
        with self._lock:
            if self.budget is not None and self.queries + len(images) > self.budget:
                raise BudgetExceededError(
                    f"{len(images)} queries asked for, {self.budget - self.queries} of {self.budget} left"
                )
            self.queries += len(images)

    def _told(self, images: Tensor, clean: Tensor, defended: Tensor) -> Tensor:
        """Count how far the answers to a request were moved, and return them."""
        moved = defended - clean
        with self._lock:
            self._moved.append(moved)
            self._waiting += len(moved)
            if self._waiting >= BATCH:
                self._count()
        if self._watch is not None:
            self._watch(images, clean, defended)
        return defended

    @torch.no_grad()
    def answer(self, images: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the clean and the defended posteriors, (B, K) each, without counting a query: the defender's view.

        Args:
            images: (B, C, H, W) in [0, 1].
            given: clean posteriors (B, K) that stand for the model's.
        """
        both = []
        parts = images.split(self.most)
        for batch, logged in zip(parts, [None] * len(parts) if given is None else given.split(self.most), strict=True):
            there = batch.to(self._device, torch.float32)
            clean = torch.softmax(self._model(there), dim=1) if logged is None else logged.to(self._device)
            with self._turn:
                defended = self._defense(there, clean)
            both.append((clean.to(batch.device), defended.to(batch.device)))
        if len(both) == 1:
            return both[0]
        clean, defended = (torch.cat(part) for part in zip(*both, strict=True))
        return clean, defended

    def _count(self) -> None:
        """Add the answers that wait to the counters; the caller holds the lock. Small requests are counted together."""
        if not self._moved:
            return
        moved = torch.cat(self._moved)
        self._moved.clear()
        self._waiting = 0
        distance, classes = moved.abs().sum(dim=1), moved.shape[1]
        # Counting unchanged answers as one more class and dropping it is faster than selecting rows.
        target = moved.argmax(dim=1).masked_fill_(distance <= UNCHANGED, classes)
        counts = torch.bincount(target, minlength=classes + 1)[:classes].cpu()
        self._l1_total += distance.sum().item()
        self._answered += len(moved)
        self._targets = counts + self._targets if len(self._targets) else counts

    def state(self) -> dict[str, Any]:
        """Return the counters so far, for ``restore``."""
        with self._lock:
            self._count()
            counts = {"queries": self.queries, "l1_total": self._l1_total, "targets": self._targets.clone()}
            return counts | {"answered": self._answered, "seconds": self.seconds}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue counting from the ``state`` of another session of the same deployment."""
        with self._lock:
            self._moved.clear()
            self._waiting = 0
            self.queries, self._l1_total, self._targets = state["queries"], state["l1_total"], state["targets"]
            self._answered = state.get("answered", self.queries)  # older states lack it
            self._since = time.perf_counter() - state["seconds"]

    @property
    def defense(self) -> Defense:
        """The defense as it is in this session: the defender's view."""
        return self._defense

    @property
    def seconds(self) -> float:
        """Seconds since the session was opened, with those before its ``restore``."""
        return time.perf_counter() - self._since

    @property
    def l1_mean(self) -> float:
        """The mean L1 distance, in [0, 2], between clean and defended answers so far; failed requests are left out."""
        with self._lock:
            self._count()
            return self._l1_total / max(1, self._answered)

    @property
    def target_entropy(self) -> float | None:
        """The entropy, in bits, of the classes that changed answers were pushed to; None if no answer changed.

        An answer is pushed to the class whose probability rose most. The entropy is 0 if that is the same class for
        all queries, and log2 K if all classes are equally frequent.
        """
        with self._lock:
            self._count()
            counts = self._targets[self._targets > 0].double()
        if not len(counts):
            return None
        return simplex.entropy_in_bits(counts / counts.sum()).item()
