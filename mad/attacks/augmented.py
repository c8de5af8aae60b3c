"""A few images and random changes of them: the thief who has some images of the victim's kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mad.adversary import Adversary
from mad.api import BlackBox
from mad.attacks.base import REQUEST, Attack, Stolen, TransferSet, drawn, queried
from mad.augmentation import WARP, warped
from mad.datasets import Images, allocate, batch_limit, batches, to_unit_range
from mad.errors import check_choice, check_number
from mad.seeds import generator
from mad.storage.fingerprint import ADDED

KEEP = ("all", "near", "seeds")


@dataclass(frozen=True)
class Augmented(Attack):
    """Query some images, then random changes of them in turn; train on the images that were asked about.

    With ``source="victim"`` this is a thief who has ``seeds`` images like those of honest users; it uses no labels of
    them. A defense that looks at the query can hardly tell its queries from theirs.

    Each copy is turned, scaled, moved and bent at random, and then mixed with another changed copy if ``mix`` is above
    0. Images are in [0, 1]; pixels from outside are those of the nearest edge.

    Args:
        seeds: images to begin with; at most the budget.
        source: ``pool``, or ``victim`` for images of the victim's kind, about as many of each class; see
            ``Knowledge.labeled``.
        turn: most degrees of a turn, to either side, in [0, 180].
        scale: largest change of the size, a share in [0, 1): 0.1 for 1/1.1 to 1.1 times.
        move: largest move, a share of the side, in [0, 1], in each direction.
        bend: how far each of 4 x 4 points is moved, a share of the side, in [0, 1]; the points between follow smoothly.
        mix: the largest share of the other image, in [0, 1]; shares are uniform.
        keep: which queries the stolen model is trained on: ``all``; ``near``, the images and those changed copies whose
            top class is that of their image, so that most decoys are left out; or ``seeds``, the images as they are,
            which shows what they are worth without the other answers.
    """

    name = "augmented"
    seeds: int = 100
    source: str = "pool"
    turn: float = WARP[0]
    scale: float = WARP[1]
    move: float = WARP[2]
    bend: float = WARP[3]
    mix: float = 0.0
    keep: str = field(default="all", metadata=ADDED)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("attack.seeds", self.seeds, 1, whole=True)
        check_choice("attack.source", self.source, ("pool", "victim"))
        check_choice("attack.keep", self.keep, KEEP)
        check_number("attack.turn", self.turn, 0, 180)
        check_number("attack.scale", self.scale, 0, 0.999)
        for name in ("move", "bend", "mix"):
            check_number(f"attack.{name}", getattr(self, name), 0, 1)

    @property
    def knows(self) -> tuple[str, ...]:  # type: ignore[override]
        """What it is given beside the answers."""
        return ("the victim's data",) if self.source == "victim" else ()

    def images_for(self, budget: int) -> int:
        """Return how many images of the pool a budget needs: the seeds, or none."""
        return min(self.seeds, budget) if self.source == "pool" else 0

    def trained_on(self, budget: int) -> int:
        """Return how many answers the stolen model is trained on at most."""
        return min(self.seeds, budget) if self.keep == "seeds" else budget

    def run(self, api: BlackBox, pool: Images | None, adversary: Adversary) -> Stolen:
        """Spend the API's whole budget."""
        assert pool is not None
        budget = api.budget or 0
        seeds, rows = pool, drawn(pool, adversary, self.images_for(budget))
        if self.source == "victim":
            seeds, _ = adversary.labeled("attack.seeds", min(self.seeds, budget))
            rows = torch.arange(len(seeds))
        images, answers = allocate(budget, *api.shape), torch.empty(budget, adversary.classes)
        at = 0
        for some, told in queried(api, self.asked(seeds, rows, budget, adversary.seed, api.shape), budget):
            images[at : at + len(some)], answers[at : at + len(some)] = some, told
            at += len(some)
        kept = torch.arange(len(rows) if self.keep == "seeds" else budget)
        if self.keep == "near":
            top = answers.argmax(dim=1)
            kept = kept[top == top[kept % len(rows)]]
        return Stolen(transfer=TransferSet(images, kept, answers[kept]))

    def asked(self, seeds: Images, rows: Tensor, budget: int, seed: int, shape: tuple[int, ...]) -> Iterator[Tensor]:
        """Yield the batches to query: the rows (N,) of some images as they are, then changes of them in turn."""
        draw = generator(seed, "augmented copies")
        turns = rows.repeat(-(-budget // len(rows)))[:budget]
        for start, some in zip(
            range(0, budget, size := batch_limit(REQUEST, shape)),
            batches(seeds, turns, size, torch.device("cpu")),
            strict=True,
        ):
            images = to_unit_range(some)
            made = self.changed(images, draw)
            as_they_are = max(0, len(rows) - start)
            made[:as_they_are] = images[:as_they_are]
            yield made

    def changed(self, images: Tensor, draw: torch.Generator) -> Tensor:
        """Return a random change of each image (B, C, H, W) in [0, 1]."""
        made = warped(images, draw, self.turn, self.scale, self.move, self.bend)
        if self.mix:
            share = (self.mix * torch.rand(len(made), generator=draw)).view(-1, 1, 1, 1)
            made = torch.lerp(made, made[torch.randperm(len(made), generator=draw)], share)
        return made
