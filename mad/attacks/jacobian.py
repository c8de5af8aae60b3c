"""What the Jacobian-based attacks share: a transfer set that grows from a few seeds (Papernot et al., AsiaCCS 2017)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn

from mad.adversary import Adversary
from mad.api import BlackBox
from mad.attacks.base import REQUEST, Attack, Stolen, TransferSet, ask, drawn
from mad.datasets import Images, allocate, batch_limit, batches, to_unit_range
from mad.errors import MadError, check_number
from mad.schema import Column
from mad.seeds import generator
from mad.training import DivergedError, Trainer

BATCH = 256  # images whose gradients are computed at once


@dataclass(frozen=True)
class Jacobian(Attack):
    """Start from random images of the pool; round by round, train a substitute and query what it moves images to.

    Every round trains a fresh network of the knockoff's architecture on all that is held, and moves each held image,
    or a random ``reservoir`` of them, along the sign of a gradient of it. The last round moves the images that were
    held first, as many as the budget leaves. What is stored lies in [0, 1], beside the API's answer to just that,
    unless the published code's errors are asked for. Above a gigabyte the images lie in a file in TMPDIR: 30 GB for
    50,000 of 224 pixels.

    The published recipe of a substitute is 20 epochs in batches of 64, momentum 0.9, weight decay 5e-4 and a rate of
    0.1, at which LeNet's weights overflow. Where a set grows to many thousands those epochs are most of an attack's
    cost, so a round is bounded.

    Args:
        seeds: images of the pool to begin with; a budget below it takes that many.
        epochs: passes of a substitute over what is held.
        round_images: the most images that a round trains on, counted once an epoch: larger sets get fewer epochs, down
            to one. The published code has no such bound.
        learning_rate: of a substitute; halved, for this and all later rounds, when one diverges, as its adversary sees.
        reservoir: held images that are moved in one round (kappa); None, as published, for all: a set then grows
            geometrically.
        reservoir_after: rounds before the reservoir is in force (sigma).
    """

    schema = (
        Column("substitute_learning_rate", "number", "", "the rate of the last substitute, halved when one diverged"),
    )
    seeds: int = 100
    epochs: int = 20
    round_images: int = 200_000
    learning_rate: float = 0.03
    reservoir: int | None = None
    reservoir_after: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("seeds", "epochs", "round_images"):
            check_number(f"attack.{name}", getattr(self, name), 1, whole=True)
        check_number("attack.learning_rate", self.learning_rate, 1e-9)
        if self.reservoir is not None:
            check_number("attack.reservoir", self.reservoir, 1, whole=True)
        check_number("attack.reservoir_after", self.reservoir_after, 0, whole=True)

    @property
    def children(self) -> int:
        """How many queries one moved image makes."""
        return 1

    @property
    def divisor(self) -> int:
        """A round moves no more images than the queries that are left over this: ``children``, or more by an error."""
        return self.children

    @property
    def overwrites(self) -> bool:
        """Whether an image's child, of which it has one, also takes its row: an error of the published code."""
        return False

    @abstractmethod
    def moved(self, substitute: nn.Module, images: Tensor, labels: Tensor, turn: int) -> tuple[Tensor, Tensor]:
        """Return what to ask about, and what to store for it: the same, but where the published code errs.

        Args:
            substitute: in eval mode.
            images: (B, C, H, W) in [0, 1], on the substitute's device; the results are (B * children, C, H, W).
            labels: int64 (B,), the top class of the API's answer to each.
            turn: which round this is, from 0.
        """

    def images_for(self, budget: int) -> int:
        """Return how many images of the pool a budget takes: the seeds."""
        return min(self.seeds, budget)

    def run(self, api: BlackBox, pool: Images | None, adversary: Adversary) -> Stolen:
        """Spend the API's whole budget; the images are float32 in [0, 1].

        Raises:
            MadError: if a substitute diverges at a hundredth of the rate, too: no image would be moved.
        """
        assert pool is not None
        budget = api.budget or 0
        images, answers = allocate(budget, *api.shape), torch.empty(budget, adversary.classes)
        held = self.images_for(budget)
        size = batch_limit(REQUEST, api.shape)
        seeds = batches(pool, drawn(pool, adversary, held), size, torch.device("cpu"))
        for part, some in zip(images[:held].split(size), seeds, strict=True):
            part.copy_(to_unit_range(some))
        answers[:held] = ask(api, images, torch.arange(held))
        rate = self.learning_rate
        for turn in count():
            if held == budget:
                break
            known = TransferSet(images[:held], torch.arange(held), answers[:held])
            substitute, rate = self._substitute(adversary, known, turn, rate)
            parents = self.parents(held, turn, adversary.seed)[: -(-(budget - held) // self.divisor)]
            new = slice(held, min(budget, held + len(parents) * self.children))
            asked = self._moved(substitute, known, parents, turn, adversary.device, images[new])
            answers[new] = ask(api, asked, torch.arange(len(asked)))
            if self.overwrites and not self._reserved(turn):
                answers[parents] = answers[new].clone()
                for some, of in zip(parents.split(size), torch.arange(held, new.stop).split(size), strict=True):
                    images[some] = images[of]
            held = new.stop
        transfer = TransferSet(images, torch.arange(budget), answers)
        return Stolen(transfer=transfer, columns={"substitute_learning_rate": rate})

    def _substitute(self, adversary: Adversary, known: TransferSet, turn: int, rate: float) -> tuple[nn.Module, float]:
        """Return a substitute and the rate, ``rate`` or less, at which its training did not diverge."""
        while True:
            try:
                return adversary.train(known, f"substitute {turn}", self.trainer(len(known.rows), rate)), rate
            except DivergedError as error:
                if rate < self.learning_rate / 100:
                    raise MadError(
                        f"substitute {turn} diverges at attack.learning_rate={rate:g}, too; lower it"
                    ) from error
                rate /= 2

    def trainer(self, held: int, rate: float) -> Trainer:
        """Return the recipe of a substitute that learns ``held`` images at a rate."""
        epochs = min(self.epochs, max(1, self.round_images // held))
        return Trainer(
            epochs=epochs,
            batch_size=64,
            optimizer="momentum",
            learning_rate=rate,
            momentum=0.9,
            weight_decay=5e-4,
            schedule="step",
            step_epochs=30,
        )

    def parents(self, held: int, turn: int, seed: int) -> Tensor:
        """Return which of the held images are moved in a round, int64 (M,)."""
        if not self._reserved(turn):
            return torch.arange(held)
        return torch.randperm(held, generator=generator(seed, f"reservoir {turn}"))[: self.reservoir]

    def _reserved(self, turn: int) -> bool:
        return self.reservoir is not None and turn >= self.reservoir_after

    def _moved(
        self,
        substitute: nn.Module,
        known: TransferSet,
        parents: Tensor,
        turn: int,
        device: torch.device,
        stored: Tensor,
    ) -> Tensor:
        """Move the parents, a batch at a time; fill ``stored``, and return what to ask about, also on the CPU."""
        asked, labels = stored, known.answers.argmax(dim=1).to(device)
        size = batch_limit(BATCH, known.images.shape[1:])
        for place, rows, some in zip(
            torch.arange(len(stored)).split(size * self.children),
            parents.split(size),
            batches(known.images, parents, size, device),
            strict=True,
        ):
            new = slice(int(place[0]), int(place[-1]) + 1)
            about, kept = self.moved(substitute, some, labels[rows.to(device)], turn)
            stored[new] = kept[: len(place)]
            if about is not kept:
                asked = allocate(*stored.shape) if asked is stored else asked
                asked[new] = about[: len(place)]
        return asked


def ascent(score: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the sign, in {-1, 0, 1}, of a score's gradient in each of the images (B, C, H, W).

    Args:
        score: of images, one number each (B,), an image's own depending on no other.
        images: where.
    """
    at = images.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(score(at).sum(), at)
    return gradient.sign()
