"""The contract of an attack, and what it brings home."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from mad import plugins
from mad.adversary import Adversary
from mad.api import BlackBox
from mad.datasets import Images, batch_limit, batches, to_unit_range
from mad.errors import MadError, check_number
from mad.progress import bar
from mad.victim import Victim

PAPER_BUDGET = 50_000
REQUEST = 1024


@dataclass(frozen=True)
class TransferSet:
    """Images and the API's answers to them.

    Pool attacks keep ``rows`` into the pool and never a second copy of the images.
    """

    images: Images  # the pool, or what was made, uint8 or float in [0, 1], (N, C, H, W)
    rows: Tensor  # int64 (M,)
    answers: Tensor  # float32 (M, K)
    stolen: nn.Module | None = None  # by attacks that train while they query: nothing is trained afterwards
    facts: dict[str, Any] = field(default_factory=dict)  # further columns of the record: plain values


@dataclass(frozen=True)
class Attack(ABC):
    """Spends a query budget on a black-box API.

    Args:
        budget: number of queries; None for the paper's 50,000, or the whole pool where that is smaller.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    online: ClassVar[bool] = False  # whether it trains adversary.live, in place, while it queries
    labelled: ClassVar[bool] = False  # whether it takes the pool's own labels: adversary.labels
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.budget is not None:
            check_number("attack.budget", self.budget, 1, whole=True)

    def check(self, victim: Victim) -> None:  # noqa: B027
        """Raise MadError for a victim this attack cannot ask, before anything is trained; by default never."""

    def affordable(self, pool: Images, name: str) -> int:
        """Return the number of queries to make.

        Raises:
            MadError: if the pool has too few images for them.
        """
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
    def spend(self, api: BlackBox, pool: Images, adversary: Adversary) -> TransferSet:
        """Return the transfer set of the API's whole budget.

        Raises:
            MadError: if ``transfer_set`` returns none of the API's images and classes, or spends another number.
        """
        who, found = f"attack {self.name}: transfer_set", self.transfer_set(api, pool, adversary)
        if not isinstance(found, TransferSet):
            raise MadError(f"{who} must return a TransferSet, got {plugins.kind(found)}")
        plugins.transferred(who, found.images, found.rows, found.answers, api.shape, adversary.classes)
        if api.queries != api.budget:
            raise MadError(f"{who} must spend the whole budget of {api.budget} queries, spent {api.queries}")
        return found

    @abstractmethod
    def transfer_set(self, api: BlackBox, pool: Images, adversary: Adversary) -> TransferSet:
        """Query the API, exactly ``api.budget`` times; the pool is uint8 (N, C, H, W)."""


def ask(api: BlackBox, pool: Images, rows: Tensor) -> Tensor:
    """Query the API about rows (B,) of the pool; return its answers (B, K)."""
    answers = []
    with bar("queries", len(rows)) as progress:
        for images in batches(pool, rows, batch_limit(REQUEST, api.shape), torch.device("cpu")):
            answers.append(api(to_unit_range(images)))
            progress(len(images), "", None)
    return torch.cat(answers)
