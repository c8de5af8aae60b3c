"""The client's test: a bet that a client's queries are honest, which an honest client hardly ever wins.

Each query is flagged at several levels of its conformal p-value. A client's wealth is a nonnegative supermartingale as
long as its queries are honest, so by Ville's inequality it ever reaches 1 / delta with a probability of at most delta.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

LEVELS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)  # of p-values
BETS = ((0.05, 1.0), (0.4, 1.0), (0.1, 0.5), (0.1, 0.2), (0.1, 0.07))  # see ``payoffs``
RECENT = 16  # queries whose near copies win nothing


def upper_bounds(sizes: Tensor, slack: float) -> Tensor:
    """Return bounds of how probably an honest query is flagged, given the calibration images, (G, J).

    With n calibration scores and k = floor(level (n + 1)), the probability that a new score is above the k-th largest
    is, over the draw of the calibration images, at most beta distributed with parameters k and n + 1 - k. All bounds
    hold together with a probability of at least 1 - slack.

    Args:
        sizes: n and k of each group and level, (G, J, 2).
        slack: in (0, 1).
    """
    from scipy.stats import beta  # a slow import

    n, k = sizes.double().unbind(dim=-1)
    share = 1 - slack / max(1, n.numel())
    found = torch.from_numpy(beta.ppf(share, k.clamp(min=1).numpy(), (n + 1 - k).clamp(min=1e-9).numpy()))
    found = torch.where(k == 0, 0.0, torch.where(k > n, 1.0, found))
    return found.cummax(dim=1).values  # a level includes those below it


def payoffs(bounds: Tensor, bets: Sequence[tuple[float, float]] = BETS) -> Tensor:
    """Return what one unit becomes for each group, bet and lowest level that flags a query, (G, len(bets), J + 1).

    The last entry is for a query that no level flags. Each bet pays the likelihood ratio of an alternative, in which
    smaller p-values are likelier, to the least favorable honest distribution: payoffs fall with the level, so their
    expectation is at most 1 for every honest distribution within the bounds.

    Args:
        bounds: of the probability that an honest query is flagged at each level, rising, (G, J).
        bets: k and s, both in (0, 1], of the alternatives: p has the distribution function p^k for a share s of a
            client's queries, and is honest for the others.
    """
    groups = len(bounds)
    edges = torch.cat([bounds.new_zeros(groups, 1), bounds.clamp(max=1), bounds.new_ones(groups, 1)], dim=1)
    chance = edges.diff(dim=1)  # that of each entry, at worst
    found = []
    for exponent, share in bets:
        gain = (edges**exponent).diff(dim=1)
        ratio = torch.where(chance > 0, gain / chance.clamp(min=1e-300), 0.0)
        # An entry without a chance of its own pays as the next one does; no honest query is paid more than it is due.
        for number in range(ratio.shape[1] - 2, -1, -1):
            ratio[:, number] = torch.where(chance[:, number] > 0, ratio[:, number], ratio[:, number + 1])
        paid = ratio.flip(1).cummax(dim=1).values.flip(1)
        paid = paid / (paid * chance).sum(dim=1, keepdim=True).clamp(min=1)
        found.append(1 - share + share * paid)
    return torch.stack(found, dim=1)


@dataclass
class Client:
    """One client's wealth, over several bets and all starting times.

    A bet that starts with query s has the weight 1 / (s (s + 1)), so that honest queries save up no credit: a client
    that turns after s queries is found as fast as a new one, but for a factor s (s + 1) of wealth.

    A near copy of a recent query wins nothing, since a user who asks twice is no thief. Else it is a query like any
    other: a bet starts with it, and it loses what an honest query would. Left out of either, the easy images that many
    users ask about would leave the hard ones to speak for them.

    Args:
        payoffs: of each group, see ``payoffs``: nested lists [group][bet][level].
        delta: the largest probability that an honest client is ever flagged.
    """

    payoffs: list[list[list[float]]]
    delta: float
    asked: int = 0
    counted: int = 0
    flagged_at: int | None = None
    wealth: list[float] = field(default_factory=lambda: [0.0] * len(BETS))
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    @property
    def total(self) -> float:
        """The wealth: 1 before the first query."""
        return sum(self.wealth) / len(self.wealth) + 1 / (self.counted + 1)

    def look(self, groups: Sequence[int], levels: Sequence[int], names: Sequence[float]) -> None:
        """Bet on queries in order, until the client is flagged.

        Args:
            groups: the group of each.
            levels: the lowest level that flags each, a position in ``LEVELS``; their number if none does.
            names: a number for each image, the same for near copies.
        """
        for group, level, name in zip(groups, levels, names, strict=True):
            self.asked += 1
            if self.flagged_at is not None:
                continue
            near = name in self.recent
            if not near:
                self.recent.append(name)
            self.counted += 1
            start = 1 / (self.counted * (self.counted + 1))
            for bet, (wealth, paid) in enumerate(zip(self.wealth, self.payoffs[group], strict=True)):
                won = min(paid[level], 1.0) if near else paid[level]
                self.wealth[bet] = min((wealth + start) * won, 1e300)
            if self.total >= 1 / self.delta:
                self.flagged_at = self.asked

    def state(self) -> list[float]:
        """Return all that is remembered, as numbers, for ``restore``."""
        flagged = -1 if self.flagged_at is None else self.flagged_at
        return [self.asked, self.counted, flagged, *self.wealth, *self.recent]

    def restore(self, state: Sequence[float]) -> None:
        """Go on from another client's ``state``.

        Raises:
            ValueError: if it is no state.
        """
        if len(state) < 3 + len(BETS):
            raise ValueError(f"a client's state has at least {3 + len(BETS)} numbers, got {len(state)}")
        asked, counted, flagged, *rest = state
        self.asked, self.counted = int(asked), int(counted)
        self.flagged_at = None if flagged < 0 else int(flagged)
        self.wealth = list(rest[: len(BETS)])
        self.recent = deque(rest[len(BETS) :], maxlen=RECENT)
