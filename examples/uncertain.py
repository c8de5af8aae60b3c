"""An attack that trains while it queries: each round asks about the images that the thief's model is least sure of.

mad-run --config-dir conf attack=uncertain attack.budget=1000
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mad.adversary import Adversary
from mad.api import BlackBox
from mad.attacks import Attack, Stolen, TransferSet, ask, drawn
from mad.datasets import Images
from mad.errors import check_number
from mad.schema import Column
from mad.training import logits_of


@dataclass(frozen=True)
class Uncertain(Attack):
    """Uncertainty sampling: the first round is random, later ones take the least probable top classes.

    A killed run goes on after the last whole round, and no image is paid for twice.

    Args:
        rounds: how often the model is trained; the budget is shared out evenly.
    """

    name = "uncertain"
    schema = (Column("round_queries", "series", "queries", "how many images each round asked about"),)
    rounds: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("attack.rounds", self.rounds, 1, whole=True)

    def run(self, api: BlackBox, pool: Images | None, adversary: Adversary) -> Stolen:
        """Spend the budget round by round; the model of the last round is what is stolen."""
        assert pool is not None  # needs_pool is true
        assert api.budget is not None
        order, share = drawn(pool, adversary, None), -(-api.budget // self.rounds)
        found = adversary.resume(api) or {"rows": order[:0], "answers": torch.zeros(0, adversary.classes), "asked": []}
        rows, answers, asked = found["rows"], found["answers"], found["asked"]
        network = None if not len(rows) else self.trained(adversary, TransferSet(pool, rows, answers))
        while len(rows) < api.budget:
            left = order[~torch.isin(order, rows)]
            if network is not None:
                left = left[sureness(network, pool, left, adversary).argsort(stable=True)]
            new = left[: min(share, api.budget - len(rows))]
            rows, answers = torch.cat([rows, new]), torch.cat([answers, ask(api, pool, new)])
            asked = [*asked, len(new)]
            adversary.save(api, rows=rows, answers=answers, asked=asked)
            network = self.trained(adversary, TransferSet(pool, rows, answers))
        return Stolen(network, TransferSet(pool, rows, answers), {"round_queries": asked})

    def trained(self, adversary: Adversary, transfer: TransferSet) -> nn.Module:
        """Return a model trained anew on all answers so far."""
        return adversary.train(transfer, f"knockoff of {len(transfer)} answers")


def sureness(network: nn.Module, pool: Images, rows: Tensor, adversary: Adversary) -> Tensor:
    """Return the probability of the top class of each image, (B,)."""
    return torch.softmax(logits_of(network, pool, adversary.device, rows), dim=1).amax(dim=1)
