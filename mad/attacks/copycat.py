"""Copycat CNN (Correia-Silva et al., IJCNN 2018): random images and the classes that the API names for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad.adversary import Adversary
from mad.api import BlackBox
from mad.attacks.base import Attack, Stolen, TransferSet
from mad.attacks.knockoff_nets import KnockoffNets
from mad.datasets import Images
from mad.errors import check_flag
from mad.recoveries.argmax import Argmax
from mad.seeds import generator


@dataclass(frozen=True)
class Copycat(Attack):
    """Query the random images of the attack ``knockoff``, and keep only the top class of each answer, one-hot.

    With ``balance=false`` this is ``attack=knockoff recovery=argmax``. The authors' later code balances the classes
    by default: of C classes that were named in M answers, each gets M / C images, rounded down. Images of rare
    classes are repeated, and images of frequent ones left out, although they were paid for.

    Args:
        balance: whether the classes are balanced.
    """

    name = "copycat"
    verbatim = False
    balance: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("attack.balance", self.balance)

    def run(self, api: BlackBox, pool: Images | None, adversary: Adversary) -> Stolen:
        """Spend the API's whole budget."""
        found = KnockoffNets(self.budget).run(api, pool, adversary).transfer
        assert found is not None
        answers = Argmax()(found.answers)
        if not self.balance:
            return Stolen(transfer=TransferSet(found.images, found.rows, answers))
        kept = balanced(answers.argmax(dim=1), adversary.seed)
        return Stolen(transfer=TransferSet(found.images, found.rows[kept], answers[kept]))


def balanced(labels: Tensor, seed: int) -> Tensor:
    """Return rows of labels (M,), as many of each of the C classes that occur: M / C, rounded down, class by class.

    All rows of a class are taken before one is taken again.
    """
    draw, classes = generator(seed, "balance"), labels.unique()
    share, rows = len(labels) // len(classes), []
    for label in classes:
        own = (labels == label).nonzero().squeeze(1)
        own = own[torch.randperm(len(own), generator=draw)]
        rows.append(own.repeat(-(-share // len(own)))[:share])
    return torch.cat(rows)
