"""Walk from images of the victim's kind toward the pool's, and find by bisection how far the API answers alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad.adversary import Adversary
from mad.api import BlackBox
from mad.attacks.base import REQUEST, Attack, Stolen, TransferSet, ask, drawn
from mad.datasets import Images, allocate, batch_limit, batches, to_unit_range
from mad.errors import check_choice, check_number
from mad.schema import Column
from mad.seeds import generator


@dataclass(frozen=True)
class Boundary(Attack):
    """Query ``seeds`` images of the victim's kind, then mixtures of these and images of the pool.

    For each pair of a seed a and an image b of the pool, ``steps`` rounds of bisection look for the largest share s at
    which (1 - s) a + s b is answered with the top class that a was. Beyond it lies the victim's decision boundary or,
    with a defense that looks at the query, the boundary of what it answers honestly. So mixtures on the near side are
    worth asking about, and their answers worth trusting. Images are in [0, 1].

    Args:
        seeds: images of the victim's kind, about as many of each class; see ``Knowledge.labeled``. No labels are used.
        steps: rounds of bisection; a pair costs so many queries, or fewer where they take more than the budget has.
        keep: which mixtures the stolen model is trained on beside the seeds: ``near``, those that were answered as
            their seed was; or ``all``.
    """

    name = "boundary"
    knows = ("the victim's data",)
    schema = (Column("boundary_share", "number", "share, 0 to 1", "of the pool's image where bisection ended, mean"),)
    seeds: int = 100
    steps: int = 5
    keep: str = "near"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("attack.seeds", self.seeds, 1, whole=True)
        check_number("attack.steps", self.steps, 1, whole=True)
        check_choice("attack.keep", self.keep, ("all", "near"))

    def images_for(self, budget: int) -> int:
        """Return how many images of the pool a budget needs: one for each pair."""
        return -(-max(0, budget - self.seeds) // self.steps)

    def run(self, api: BlackBox, pool: Images | None, adversary: Adversary) -> Stolen:
        """Spend the API's whole budget."""
        assert pool is not None
        budget = api.budget or 0
        seeds, _ = adversary.labeled("attack.seeds", min(self.seeds, budget))
        images, answers = allocate(budget, *api.shape), torch.empty(budget, adversary.classes)
        held = len(seeds)
        images[:held] = to_unit_range(seeds)
        answers[:held] = ask(api, images, torch.arange(held))
        near = torch.ones(budget, dtype=torch.bool)

        ends = drawn(pool, adversary, self.images_for(budget))
        starts = torch.randint(held, (len(ends),), generator=generator(adversary.seed, "boundary pairs"))
        told = answers[:held].argmax(dim=1)[starts]
        low, high = torch.zeros(len(ends)), torch.ones(len(ends))
        for _ in range(self.steps):
            count = min(len(ends), budget - held)
            if not count:
                break  # not every program or service answers a request for nothing
            new, share = slice(held, held + count), ((low + high) / 2)[:count]
            self.mix(images, pool, starts[:count], ends[:count], share, into=images[new])
            answers[new] = ask(api, images, torch.arange(new.start, new.stop))
            near[new] = answers[new].argmax(dim=1) == told[:count]
            low[:count] = torch.where(near[new], share, low[:count])
            high[:count] = torch.where(near[new], high[:count], share)
            held += count
        rows = near.nonzero().flatten() if self.keep == "near" else torch.arange(budget)
        columns = {"boundary_share": low.double().mean().item()} if len(ends) else {}
        return Stolen(transfer=TransferSet(images, rows, answers[rows]), columns=columns)

    def mix(self, seeds: Images, pool: Images, starts: Tensor, ends: Tensor, share: Tensor, *, into: Tensor) -> None:
        """Write mixtures of seeds and images of the pool, in [0, 1], into a tensor (B, C, H, W).

        Args:
            seeds: images in [0, 1], of which ``starts`` (B,) are rows.
            pool: images, of which ``ends`` (B,) are rows.
            share: of the pool's image, in [0, 1], (B,).
            into: where to write.
        """
        size, cpu = batch_limit(REQUEST, into.shape[1:]), torch.device("cpu")
        some = (batches(of, rows, size, cpu) for of, rows in ((seeds, starts), (pool, ends)))
        for part, own, others, shares in zip(into.split(size), *some, share.split(size), strict=True):
            part.copy_(torch.lerp(own, to_unit_range(others), shares.view(-1, 1, 1, 1)))
