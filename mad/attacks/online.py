"""An adversary that trains while it queries (MAD's paper, figs. 6 and 7)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.optim import SGD

from mad.adversary import Adversary
from mad.api import BlackBox
from mad.attacks.base import Attack, Stolen, TransferSet, drawn, queried
from mad.datasets import Images, batches
from mad.errors import check_number
from mad.training import DivergedError, Trainer


@dataclass(frozen=True)
class Online(Attack):
    """Query random images of the pool, each once, and take one step of plain SGD on the answers to each request.

    The images are those of the attack ``knockoff``. The network starts from the knockoff's initial weights and is the
    stolen model. With ``defense/surrogate=adversary`` the defense reads that network. The network stays in eval mode:
    batch norm has no statistics for a batch of one image, and adversary and defense must compute the same gradient.

    ``probe=true`` measures how far each answer turns the gradient (see ``mad.gradient_probe``). The time that this
    takes is part of ``seconds_queries``.

    Args:
        batch_size: images per request and per step.
        learning_rate: learning rate of SGD.
    """

    name = "online"
    online = True
    recovers_early = True
    batch_size: int = 1
    learning_rate: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("attack.batch_size", self.batch_size, 1, whole=True)
        check_number("attack.learning_rate", self.learning_rate, 0)

    def run(self, api: BlackBox, pool: Images | None, adversary: Adversary) -> Stolen:
        """Spend the API's whole budget."""
        assert pool is not None
        rows = drawn(pool, adversary, api.budget)
        network, answers = adversary.live.requires_grad_(True), []
        optimizer = SGD(network.parameters(), lr=self.learning_rate)
        some = batches(pool, rows, self.batch_size, torch.device("cpu"))
        for images, found in queried(api, some, len(rows)):
            answers.append(found)
            there = images.to(adversary.device)
            loss = F.cross_entropy(network(there), adversary.recovered(found, there).to(adversary.device))
            if not loss.isfinite():
                raise DivergedError(
                    f"the network of attack online diverged within {api.queries} of {api.budget} queries: "
                    f"lower attack.learning_rate={self.learning_rate:g}"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return Stolen(network, TransferSet(pool, rows, torch.cat(answers)), trainer=self.trainer)

    @property
    def trainer(self) -> Trainer:
        """The recipe of the stolen network, for the record: one pass of SGD at a constant rate."""
        return Trainer(
            epochs=1,
            batch_size=self.batch_size,
            optimizer="sgd",
            learning_rate=max(self.learning_rate, 1e-9),
            momentum=0.0,
            weight_decay=0.0,
            schedule="constant",
            precision="float32",
        )
