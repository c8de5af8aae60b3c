"""PRADA: detecting model stealing by the distances between queries (Juuti et al., EuroS&P 2019)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mad.defenses.base import Context, Defense
from mad.defenses.random_noise import keyed_uniform
from mad.errors import MadError, check_choice, check_number
from mad.schema import Column
from mad.seeds import derive

ACTIONS = ("report", "shuffle", "label")
OUTLIERS = 3.0  # standard deviations from the mean beyond which a distance is left out of the test
NEAR = 8  # candidates for the nearest earlier query whose distances are computed without cancellation
WIDE = "W statistic, 0 to 1"


@dataclass
class Prada(Defense):
    """Flag a client whose queries lie at distances from each other that honest queries do not have.

    For each query, the distance (L2) to the nearest earlier one of its class in the class's growing set is noted. A
    query joins that set if this distance is above the class's threshold, which is the mean less the standard deviation
    of the distances with which its members joined, and never falls (algorithm 3). Honest queries have distances that
    are close to normal; those of a client are tested with the Shapiro-Wilk statistic W, without outliers, and W below
    ``delta`` flags the client. Its class is the top class of the answer that this defense is given, so in a chain it
    comes before defenses that change the top class.

    Once flagged, a client stays flagged, and its queries are no longer looked at.

    Args:
        epsilon: an additional L1 budget in [0, 2], which limits ``action``; None for no limit.
        delta: W below which a client is flagged, in [0, 1]; larger is stricter. The paper has 0.9 to 0.96.
        action: what a flagged client gets: ``report``, the same answers as before; ``shuffle``, answers whose three
            largest probabilities are permuted, as in the published code, here by a secret key and the image; ``label``,
            the top class alone.
        least: distances of a client before the first test.
        every: distances between two tests. The paper tests after each query, which takes longer.
        memory: megabytes that the growing sets of one client may take. Once they are full, no query joins.
    """

    name = "prada"
    stateful = True
    strength_parameter = "delta"
    honest_queries = 1000
    schema = (
        Column(
            "prada_flagged_at",
            "whole number",
            "queries",
            "of its own, until the thief's first account was flagged; empty if never",
        ),
        Column("prada_flagged", "number", "share", "of the thief's accounts that were flagged"),
        Column("prada_lowest_w", "number", WIDE, "the least of the thief's tests; empty before the first"),
        Column("prada_stored", "whole number", "queries", "of the thief, in its growing sets; 0 once it is flagged"),
        Column("prada_false_alarms", "number", "share", "of honest clients that were flagged"),
        Column("prada_honest_clients", "whole number", "clients", "among how many honest ones"),
        Column("prada_honest_queries", "whole number", "queries", "the most that one of them made"),
        Column("prada_honest_lowest_w", "number", WIDE, "the least of their tests; empty before the first"),
    )
    epsilon: float | None = None
    delta: float = 0.95
    action: str = "report"
    least: int = 100
    every: int = 10
    memory: float = 256.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("defense.delta", self.delta, 0, 1)
        check_choice("defense.action", self.action, ACTIONS)
        check_number("defense.least", self.least, 3, whole=True)
        check_number("defense.every", self.every, 1, whole=True)
        check_number("defense.memory", self.memory, 0)

    def prepare(self, context: Context) -> None:
        """Draw the secret key of ``shuffle``."""
        self._key = derive(context.seed, "prada")

    def begin(self) -> None:
        """Set up the growing sets of a client."""
        self._sets: dict[int, GrowingSet] = {}
        self._distances: list[float] = []
        self._asked = self._stored = 0
        self._flagged_at: int | None = None
        self._lowest: float | None = None

    @property
    def suspect(self) -> bool:
        """Whether the client is flagged."""
        return self._flagged_at is not None

    def remembered(self) -> Any:
        """Return when the client was flagged; None if it was not: the queries in its growing sets are not kept."""
        return None if self._flagged_at is None else [self._asked, self._flagged_at, self._lowest]

    def recall(self, remembered: Any) -> None:
        """Go on with a flagged client."""
        try:
            self._asked, self._flagged_at, self._lowest = remembered
        except (TypeError, ValueError) as error:
            raise MadError(f"defense=prada cannot go on from {remembered!r}: it is no memory of a client") from error

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Look at the queries in order, and return the clean posteriors, or for a flagged client what ``action`` says.

        The action begins with the query after the one that flagged the client.
        """
        if self._flagged_at is None:
            self._look(images, clean.argmax(dim=1))
        first = len(clean) if self._flagged_at is None else max(0, self._flagged_at - self._asked)
        self._asked += len(clean)
        if self.action == "report" or first >= len(clean):
            return clean
        return torch.cat([clean[:first], self._acted(images[first:], clean[first:])])

    def _acted(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return what a flagged client is answered."""
        if self.action == "label":
            return torch.zeros_like(clean).scatter(1, clean.argmax(dim=1, keepdim=True), 1.0)
        values, classes = clean.topk(min(3, clean.shape[1]), dim=1)
        order = keyed_uniform(images, values.shape[1], self._key).argsort(dim=1)
        return clean.scatter(1, classes, values.gather(1, order))

    def _look(self, images: Tensor, classes: Tensor) -> None:
        """Note the distances of queries (B, C, H, W) of classes (B,), and test them."""
        flat = images.flatten(1).float()
        room = int(self.memory * 1e6 / (4 * flat.shape[1]))
        found: list[float | None] = [None] * len(flat)
        rows: dict[int, list[int]] = {}
        for row, label in enumerate(classes.tolist()):
            rows.setdefault(label, []).append(row)
        for label, own in rows.items():
            growing = self._sets.setdefault(label, GrowingSet())
            some = flat if len(own) == len(flat) else flat[torch.tensor(own, device=flat.device)]
            before = len(growing)
            for row, distance in zip(own, growing.look(some, room - self._stored), strict=True):
                found[row] = distance
            self._stored += len(growing) - before
        for number, distance in enumerate(found, self._asked + 1):
            if distance is not None:
                self._distances.append(distance)
                if self._due() and self._suspicious():
                    self._flagged_at = number
                    self._sets, self._distances, self._stored = {}, [], 0
                    return

    def _due(self) -> bool:
        count = len(self._distances)
        return count > self.least and count % self.every == 0

    def _suspicious(self) -> bool:
        w = shapiro_wilk(without_outliers(torch.tensor(self._distances, dtype=torch.float64)))
        self._lowest = w if self._lowest is None else min(w, self._lowest)
        return w < self.delta

    def session_columns(self) -> dict[str, Any]:
        """Return when the client was flagged, and the least W."""
        return self.accounts_columns([self])

    def accounts_columns(self, sessions: Sequence[Any]) -> dict[str, Any]:
        """Return the first of its accounts' own queries at which one was flagged, the least W, and what all store."""
        flagged = [each._flagged_at for each in sessions if each._flagged_at is not None]
        tests = [each._lowest for each in sessions if each._lowest is not None]
        return {
            "prada_flagged_at": min(flagged, default=None),
            "prada_flagged": len(flagged) / len(sessions),
            "prada_lowest_w": min(tests, default=None),
            "prada_stored": sum(each._stored for each in sessions),
        }

    def honest_columns(self, sessions: Sequence[Any]) -> dict[str, Any]:
        """Return the share of honest clients that were flagged, and of how many, with how many queries each."""
        tests = [each._lowest for each in sessions if each._lowest is not None]
        return {
            "prada_false_alarms": sum(each._flagged_at is not None for each in sessions) / len(sessions),
            "prada_honest_clients": len(sessions),
            "prada_honest_queries": max(each._asked for each in sessions),
            "prada_honest_lowest_w": min(tests, default=None),
        }


class GrowingSet:
    """The queries of one class that lie apart from each other, and the threshold of the distance at which one joins."""

    def __init__(self) -> None:
        self.threshold = 0.0
        self._held = torch.zeros(0, 0)
        self._count = 0
        self._sum = self._squares = 0.0  # of the distances with which the members joined

    def __len__(self) -> int:
        return self._count

    def look(self, queries: Tensor, room: int) -> list[float | None]:
        """Return the distance of each query (B, D), in order, to the nearest member before it; None for the first.

        Args:
            queries: the queries, float32.
            room: how many may join. The first member of a set joins in any case.
        """
        known = self._count
        to_held = nearest(queries, self._held[:known]).tolist() if known else None
        among = torch.cdist(queries, queries, compute_mode="donot_use_mm_for_euclid_dist").tolist()
        found: list[float | None] = []
        joined: list[int] = []
        for row, distances in enumerate(among):
            if not known and not joined:
                found.append(None)
                joined.append(row)
                self._joins(0.0)
                continue
            distance = min((distances[each] for each in joined), default=math.inf)
            distance = distance if to_held is None else min(distance, to_held[row])
            found.append(distance)
            if distance > self.threshold and len(joined) < room:
                joined.append(row)
                self._joins(distance)
        self._keep(queries[joined])
        return found

    def _joins(self, distance: float) -> None:
        """Count a member, and raise the threshold."""
        self._count += 1
        self._sum += distance
        self._squares += distance * distance
        mean = self._sum / self._count
        spread = math.sqrt(max(0.0, self._squares / self._count - mean * mean))
        self.threshold = max(self.threshold, mean - spread)

    def _keep(self, queries: Tensor) -> None:
        """Store the members that joined; the storage doubles when it is full."""
        if len(queries):
            before = self._count - len(queries)
            if self._count > len(self._held):
                larger = queries.new_empty(2 * self._count, queries.shape[1])
                if before:
                    larger[:before] = self._held[:before]
                self._held = larger
            self._held[before : self._count] = queries


def nearest(queries: Tensor, held: Tensor) -> Tensor:
    """Return the L2 distance of each query (B, D) to the nearest of ``held`` (N, D), as (B,).

    The nearest few are found with a matrix product, whose rounding error is large for near points; their distances are
    then computed from the differences.
    """
    about = torch.cdist(queries, held, compute_mode="use_mm_for_euclid_dist")
    few = about.topk(min(NEAR, len(held)), dim=1, largest=False).indices
    return (queries.unsqueeze(1) - held[few]).norm(dim=2).amin(dim=1)


def without_outliers(values: Tensor) -> Tensor:
    """Return the values (N,) within ``OUTLIERS`` standard deviations of their mean."""
    return values[(values - values.mean()).abs() <= OUTLIERS * values.std(correction=0)]


def shapiro_wilk(values: Tensor) -> float:
    """Return the Shapiro-Wilk statistic W, in [0, 1], of values (N,), N at least 3; 1 if they are all the same."""
    from scipy.stats import shapiro  # a slow import

    if values.max() - values.min() <= 1e-15 * values.abs().max():
        return 1.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "scipy.stats.shapiro: For N > 5000", UserWarning)  # of the p-value
        return float(shapiro(values.numpy()).statistic)
