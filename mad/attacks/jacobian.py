"""Base class of the Jacobian-based attacks: a transfer set grows from a few seeds (Papernot et al., AsiaCCS 2017)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch
from torch import Generator, Tensor, nn

from mad.adversary import Adversary
from mad.api import BlackBox
from mad.attacks.base import REQUEST, Attack, Stolen, TransferSet, ask, drawn
from mad.datasets import Images, allocate, base, batch_limit, batches, to_unit_range
from mad.errors import MadError, UnfitError, check_number
from mad.schema import Column
from mad.seeds import generator
from mad.training import DivergedError, Trainer
from mad.victim import Victim

BATCH = 256  # images per gradient computation


@dataclass(frozen=True)
class Jacobian(Attack):
    """Start from random images of the pool; in rounds, train a substitute on the answers and query moved images.

    Each round trains a new substitute, a network of the knockoff's architecture, on the transfer set so far. It then
    moves each image of the set, or a random ``reservoir`` of them, along the sign of a gradient of the substitute, and
    queries the moved images. The last round moves the oldest images, as many as the budget allows.

    Stored images lie in [0, 1], and each answer is that to the stored image, unless the published code's errors are
    asked for (``as_published``). Images of more than a gigabyte are kept in a file in TMPDIR: 30 GB for 50,000 images
    of 224 pixels.

    The published recipe of a substitute is 20 epochs in batches of 64, momentum 0.9, weight decay 5e-4 and a learning
    rate of 0.1, at which LeNet's weights overflow. For sets of many thousands these epochs would be most of the cost
    of an attack; ``round_images`` bounds them.

    Args:
        seeds: images of the pool to begin with; at most the budget.
        epochs: passes of a substitute over the transfer set.
        round_images: the most images that a round trains on, counted once per epoch: larger sets get fewer epochs, at
            least one. The published code has no such bound.
        learning_rate: learning rate of a substitute. When a substitute diverges, which the adversary can see, the rate
            is halved for this and all later rounds.
        reservoir: images that are moved in one round (kappa); None, as published, for all, so that the set grows
            geometrically.
        reservoir_after: rounds before the reservoir takes effect (sigma).
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
        """Number of queries per moved image."""
        return 1

    @property
    def divisor(self) -> int:
        """``children``, or more in the published code. A round moves at most ceil(queries left / divisor) images."""
        return self.children

    @property
    def overwrites(self) -> bool:
        """Whether a child replaces its parent in the transfer set, an error of the published code; for one child."""
        return False

    @abstractmethod
    def moved(
        self, substitute: nn.Module, images: Tensor, labels: Tensor, turn: int, draw: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the images to query, and the images to store: the same, except for an error of the published code.

        Args:
            substitute: the substitute, in eval mode.
            images: (B, C, H, W) in [0, 1], on the substitute's device; the results are (B * children, C, H, W).
            labels: int64 (B,), the top class of the API's answer to each.
            turn: number of the round, from 0.
            draw: the round's CPU generator, for an attack that moves images at random.
        """

    def images_for(self, budget: int) -> int:
        """Return how many images of the pool a budget needs: the seeds."""
        return min(self.seeds, budget)

    def run(self, api: BlackBox, pool: Images | None, adversary: Adversary) -> Stolen:
        """Spend the API's whole budget; the images are float32 in [0, 1].

        Raises:
            MadError: if a substitute diverges even at a hundredth of the learning rate.
        """
        assert pool is not None
        budget = api.budget or 0
        images, answers = allocate(budget, *api.shape), torch.empty(budget, adversary.classes)
        size, rate, first = batch_limit(REQUEST, api.shape), self.learning_rate, 0
        found = adversary.resume(api)
        if found is not None:
            held, rate, first = len(found["answers"]), found["rate"], found["turn"]
            images[:held], answers[:held] = found["images"], found["answers"]
        else:
            held = self.images_for(budget)
            seeds = batches(pool, drawn(pool, adversary, held), size, torch.device("cpu"))
            for part, some in zip(images[:held].split(size), seeds, strict=True):
                part.copy_(to_unit_range(some))
            answers[:held] = ask(api, images, torch.arange(held))
        for turn in count(first):
            if held == budget:
                break
            known = TransferSet(images[:held], torch.arange(held), answers[:held])
            substitute, rate = self._substitute(adversary, known, turn, rate)
            parents = self.parents(held, turn, adversary.seed)[: -(-(budget - held) // self.divisor)]
            new = slice(held, min(budget, held + len(parents) * self.children))
            asked = self._moved(substitute, known, parents, turn, adversary, images[new])
            answers[new] = ask(api, asked, torch.arange(len(asked)))
            if self.overwrites and not self._reserved(turn):
                answers[parents] = answers[new].clone()
                for some, of in zip(parents.split(size), torch.arange(held, new.stop).split(size), strict=True):
                    images[some] = images[of]
            held = new.stop
            if images.nbytes <= base.IN_MEMORY:
                adversary.save(
                    api, images=images[:held].clone(), answers=answers[:held].clone(), rate=rate, turn=turn + 1
                )
        transfer = TransferSet(images, torch.arange(budget), answers)
        return Stolen(transfer=transfer, columns={"substitute_learning_rate": rate})

    def _substitute(self, adversary: Adversary, known: TransferSet, turn: int, rate: float) -> tuple[nn.Module, float]:
        """Return a trained substitute, and the learning rate, at most ``rate``, at which it did not diverge."""
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
        """Return the training recipe of a substitute for a transfer set of ``held`` images."""
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
        """Return the rows, int64 (M,), of the images that are moved in a round."""
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
        adversary: Adversary,
        stored: Tensor,
    ) -> Tensor:
        """Move the parents batch by batch; write the images to store into ``stored``, return those to query (CPU)."""
        device, draw = adversary.device, generator(adversary.seed, f"moves of round {turn}")
        asked, labels = stored, known.answers.argmax(dim=1).to(device)
        size = batch_limit(BATCH, known.images.shape[1:])
        for place, rows, some in zip(
            torch.arange(len(stored)).split(size * self.children),
            parents.split(size),
            batches(known.images, parents, size, device),
            strict=True,
        ):
            new = slice(int(place[0]), int(place[-1]) + 1)
            about, kept = self.moved(substitute, some, labels[rows.to(device)], turn, draw)
            stored[new] = kept[: len(place)]
            if about is not kept:
                asked = allocate(*stored.shape) if asked is stored else asked
                asked[new] = about[: len(place)]
        return asked


@dataclass(frozen=True)
class Targeted(Jacobian):
    """Base class of attacks that move each image toward several other classes by projected gradient descent (PGD).

    Args:
        k: number of targets per image, each of which makes one query.
        steps: gradient steps per target.
        step: how far one step moves each pixel (alpha).
        ball: how far all steps together may move each pixel (L-infinity).
    """

    k: int = 3
    steps: int = 8
    step: float | None = None
    ball: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("attack.k", self.k, 1, whole=True)
        check_number("attack.steps", self.steps, 1, whole=True)
        if self.step is not None:
            check_number("attack.step", self.step, 0)
        check_number("attack.ball", self.ball, 0)

    @property
    def children(self) -> int:
        """Number of queries per moved image: ``k``."""
        return self.k

    def check(self, victim: Victim) -> None:
        """Raise UnfitError if the victim has fewer than ``k`` classes besides an image's own."""
        if self.k >= victim.dataset.classes:
            raise UnfitError(f"attack.k must be below the victim's {victim.dataset.classes} classes, got {self.k}")


def climbed(
    score: Callable[[Tensor], Tensor], start: Tensor, steps: int, step: float, low: Tensor, high: Tensor
) -> Tensor:
    """Return images (B, C, H, W) after signed gradient steps up a score, each followed by a projection onto a box.

    Args:
        score: see ``ascent``; called anew at each step.
        start: the images to begin with.
        steps: number of steps.
        step: how far one step moves each pixel.
        low: the least value of each pixel, (B, C, H, W).
        high: the largest.
    """
    at = start
    for _ in range(steps):
        at = torch.minimum(torch.maximum(at + step * ascent(score, at), low), high)
    return at


def ascent(score: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the sign, in {-1, 0, 1}, of a score's gradient with respect to images, (B, C, H, W).

    Args:
        score: maps images (B, C, H, W) to scores (B,); the score of an image must not depend on other images.
        images: the images at which the gradient is taken.
    """
    at = images.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(score(at).sum(), at)
    return gradient.sign()
