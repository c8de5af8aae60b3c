"""The contract of an attack: the base class, and the functions that query an API."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from mad import plugins, schema
from mad.adversary import Adversary
from mad.api import BlackBox
from mad.datasets import Images, batch_limit, batches, to_unit_range
from mad.defenses.base import Defense
from mad.errors import BudgetExceededError, MadError, check_number
from mad.progress import bar
from mad.schema import Column
from mad.seeds import generator
from mad.storage.fingerprint import ADDED
from mad.transfer import Stolen, TransferSet
from mad.victim import Victim

PAPER_BUDGET = 50_000
REQUEST = 1024


@dataclass(frozen=True)
class Attack(ABC):
    """Base class of attacks, which spend a query budget on a black-box API.

    A new attack implements ``run``; ``spend`` calls it and checks what it returns.

    Args:
        budget: number of queries; None for the paper's 50,000, or for the size of the pool if that is smaller.
        accounts: number of clients that the queries are divided among, in blocks, one client after the other. Only a
            stateful defense tells them apart.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    needs_pool: ClassVar[bool] = True  # whether it takes its images from a pool; a data-free attack makes its own
    verbatim: ClassVar[bool] = True  # whether each answer of its transfer set is the API's to the image stored with it
    depends_on_answers: ClassVar[bool] = True  # whether its queries do; if not, one transfer set serves all recoveries
    online: ClassVar[bool] = False  # whether it trains adversary.live, in place, while it queries
    trains_itself: ClassVar[bool] = False  # whether it returns a network that it trained otherwise; see Stolen
    recovers_early: ClassVar[bool] = False  # whether it calls adversary.recovered before it has a whole transfer set
    labelled: ClassVar[bool] = False  # whether it uses the labels of the pool: adversary.labels
    knows: ClassVar[tuple[str, ...]] = ()  # what it is given of mad.knowledge.KNOWLEDGE, as a recovery is
    schema: ClassVar[tuple[Column, ...]] = ()  # the columns that it adds to a record
    budget: int | None = None
    accounts: int = field(default=1, metadata=ADDED, kw_only=True)

    def __post_init__(self) -> None:
        if self.budget is not None:
            check_number("attack.budget", self.budget, 1, whole=True)
        check_number("attack.accounts", self.accounts, 1, self.budget or PAPER_BUDGET, whole=True)

    @property
    def amended(self) -> str | None:
        """See ``mad.storage.fingerprint``: accounts that do not divide the budget had their rest in the last one."""
        even = self.budget is not None and self.budget % self.accounts == 0
        return None if self.accounts == 1 or even else "accounts of about the same size"

    def check(self, victim: Victim) -> None:  # noqa: B027
        """Raise MadError if this attack cannot query the victim; called before anything is trained."""

    def check_defense(self, defense: Defense) -> None:  # noqa: B027
        """Raise MadError if this attack cannot say what a defense leaves; called before anything is trained."""

    def load(self, victim: Victim) -> None:  # noqa: B027
        """Load and check what the attack brings along, such as a log; called once a run, before anything is trained."""

    def affordable(self, pool: Images | None, name: str) -> int:
        """Return the number of queries to make.

        Args:
            pool: the adversary's images; None for an attack that needs no pool.
            name: the name of the pool, for the error.

        Raises:
            MadError: if the pool has too few images for the budget, or the budget too few queries for the accounts.
        """
        if pool is None:
            return self.shared(self.budget or PAPER_BUDGET)
        budget = self.budget or min(PAPER_BUDGET, len(pool))
        needed = self.images_for(budget)
        if needed > len(pool):
            takes = "" if needed == budget else f", for {needed} images,"
            raise MadError(
                f"attack.budget={budget}{takes} is above the {len(pool)} images of pool {name}; "
                "lower the budget or take a larger pool"
            )
        return self.shared(budget)

    def shared(self, budget: int) -> int:
        """Return a budget of which every account has a query at least.

        Raises:
            MadError: if it has too few queries.
        """
        check_number("attack.accounts", self.accounts, 1, budget, whole=True)
        return budget

    def images_for(self, budget: int) -> int:
        """Return how many images of the pool a budget needs; by default one image per query."""
        return budget

    def trained_on(self, budget: int) -> int:
        """Return how many answers the knockoff is trained on at most, 0 if the attack trains the stolen model itself.

        It is for the estimates of ``plan=true`` only.
        """
        if self.online or self.trains_itself:
            return 0
        return budget if self.depends_on_answers else self.images_for(budget)

    @final
    def spend(self, api: BlackBox, pool: Images | None, adversary: Adversary) -> Stolen:
        """Call ``run`` and return its result, once it is checked.

        Raises:
            MadError: if the result holds neither a network nor a transfer set, if the transfer set does not fit the
                API's images and classes, if the columns do not match ``schema``, or if ``run`` did not spend exactly
                ``api.budget`` queries.
        """
        who = f"attack {self.name}: run"
        try:
            found = self.run(api, pool, adversary)
        except BudgetExceededError as error:
            raise MadError(f"{who} must spend api.budget={api.budget} queries and no more: {error}") from error
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
        """Query the API exactly ``api.budget`` times; return what was stolen.

        Args:
            api: the defended API.
            pool: the adversary's images, uint8 (N, C, H, W); None for an attack that needs no pool.
            adversary: its knowledge, its recovery and its training recipe.
        """


def queried(api: BlackBox, batches: Iterable[Tensor], count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Query an API batch by batch; yield the images (B, C, H, W) in [0, 1] and the answers (B, K).

    Args:
        api: the defended API; each image counts as one query.
        batches: batches of images, uint8 or float in [0, 1]. A batch is drawn after the one before it was answered,
            so it may depend on those answers.
        count: number of images in all batches, for the progress bar.
    """
    with bar("queries", count) as progress:
        for images in batches:
            images = to_unit_range(images)
            yield images, api(images)
            progress(len(images), "", None)


def ask(api: BlackBox, pool: Images, rows: Tensor) -> Tensor:
    """Query the API with the rows (B,) of the pool; return the answers (B, K)."""
    images = batches(pool, rows, batch_limit(REQUEST, api.shape), torch.device("cpu"))
    return torch.cat([answers for _, answers in queried(api, images, len(rows))])


def drawn(pool: Images, adversary: Adversary, count: int | None) -> Tensor:
    """Return the first rows, int64 (count,), of a random order of the pool; all attacks with one seed share it."""
    return torch.randperm(len(pool), generator=generator(adversary.seed, "pool order"))[:count]


__all__ = ["Attack", "Stolen", "TransferSet", "ask", "drawn", "queried"]
