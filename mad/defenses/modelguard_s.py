"""ModelGuard-S (Tang et al., USENIX Security 2024): posteriors quantized by a codebook that grows with the queries."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mad import simplex
from mad.defenses.base import Context, Defense
from mad.errors import MadError, check_number
from mad.schema import Column


class Codebook:
    """The centroids of every class, in the order in which they were stored; all clients share one.

    Args:
        most: the most centroids a class may have.
        classes: number of classes K.
        device: where the centroids lie.
    """

    def __init__(self, most: int, classes: int, device: torch.device) -> None:
        self.most, self.frozen, self.lock = most, False, threading.Lock()
        self._rows = [torch.zeros(0, classes, device=device) for _ in range(classes)]
        self._counts = [0] * classes

    def of(self, kind: int) -> Tensor:
        """Return the centroids (n, K) of a class."""
        return self._rows[kind][: self._counts[kind]]

    def store(self, kind: int, row: Tensor) -> None:
        """Add a centroid (K,) to a class; its memory doubles when it is full."""
        held, count = self._rows[kind], self._counts[kind]
        if count == len(held):
            more = held.new_zeros(max(1, min(self.most, 2 * count) - count), held.shape[1])
            self._rows[kind] = torch.cat([held, more])
        self._rows[kind][count] = row
        self._counts[kind] += 1

    def answers(self, kind: int, rows: Tensor, epsilon: float) -> Tensor:
        """Return the centroid that answers each posterior (b, K) of a class; new centroids are stored on the way.

        Each pass of the loop stores one centroid, the first row that none answers; it is as if row after row came.
        """
        stored = self.of(kind)
        distance = torch.cdist(rows, stored, p=1)  # (b, n)
        within = distance <= epsilon
        place = within.int().argmax(dim=1) if len(stored) else rows.new_zeros(len(rows), dtype=torch.int64)
        answered = within.any(dim=1)
        while not self.frozen and self._counts[kind] < self.most and not bool(answered.all()):
            new = int((~answered).int().argmax())
            self.store(kind, rows[new])
            near = ~answered & (simplex.l1(rows, rows[new]) <= epsilon)
            near[new] = True
            place = torch.where(near, self._counts[kind] - 1, place)
            answered |= near
        stored = self.of(kind)
        if not len(stored):  # frozen before this class was asked about
            return rows
        if not bool(answered.all()):
            place = torch.where(answered, place, torch.cdist(rows, stored, p=1).argmin(dim=1))
        return stored[place]

    def held(self) -> list[Tensor]:
        """Return the centroids (n, K) of each class."""
        return [self.of(kind) for kind in range(len(self._counts))]

    def hold(self, held: list[Tensor], frozen: bool) -> None:
        """Replace all centroids."""
        self._rows, self._counts, self.frozen = held, [len(rows) for rows in held], frozen


@dataclass
class ModelGuardS(Defense):
    """Answer with the first stored centroid of the same top class within ``epsilon``; store the posterior if none is.

    Few distinct answers leave an adversary with little information about the posteriors, at a bounded distortion. Of
    several centroids within reach the first is taken, as in the published code, not the nearest: a centroid that is
    stored later never changes what an image was answered with, so repeated queries tell nothing more. A posterior
    that becomes a centroid is answered as it is, and so are an adversary's first queries.

    Answers depend on the order of all clients' queries. Centroids lie in memory of the process and are not part of an
    export, which starts without any; ``state`` and ``restore`` take them along.

    Args:
        epsilon: L1 budget in [0, 2]; 1 in the published code.
        most: the most centroids of one class. When it has as many, posteriors out of reach are answered with the
            nearest, moved back into the budget. K * most * K numbers is the most that memory holds.
    """

    name = "modelguard_s"
    stateful = True
    schema = (
        Column("centroids", "whole number", "", "centroids that ModelGuard-S had stored once the adversary had asked"),
        Column("centroids_most", "whole number", "", "the most of them that one class had"),
    )
    epsilon: float | None = 1.0
    most: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("defense.most", self.most, 1, whole=True)

    def prepare(self, context: Context) -> None:
        """Start without centroids."""
        self._book = Codebook(self.most, context.victim.dataset.classes, context.device)

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return posteriors (B, K) with the top classes of the clean ones, as if one image was asked after another."""
        answer, top = torch.empty_like(clean), clean.argmax(dim=1)
        with self._book.lock:
            for kind in top.unique().tolist():
                rows = (top == kind).nonzero().squeeze(1)
                answer[rows] = self._book.answers(kind, clean[rows], 2.0 if self.epsilon is None else self.epsilon)
        return answer

    def session_columns(self) -> dict[str, Any]:
        """Return how many centroids there are."""
        counts = [len(rows) for rows in self._book.held()]
        return {"centroids": sum(counts), "centroids_most": max(counts)}

    def state(self) -> dict[str, Tensor]:
        """Return all centroids, float (n, K), by class and in the order in which they were stored."""
        with self._book.lock:
            return {"centroids": torch.cat(self._book.held())}  # a copy

    def restore(self, state: Mapping[str, Tensor], frozen: bool = False) -> None:
        """Replace the centroids, for all clients, by those of a ``state``.

        Args:
            state: what ``state`` returned.
            frozen: whether to store no more. Answers then no longer depend on the order of queries: posteriors out of
                reach are answered as when a class is full, and those of a class without centroids as they are.

        Raises:
            MadError: if the state is not one over these classes, or has more than ``most`` centroids of one.
        """
        rows, classes = state["centroids"], len(self._book.held())
        if rows.dim() != 2 or rows.shape[1] != classes or not simplex.are_posteriors(rows):
            raise MadError(f"modelguard_s restores centroids (n, {classes}), posteriors, got {tuple(rows.shape)}")
        kinds = rows.argmax(dim=1)
        if len(rows) and (most := int(kinds.bincount().max())) > self.most:
            raise MadError(f"defense.most={self.most} is less than the {most} centroids of a class: raise it")
        with self._book.lock:
            device = self._book.of(0).device
            self._book.hold([rows[kinds == kind].to(device) for kind in range(classes)], frozen)
