"""Ask twice, about an image and about a slightly moved copy, and trust what is answered alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad import simplex
from mad.adversary import Adversary
from mad.api import BlackBox
from mad.attacks.base import REQUEST, Attack, Stolen, TransferSet, ask, drawn, queried
from mad.datasets import Images, batch_limit, batches
from mad.errors import check_number
from mad.schema import Column

LEAST = 0.1  # share of the images that is kept at least


@dataclass(frozen=True)
class Consistent(Attack):
    """Query each random image of the pool, and a copy that is moved to the right by one pixel; both are charged.

    Images whose two answers are within L1 ``tolerance`` are kept, each with the mean of the two: a victim answers alike
    about what looks alike, and a perturbation that is drawn for each image does not. If fewer than a tenth are, the
    tenth whose answers differ least are. The images are those of the attack ``knockoff`` at half the budget; of an odd
    budget, the last query is about an image whose copy is not asked about, and which is not kept.

    Args:
        tolerance: L1 distance, in [0, 2].
    """

    name = "consistent"
    verbatim = False
    schema = (
        Column("consistent", "number", "share", "the images whose answer, and that to a moved copy, are near enough"),
    )
    tolerance: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("attack.tolerance", self.tolerance, 0, 2)
        check_number("attack.budget", 2 if self.budget is None else self.budget, 2, whole=True)

    def shared(self, budget: int) -> int:
        """Return a budget of which every account has a query, and an image its two."""
        return super().shared(check_number("attack.budget", budget, 2, whole=True))

    def images_for(self, budget: int) -> int:
        """Return how many images of the pool a budget needs: half of it, rounded up."""
        return -(-budget // 2)

    def run(self, api: BlackBox, pool: Images | None, adversary: Adversary) -> Stolen:
        """Spend the API's whole budget."""
        assert pool is not None
        budget = api.budget or 0
        rows = drawn(pool, adversary, self.images_for(budget))
        answers, both = ask(api, pool, rows), rows[: budget // 2]
        some = batches(pool, both, batch_limit(REQUEST, api.shape), torch.device("cpu"))
        copies = torch.cat([found for _, found in queried(api, (shifted(each) for each in some), len(both))])
        answers = answers[: len(both)]
        apart = simplex.l1(answers, copies)
        nearest = apart.sort().values[max(1, round(LEAST * len(apart))) - 1]
        kept = apart <= nearest.clamp(min=self.tolerance)
        near = (apart <= self.tolerance).double().mean().item()
        transfer = TransferSet(pool, both[kept], ((answers + copies) / 2)[kept])
        return Stolen(transfer=transfer, columns={"consistent": near})


def shifted(images: Tensor) -> Tensor:
    """Return images (B, C, H, W) moved to the right by one pixel; the left column stays as it was."""
    return torch.cat([images[..., :1], images[..., :-1]], dim=-1)
