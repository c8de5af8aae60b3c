"""D-DAE+: as D-DAE, with the victim's own clean posteriors to learn from (as in Tang et al., USENIX Security 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad.knowledge import Knowledge
from mad.recoveries.restorer import Restorer
from mad.recoveries.shadows import Pairs, asked, shadows, together
from mad.seeds import seeded
from mad.transfer import TransferSet

SPREAD = 8.0  # of the posteriors around a clean one y: Dirichlet(SPREAD K y)
LEAST = 1e-3  # of its parameters: smaller ones round to 0


@dataclass
class RestorerPlus(Restorer):
    """As the restorer, but what it sees defended are posteriors drawn near the victim's clean ones.

    No adversary is given those. It does not know the defense's secrets, so others may still do better.

    For each clean posterior y of the transfer set, every shadow's defense perturbs one that is drawn from
    Dirichlet(8 K y), on the image that y is about. Where the defense is the model that it serves, it sees that
    model's answers to these images.
    """

    name = "restorer_plus"
    knows = ("the defense", "the victim's clean answers")

    def pairs(self, adversary: Knowledge, transfer: TransferSet) -> Pairs:
        """Return the drawn posteriors, defended and as they are."""
        assert adversary.clean is not None  # given to whoever knows the victim's clean answers
        clean, found = adversary.clean, []
        every = asked(shadows(adversary, transfer, self.shadows), transfer, transfer.rows)
        for number, (guarded, images) in enumerate(every):

            def drawn(some: Tensor, part: int, number: int = number) -> Tensor:
                return near(clean(some), adversary.seed, f"posteriors {part} of API {number}")

            found += guarded.answers(images, drawn)
        return together(found)


def near(clean: Tensor, seed: int, purpose: str) -> Tensor:
    """Return a posterior drawn from Dirichlet(8 K y) for each clean one y, float32 (B, K)."""
    with seeded(seed, purpose):  # torch's gamma takes no generator
        mass = torch._standard_gamma((SPREAD * clean.shape[1] * clean.cpu().double()).clamp(min=LEAST))
    return (mass / mass.sum(dim=1, keepdim=True)).to(clean)
