"""The network that an adversary trains on the answers as they came, before it thinks again."""

from __future__ import annotations

from torch import Tensor, nn

from mad.datasets.held_out import chosen
from mad.knowledge import Knowledge
from mad.recoveries.shadows import Answered
from mad.transfer import TransferSet


def first_model(adversary: Knowledge, transfer: TransferSet, targets: Tensor | None = None) -> nn.Module:
    """Return a network, in eval mode, trained by the knockoff's recipe on a transfer set; kept for all who ask for it.

    Args:
        adversary: its recipe, seed and store.
        transfer: images and answers.
        targets: posteriors (M, K) to train on; None for the answers.
    """
    targets = transfer.answers if targets is None else targets
    asked = Answered(chosen(transfer.images, transfer.rows), targets, adversary.classes, adversary.shape)

    def train(network: nn.Module) -> None:
        adversary.knockoff.trainer.fit(
            network, asked.pool, targets, seed=adversary.seed, device=adversary.device, task="first model"
        )

    about = [adversary.knockoff, adversary.seed, asked]
    return adversary.kept("first_model", about, lambda: adversary.untrained("first model"), train)
