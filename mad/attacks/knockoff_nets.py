"""Knockoff Nets with the random policy (Orekondy, Schiele and Fritz, CVPR 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad.adversary import Adversary
from mad.api import BlackBox
from mad.attacks.base import REQUEST, Attack, Stolen, TransferSet, ask, drawn, queried
from mad.augmentation import augmented
from mad.datasets import Images, batch_limit, batches, to_unit_range
from mad.errors import check_choice, check_number
from mad.seeds import generator
from mad.training import AUGMENTATIONS


@dataclass(frozen=True)
class KnockoffNets(Attack):
    """Query images drawn from the pool at random, without replacement.

    A smaller budget's queries are the first ones of a larger budget's with the same seed.

    Args:
        queries_per_image: how often each image is asked about; the answers are averaged (paper, fig. 9, "nquery").
            The last image gets what is left of the budget.
        augment: what is done to an image each time it is asked about ("nquery+aug"): ``none``, ``crop`` or
            ``crop_flip``, ``resized_crop_flip``. The knockoff is trained on the image as it lies in the pool.
    """

    name = "knockoff"
    kind = "mad.attacks.knockoff.KnockoffRandom"
    depends_on_answers = False
    queries_per_image: int = 1
    augment: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("attack.queries_per_image", self.queries_per_image, 1, whole=True)
        check_choice("attack.augment", self.augment, AUGMENTATIONS)

    def images_for(self, budget: int) -> int:
        """Return how many images a budget takes."""
        return -(-budget // self.queries_per_image)

    def run(self, api: BlackBox, pool: Images | None, adversary: Adversary) -> Stolen:
        """Spend the API's whole budget."""
        assert pool is not None
        budget = api.budget or 0
        rows = drawn(pool, adversary, self.images_for(budget))
        if self.queries_per_image == 1 and self.augment == "none":
            return Stolen(transfer=TransferSet(pool, rows, ask(api, pool, rows)))
        return Stolen(transfer=TransferSet(pool, rows, self._averages(api, pool, rows, budget, adversary.seed)))

    def _averages(self, api: BlackBox, pool: Images, rows: Tensor, budget: int, seed: int) -> Tensor:
        """Return the mean answer (M, K) about each of the rows (M,), asked about one after another."""
        times = torch.full((len(rows),), self.queries_per_image)
        times[-1] -= len(rows) * self.queries_per_image - budget
        place, draw = torch.arange(len(rows)).repeat_interleave(times), generator(seed, "augmentation of queries")
        some = batches(pool, rows[place], batch_limit(REQUEST, api.shape), torch.device("cpu"))
        views = (augmented(to_unit_range(images), self.augment, draw) for images in some)
        answers = torch.cat([found for _, found in queried(api, views, budget)])
        return torch.zeros(len(rows), answers.shape[1]).index_add_(0, place, answers) / times.unsqueeze(1)
