"""A thief with several accounts: the clients whose sessions answer its queries, one after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mad.defenses import Defense
from mad.errors import check_number


class Accounts(Defense):
    """Sessions of a stateful defense, of which each answers a block of a thief's queries.

    Args:
        defense: the prepared defense.
        budget: queries of all accounts together.
        count: number of accounts. Each has budget / count queries, rounded down, and the first ones one more.
    """

    name = "accounts"
    stateful = True

    def __init__(self, defense: Defense, budget: int | None, count: int) -> None:
        check_number("attack.budget", budget, count, whole=True)
        assert budget is not None
        self.epsilon = None  # each session keeps its own
        self._defense, self._share = defense, divmod(budget, count)
        self._sessions: list[Defense] = []
        self._left = 0  # queries of the last session

    @property
    def needs_gradients(self) -> bool:  # type: ignore[override]
        """Whether the defense does."""
        return self._defense.needs_gradients

    @property
    def max_batch(self) -> int | None:  # type: ignore[override]
        """The most images that the defense takes at once."""
        return self._defense.max_batch

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return what the account that is due is answered, or those that are."""
        answers, done = [], 0
        while done < len(images):
            if not self._left:
                least, more = self._share
                self._left = least + (len(self._sessions) < more)
                self._sessions.append(self._defense.session())
            size = min(self._left, len(images) - done)
            whole = size == len(images)  # a defense may know these very images
            some = (images, clean) if whole else (images[done : done + size], clean[done : done + size])
            answers.append(self._sessions[-1](*some))
            done, self._left = done + size, self._left - size
        return torch.cat(answers) if answers else clean

    def session_columns(self) -> dict[str, Any]:
        """Return the defense's columns about all accounts."""
        return self._defense.accounts_columns(self._sessions or [self._defense.session()])
