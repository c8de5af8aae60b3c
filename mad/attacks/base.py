"""The contract of an attack, and the one way to query an API image by image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from mad import plugins, schema
from mad.adversary import Adversary
from mad.api import BlackBox
from mad.datasets import Images, batch_limit, batches, to_unit_range
from mad.errors import MadError, check_number
from mad.progress import bar
from mad.schema import Column
from mad.seeds import generator
from mad.transfer import Stolen, TransferSet
from mad.victim import Victim

PAPER_BUDGET = 50_000
REQUEST = 1024


@dataclass(frozen=True)
class Attack(ABC):
    """Spends a query budget on a black-box API. An author writes ``run``; ``spend`` checks what it brings home.

    Args:
        budget: number of queries; None for the paper's 50,000, or the whole pool where that is smaller.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    needs_pool: ClassVar[bool] = True  # whether it draws on images of its own; a data-free attack makes them
    depends_on_answers: ClassVar[bool] = True  # whether what it asks does: if not, its answers serve every recovery
    online: ClassVar[bool] = False  # whether it trains adversary.live, in place, while it queries
    recovers_early: ClassVar[bool] = False  # whether it calls adversary.recovered before it has a whole transfer set
    labelled: ClassVar[bool] = False  # whether it takes the pool's own labels: adversary.labels
    schema: ClassVar[tuple[Column, ...]] = ()  # the columns that it adds to a record
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.budget is not None:
            check_number("attack.budget", self.budget, 1, whole=True)

    def check(self, victim: Victim) -> None:  # noqa: B027
        """Raise MadError for a victim this attack cannot ask, before anything is trained; by default never."""

    def affordable(self, pool: Images | None, name: str) -> int:
        """Return the number of queries to make.

        Args:
            pool: the adversary's images; None for an attack that needs none.
            name: the pool's.

        Raises:
            MadError: if the pool has too few images for them.
        """
        if pool is None:
            return self.budget or PAPER_BUDGET
        budget = self.budget or min(PAPER_BUDGET, len(pool))
        needed = self.images_for(budget)
        if needed > len(pool):
            takes = "" if needed == budget else f", for {needed} images,"
            raise MadError(
                f"attack.budget={budget}{takes} is above the {len(pool)} images of pool {name}; "
                "lower the budget or take a larger pool"
            )
        return budget

    def images_for(self, budget: int) -> int:
        """Return how many images of the pool a budget takes: one a query, if an attack does not say otherwise."""
        return budget

    @final
    def spend(self, api: BlackBox, pool: Images | None, adversary: Adversary) -> Stolen:
        """Return what ``run`` brings home for the API's whole budget.

        Raises:
            MadError: if that is no network and no transfer set of the API's images and classes, if its columns are
                not of its ``schema``, or if another number of queries was spent.
        """
        who, found = f"attack {self.name}: run", self.run(api, pool, adversary)
        if not isinstance(found, Stolen) or (found.network is None and found.transfer is None):
            got = "neither network nor transfer set" if isinstance(found, Stolen) else plugins.kind(found)
            raise MadError(f"{who} must return Stolen with a network, a transfer set or both, got {got}")
        if found.network is not None and (not isinstance(found.network, nn.Module) or found.network.training):
            raise MadError(f"{who} must return a network in eval mode, got {plugins.kind(found.network)}")
        if not isinstance(found.transfer, TransferSet | None):
            raise MadError(f"{who} must return a TransferSet, got {plugins.kind(found.transfer)}")
        if found.transfer is not None:
            plugins.transferred(who, found.transfer, api.shape, adversary.classes)
        schema.check(found.columns, f"attack {self.name}", self.schema)
        if api.queries != api.budget:
            raise MadError(f"{who} must spend the whole budget of {api.budget} queries, spent {api.queries}")
        return found

    @abstractmethod
    def run(self, api: BlackBox, pool: Images | None, adversary: Adversary) -> Stolen:
        """Query the API, exactly ``api.budget`` times; the pool is uint8 (N, C, H, W), None where it needs none."""


def queried(api: BlackBox, batches: Iterable[Tensor], count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Query an API batch by batch; yield the images (B, C, H, W), in [0, 1], and its answers (B, K).

    Args:
        api: is charged for each image.
        batches: images, uint8 or float; each is drawn once the answers to those before it are known.
        count: how many images these are, for the progress bar.
    """
    with bar("queries", count) as progress:
        for images in batches:
            images = to_unit_range(images)
            yield images, api(images)
            progress(len(images), "", None)


def ask(api: BlackBox, pool: Images, rows: Tensor) -> Tensor:
    """Query the API about rows (B,) of the pool; return its answers (B, K)."""
    images = batches(pool, rows, batch_limit(REQUEST, api.shape), torch.device("cpu"))
    return torch.cat([answers for _, answers in queried(api, images, len(rows))])


def drawn(pool: Images, adversary: Adversary, count: int | None) -> Tensor:
    """Return the first rows, int64 (count,), of the pool's random order: the same for all attacks of a seed."""
    return torch.randperm(len(pool), generator=generator(adversary.seed, "pool order"))[:count]


__all__ = ["Attack", "Stolen", "TransferSet", "ask", "drawn", "queried"]
