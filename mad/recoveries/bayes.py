"""Partial Bayes (Tang et al., USENIX Security 2024): the mean clean posterior of shadows' answers that look alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad.errors import check_number
from mad.knowledge import Knowledge
from mad.recoveries.base import Recovery
from mad.recoveries.shadows import pairs
from mad.transfer import TransferSet

PART = 1000  # answers that are looked up at once


@dataclass
class Bayes(Recovery):
    """Replace each answer by the mean of the clean posteriors whose defended ones are near it.

    It looks among the answers of shadow victims behind the same defense (see ``mad.recoveries.shadows``): those that
    have the same top class and are within L1 ``radius`` of the answer or, where there are none, the nearest ones with
    that top class. Where no shadow answered with that class, the answer stays.

    Args:
        radius: L1 distance, in (0, 2]; published is 0.01, with a million answers.
        nearest: how many answers stand in where none is within the radius.
        shadows: number of shadow victims.
    """

    name = "bayes"
    knows = ("the defense",)
    trainings = 1.0  # three shadows, of a third of the steps each
    radius: float = 0.01
    nearest: int = 5
    shadows: int = 3

    def __post_init__(self) -> None:
        check_number("recovery.radius", self.radius, 1e-9, 2)
        check_number("recovery.nearest", self.nearest, 1, whole=True)
        check_number("recovery.shadows", self.shadows, 1, whole=True)

    def prepare(self, adversary: Knowledge, transfer: TransferSet) -> None:
        """Train the shadows, and sort what they answered by its top class."""
        from sklearn.neighbors import NearestNeighbors  # a slow import

        defended, clean = pairs(adversary, transfer, self.shadows)
        self._tables = {}
        for top in defended.argmax(dim=1).unique().tolist():
            rows = defended.argmax(dim=1) == top
            count = min(self.nearest, int(rows.sum()))
            finder = NearestNeighbors(n_neighbors=count, radius=self.radius, metric="manhattan")
            self._tables[top] = finder.fit(defended[rows].double().numpy()), clean[rows].double()

    def __call__(self, answers: Tensor, images: Tensor | None = None) -> Tensor:
        """Return what the clean posteriors are thought to have been, (B, K)."""
        given = answers.cpu().double()
        found, top = given.clone(), given.argmax(dim=1)
        for each, table in self._tables.items():
            for rows in (top == each).nonzero().flatten().split(PART):
                if len(rows):
                    found[rows] = self._mean(given[rows], *table)
        return (found / found.sum(dim=1, keepdim=True)).to(answers)

    def _mean(self, answers: Tensor, finder: object, clean: Tensor) -> Tensor:
        """Return the mean of the clean posteriors (P, K) of one top class's near answers, for answers (B, K)."""
        near = finder.radius_neighbors_graph(answers.numpy())  # type: ignore[attr-defined]  # sparse (B, P)
        within = torch.from_numpy(near.sum(axis=1)).reshape(-1, 1)
        mean = torch.from_numpy(near @ clean.numpy()) / within.clamp(min=1)
        others = torch.from_numpy(finder.kneighbors(answers.numpy(), return_distance=False))  # type: ignore[attr-defined]
        return torch.where(within > 0, mean, clean[others].mean(dim=1))
