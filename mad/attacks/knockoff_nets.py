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

    With the same seed, the images of a smaller budget are the first images of a larger one.

    Args:
        queries_per_image: queries per image, whose answers are averaged (paper, fig. 9, "nquery"). The last image gets
            the rest of the budget.
        augment: random change of an image before each query ("nquery+aug"): ``none``, ``crop``, ``crop_flip``,
            ``resized_crop_flip`` or ``warp``. The knockoff is trained on the unchanged image.
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

    @property
    def verbatim(self) -> bool:  # type: ignore[override]
        """Whether each answer is the API's to the image stored with it: not where the image was changed."""
        return self.augment == "none"

    def images_for(self, budget: int) -> int:
        """Return how many images of the pool a budget needs: budget / ``queries_per_image``, rounded up."""
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
        """Return the mean answer, (M, K), to the queries about each of the rows (M,)."""
        times = torch.full((len(rows),), self.queries_per_image)
        times[-1] -= len(rows) * self.queries_per_image - budget
        place, draw = torch.arange(len(rows)).repeat_interleave(times), generator(seed, "augmentation of queries")
        some = batches(pool, rows[place], batch_limit(REQUEST, api.shape), torch.device("cpu"))
        views = (augmented(to_unit_range(images), self.augment, draw) for images in some)
        answers = torch.cat([found for _, found in queried(api, views, budget)])
        return torch.zeros(len(rows), answers.shape[1]).index_add_(0, place, answers) / times.unsqueeze(1)
