"""Knockoff Nets with the random policy (Orekondy, Schiele and Fritz, CVPR 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mad.adversary import Adversary
from mad.api import BlackBox
from mad.attacks.base import REQUEST, Attack, TransferSet, ask
from mad.augmentation import augmented
from mad.datasets import Images, batch_limit, batches, to_unit_range
from mad.errors import check_choice, check_number
from mad.progress import bar
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
    queries_per_image: int = 1
    augment: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("attack.queries_per_image", self.queries_per_image, 1, whole=True)
        check_choice("attack.augment", self.augment, AUGMENTATIONS)

    def images_for(self, budget: int) -> int:
        """Return how many images a budget takes."""
        return -(-budget // self.queries_per_image)

    def transfer_set(self, api: BlackBox, pool: Images, adversary: Adversary) -> TransferSet:
        """Spend the API's whole budget."""
        budget = api.budget or 0
        order = torch.randperm(len(pool), generator=generator(adversary.seed, "pool order"))
        rows = order[: self.images_for(budget)]
        if self.queries_per_image == 1 and self.augment == "none":
            return TransferSet(pool, rows, ask(api, pool, rows))
        return TransferSet(pool, rows, self._averages(api, pool, rows, budget, adversary.seed))

    def _averages(self, api: BlackBox, pool: Images, rows: Tensor, budget: int, seed: int) -> Tensor:
        """Return the mean answer (M, K) about each of the rows (M,), asked about one after another."""
        times = torch.full((len(rows),), self.queries_per_image)
        times[-1] -= len(rows) * self.queries_per_image - budget
        place = torch.arange(len(rows)).repeat_interleave(times)
        draw, found = generator(seed, "augmentation of queries"), []
        with bar("queries", budget) as progress:
            for images in batches(pool, rows[place], batch_limit(REQUEST, api.shape), torch.device("cpu")):
                found.append(api(augmented(to_unit_range(images), self.augment, draw)))
                progress(len(images), "", None)
        answers = torch.cat(found)
        return torch.zeros(len(rows), answers.shape[1]).index_add_(0, place, answers) / times.unsqueeze(1)
