"""An adversary that trains while it queries (MAD's paper, figs. 6 and 7)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.optim import SGD

from mad.adversary import Adversary
from mad.api import BlackBox
from mad.attacks.base import Attack, TransferSet
from mad.datasets import Images, batches, to_unit_range
from mad.errors import check_number
from mad.progress import bar
from mad.seeds import generator
from mad.training import DivergedError


@dataclass(frozen=True)
class Online(Attack):
    """Query random images of the pool, each once, and take one step of plain SGD on the answers to each request.

    The images are those of ``knockoff``, and the network starts from its initial weights; it is what is stolen. With
    ``defense/surrogate=adversary`` the defense reads that network. It stays in eval mode throughout: a batch of one
    image has no statistics of its own, and adversary and defense mean the same gradient.

    The record gets the columns of ``mad.gradient_probe.GradientProbe``; its measuring counts as querying.

    Args:
        batch_size: images a request and a step.
        learning_rate: of SGD.
    """

    name = "online"
    online = True
    batch_size: int = 1
    learning_rate: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("attack.batch_size", self.batch_size, 1, whole=True)
        check_number("attack.learning_rate", self.learning_rate, 0)

    def transfer_set(self, api: BlackBox, pool: Images, adversary: Adversary) -> TransferSet:
        """Spend the API's whole budget."""
        rows = torch.randperm(len(pool), generator=generator(adversary.seed, "pool order"))[: api.budget]
        network, answers = adversary.live.requires_grad_(True), []
        optimizer = SGD(network.parameters(), lr=self.learning_rate)
        with bar("queries", len(rows)) as progress:
            for images in batches(pool, rows, self.batch_size, torch.device("cpu")):
                images = to_unit_range(images)
                answers.append(api(images))
                targets = adversary.recovered(answers[-1]).to(adversary.device)
                loss = F.cross_entropy(network(images.to(adversary.device)), targets)
                if not loss.isfinite():
                    raise DivergedError(
                        f"the network of attack online diverged within {api.queries} of {api.budget} queries: "
                        f"lower attack.learning_rate={self.learning_rate:g}"
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                progress(len(images), "", loss)
        # The knockoff's own recipe was not used.
        facts = {
            "knockoff_epochs": 1,
            "knockoff_optimizer": "sgd",
            "knockoff_learning_rate": self.learning_rate,
            "knockoff_schedule": "constant",
            "knockoff_min_steps": 0,
        }
        return TransferSet(pool, rows, torch.cat(answers), network, {**facts, "precision": "float32"})
