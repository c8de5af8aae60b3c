"""Restyle the pool's images so that they look like a few images of the victim's kind, and ask about them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad.adversary import Adversary
from mad.api import BlackBox
from mad.attacks.base import REQUEST, Attack, Stolen, TransferSet, ask, drawn
from mad.datasets import Images, allocate, batch_limit, batches, to_unit_range
from mad.errors import check_choice, check_number
from mad.recoveries.first_model import first_model
from mad.seeds import generator
from mad.training import logits_of

SAMPLE = 1000  # images of the pool whose mean and deviations count
APART = 1e-4  # values of an image that differ by less are put in a random order
FLAT = 1e-6  # a direction in which the pool deviates less is left out


@dataclass(frozen=True)
class Mimicry(Attack):
    """Query ``seeds`` images of the victim's kind, then images of the pool that are made to resemble them.

    An image of the pool is projected onto the first ``components`` principal directions of the seeds; in each of these
    the pool, by its first 1,000 images, gets the deviation that the seeds have, around their mean. Then its values are
    exchanged, channel by channel and in their order, for those of one of the seeds, so that the two have the same
    histogram. What comes out has the victim's kind of background, strokes and contrast, and its content from the pool:
    a defense that looks at the query sees little that is strange, and each image of the pool makes a new one. No labels
    are used.

    Args:
        seeds: images of the victim's kind, about as many of each class; see ``Knowledge.labeled``.
        components: principal directions of the seeds, at most one fewer than there are seeds; 0 for the histogram only.
        keep: which answers to restyled images the stolen model is trained on beside those to the seeds: ``agree``,
            those with the top class that a first model, trained on the answers to the seeds, gives the image, so that
            most decoys are left out; or ``all``.
    """

    name = "mimicry"
    knows = ("the victim's data",)
    seeds: int = 100
    components: int = 20
    keep: str = "agree"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("attack.seeds", self.seeds, 1, whole=True)
        check_number("attack.components", self.components, 0, whole=True)
        check_choice("attack.keep", self.keep, ("all", "agree"))

    def images_for(self, budget: int) -> int:
        """Return how many images of the pool a budget needs: one for each query but those about the seeds."""
        return max(0, budget - self.seeds)

    def run(self, api: BlackBox, pool: Images | None, adversary: Adversary) -> Stolen:
        """Spend the API's whole budget."""
        assert pool is not None
        budget = api.budget or 0
        own = to_unit_range(adversary.labeled("attack.seeds", min(self.seeds, budget))[0])
        images = allocate(budget, *api.shape)
        images[: len(own)] = own
        self.restyle(pool, drawn(pool, adversary, self.images_for(budget)), own, adversary.seed, images[len(own) :])
        first, rows = torch.arange(len(own)), torch.arange(budget)
        answers = torch.cat([ask(api, images, some) for some in (first, rows[len(own) :]) if len(some)])
        if self.keep == "agree" and len(own) < budget:
            model = first_model(adversary, TransferSet(images, first, answers[: len(own)]))
            told = logits_of(model, images, adversary.device).argmax(dim=1)
            agreed = told.cpu() == answers.argmax(dim=1)
            agreed[: len(own)] = True
            rows = rows[agreed]
        return Stolen(transfer=TransferSet(images, rows, answers[rows]))

    def restyle(self, pool: Images, rows: Tensor, own: Tensor, seed: int, into: Tensor) -> None:
        """Write the restyled images of some rows (N,) of the pool, in [0, 1], into a tensor (N, C, H, W).

        Args:
            pool: images.
            rows: which of them.
            own: the images that they are made to resemble, (n, C, H, W) in [0, 1].
            seed: decides which of these gives an image its histogram.
            into: where to write.
        """
        if not len(rows):
            return
        size, cpu, draw = batch_limit(REQUEST, own.shape[1:]), torch.device("cpu"), generator(seed, "mimicry")
        count, flat = min(self.components, len(own) - 1), own.flatten(1)
        if count:
            middle, sample = flat.mean(dim=0), rows[:SAMPLE]
            turn = torch.linalg.svd(flat - middle, full_matrices=False)[2][:count]  # (count, C H W)
            points = torch.cat([to_unit_range(some).flatten(1) @ turn.T for some in batches(pool, sample, size, cpu)])
            mean, deviation = points.mean(dim=0), points.std(dim=0, correction=0)
            wanted = ((flat - middle) @ turn.T).std(dim=0, correction=0)
            factor = torch.where(deviation > FLAT, wanted / deviation, 0.0)
        for part, some in zip(into.split(size), batches(pool, rows, size, cpu), strict=True):
            plain = to_unit_range(some)
            if count:
                moved = (plain.flatten(1) @ turn.T - mean) * factor
                plain = (moved @ turn + middle).view_as(plain)
            part.copy_(with_histograms(plain, own, draw))


def with_histograms(images: Tensor, own: Tensor, draw: torch.Generator) -> Tensor:
    """Return images (B, C, H, W) whose values, in their order, are those of images (n, C, H, W) drawn at random."""
    flat = images.flatten(2)
    order = (flat + APART * torch.rand(flat.shape, generator=draw)).argsort(dim=2)
    values = own[torch.randint(len(own), (len(images),), generator=draw)].flatten(2).sort(dim=2).values
    return torch.empty_like(values).scatter_(2, order, values).view_as(images)
