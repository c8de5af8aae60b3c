"""Base class of the data-free attacks: a generator makes the images, and victim and student are its opponents."""

from __future__ import annotations

import time
from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from mad.adversary import Adversary
from mad.api import BlackBox
from mad.attacks.base import Attack, Stolen
from mad.attacks.image_generator import ImageGenerator, to_images
from mad.attacks.memory import Memory
from mad.attacks.zeroth_order import forward_differences, unit_directions
from mad.datasets import Images
from mad.errors import check_number
from mad.progress import bar
from mad.schema import Column
from mad.seeds import derive, seeded
from mad.training import DivergedError, Trainer, place

SAVE_SECONDS = 120.0  # between two checkpoints, which hold both networks and what is replayed
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4


@dataclass(frozen=True)
class DataFree(Attack):
    """Train a student on images that a generator makes, and the generator to widen the gap of victim and student.

    A generator's step asks about a batch of its images and, for each image, about ``directions`` neighbors at a
    distance of ``step``. The forward differences estimate the gradient of the gap, which is followed upward. A
    student's step asks about a new batch and lowers the gap. An image x is (tanh(v) + 1) / 2 of the generator's output
    v, and neighbors are neighbors of v, so that all queries lie in [0, 1]. Every query is charged, those about
    neighbors, too; the last round takes what the budget has left for steps of the student.

    The student is the stolen model; it has the architecture and initial weights of the knockoff, and the attack's own
    recipe instead of the knockoff's. It is in eval mode for the differences, so that the gap of an image does not
    depend on others; they are always computed in float32, of which they are near the limit. An API that rounds images
    or answers hides them: see the column ``answers_unmoved``.

    Args:
        batch_size: images per step.
        student_steps: steps of the student in a round, after one step of the generator.
        directions: random directions per image (m).
        step: length of a step along a direction, over all pixels.
        noise: size of the generator's input, standard normal noise.
        width: channels of the generator's last hidden layer; the others have twice as many.
        learning_rate: the student's first learning rate.
        generator_learning_rate: the generator's first learning rate.
    """

    needs_pool = False
    recovers_early = True
    trains_itself = True
    reuses: ClassVar[bool] = False  # whether the student also learns the answers about a generator step's images
    recorded_schedule: ClassVar[str] = "step"  # of Trainer's, the nearest to ``factor``
    schema = (
        Column("queries_gradients", "whole number", "queries", "spent on the generator's forward differences"),
        Column("queries_training", "whole number", "queries", "spent on the images that the student was trained on"),
        Column("answers_unmoved", "number", "[0, 1]", "share of neighbors that were answered as their image was"),
        Column("answers_with_zeros", "number", "[0, 1]", "share of answers with a class of probability 0"),
    )
    batch_size: int = 256
    student_steps: int = 5
    directions: int = 1
    step: float = 1e-3
    noise: int = 256
    width: int = 64
    learning_rate: float = 0.1
    generator_learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "student_steps", "directions", "noise", "width"):
            check_number(f"attack.{name}", getattr(self, name), 1, whole=True)
        for name in ("step", "learning_rate", "generator_learning_rate"):
            check_number(f"attack.{name}", getattr(self, name), 1e-9)

    @abstractmethod
    def gap(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return how far the student's logits (B, K) are from the targets, posteriors (B, K), for each image, (B,)."""

    @abstractmethod
    def factor(self, share: float) -> float:
        """Return the factor of both learning rates once a share of the budget, in [0, 1], is spent."""

    @abstractmethod
    def generator_optimizer(self, generator: nn.Module) -> Optimizer:
        """Return the generator's optimizer."""

    def memory(self, api: BlackBox, classes: int) -> Memory | None:
        """Return where images and answers are kept for ``replay_steps``; None if nothing is replayed."""
        return None

    @property
    def replays(self) -> int:
        """Steps of the student on earlier images in a round."""
        return 0

    @property
    def round_cost(self) -> int:
        """Queries of a whole round."""
        return self.batch_size * (1 + self.directions + self.student_steps - self.reuses)

    def run(self, api: BlackBox, pool: Images | None, adversary: Adversary) -> Stolen:
        """Spend the API's whole budget.

        Raises:
            DivergedError: if the student's loss or weights are not finite.
        """
        duel, budget = Duel(self, api, adversary), api.budget or 0
        found = adversary.resume(api)
        if found is not None:
            duel.load(found)
        saved = time.monotonic()
        with bar(f"attack {self.name}", budget) as progress:
            progress(api.queries, "", None)
            while api.queries < budget:
                before = api.queries
                loss = duel.round(budget)
                progress(api.queries - before, f"round {duel.turn}", loss)
                if time.monotonic() - saved > SAVE_SECONDS and api.queries < budget:
                    adversary.save(api, **duel.state())
                    saved = time.monotonic()
        if not all(value.isfinite().all() for value in duel.student.state_dict().values()):
            raise self.diverged(api)
        precision = adversary.knockoff.trainer.precision
        return Stolen(duel.student.eval(), columns=duel.columns(), trainer=self.trainer(precision))

    def trainer(self, precision: str) -> Trainer:
        """Return the student's recipe, for the record: each image is seen once, but for those that are replayed."""
        return Trainer(
            epochs=1,
            batch_size=self.batch_size,
            optimizer="momentum",
            learning_rate=self.learning_rate,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            schedule=self.recorded_schedule,
            precision=precision,
        )

    def diverged(self, api: BlackBox) -> DivergedError:
        """Return the error of a student that diverged."""
        return DivergedError(
            f"the student of attack {self.name} diverged within {api.queries} of {api.budget} queries: "
            f"lower attack.learning_rate={self.learning_rate:g}"
        )


class Duel:
    """The generator and the student of one run, with what was counted; ``state`` and ``load`` save and restore them."""

    def __init__(self, attack: DataFree, api: BlackBox, adversary: Adversary) -> None:
        self.attack, self.api, self.adversary, self.device = attack, api, adversary, adversary.device
        with seeded(adversary.seed, "generator"):
            made = ImageGenerator(adversary.shape, attack.noise, attack.width)
        self.generator = place(made, self.device).train()
        self.student = place(adversary.untrained(), self.device)
        self.uphill = attack.generator_optimizer(self.generator)
        self.downhill = SGD(
            self.student.parameters(),
            lr=attack.learning_rate,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.rates = (attack.generator_learning_rate, attack.learning_rate)
        self.memory = attack.memory(api, adversary.classes)
        self.counts = dict.fromkeys(("neighbors", "unmoved", "zeros", "gradients"), torch.zeros((), dtype=torch.int64))
        self.turn = 0

    def round(self, budget: int) -> Tensor | None:
        """Take one step of the generator, if the budget allows a whole round, and some of the student; return a loss.

        Every draw is seeded by the number of the round, so that a run that was stopped goes on alike.
        """
        attack, left = self.attack, budget - self.api.queries
        draw = torch.Generator(self.device)
        draw.manual_seed(derive(self.adversary.seed, f"round {self.turn}"))
        factor = attack.factor(self.api.queries / budget)
        for optimizer, rate in zip((self.uphill, self.downhill), self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = factor * rate
        loss = None
        with seeded(self.adversary.seed, f"dropout of round {self.turn}"):
            known = self.widen(draw) if left >= attack.round_cost else None
            if known is not None and attack.reuses:
                loss = self.learn(*known)
            # The last round also takes what is less than a round, in batches of equal size.
            fresh = attack.batch_size * (attack.student_steps - attack.reuses)
            count = budget - self.api.queries if left < 2 * attack.round_cost else fresh
            for size in sizes(count, attack.batch_size):
                images = self.imagined(size, draw)
                loss = self.learn(images, self.asked(images)[1])
            if self.memory is not None:
                for _ in range(attack.replays):
                    loss = self.fit(*self.memory.drawn(attack.batch_size, draw, self.device))
        if loss is not None and not loss.isfinite():
            raise attack.diverged(self.api)
        self.turn += 1
        return loss

    def asked(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Query the API; return the answers (B, K), and what the recovery makes of them."""
        answers = self.api(images)
        self.counts["zeros"] = self.counts["zeros"] + (answers == 0).any(dim=1).sum()
        return answers, self.adversary.recovered(answers, images)

    @torch.no_grad()
    def imagined(self, count: int, draw: torch.Generator) -> Tensor:
        """Return new images of the generator, (B, C, H, W) in [0, 1]."""
        return to_images(self.generated(count, draw))

    def generated(self, count: int, draw: torch.Generator) -> Tensor:
        """Return the generator's output for new noise, float32 (B, C, H, W)."""
        noise = torch.randn(count, self.attack.noise, generator=draw, device=self.device)
        with self.fast():
            return self.generator(noise).float()

    def fast(self) -> AbstractContextManager[Any]:
        """Return the context of forward passes in the trainer's precision: all but those of the differences."""
        low = self.adversary.knockoff.trainer.arithmetic(self.device) == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=low)

    def widen(self, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Take one step of the generator; return its images and the targets of their answers."""
        attack, many = self.attack, self.attack.batch_size
        made = self.generated(many, draw)
        with torch.no_grad():
            along = unit_directions(attack.directions, made, draw)
            every = torch.cat([made.unsqueeze(0), made + attack.step * along]).flatten(0, 1)
            images = to_images(every).contiguous(memory_format=torch.channels_last)
            answers, targets = self.asked(images)
            gaps = attack.gap(self.student.eval()(images), targets).view(-1, many)
            same = (answers.view(-1, *answers[:many].shape) == answers[:many]).all(dim=2)[1:]
            gradient = forward_differences(gaps, along, attack.step)
        self.counts["unmoved"] = self.counts["unmoved"] + same.sum()
        self.counts["neighbors"] = self.counts["neighbors"] + same.numel()
        self.counts["gradients"] = self.counts["gradients"] + len(images) - attack.reuses * many
        self.uphill.zero_grad()
        made.backward(-gradient / many)
        self.uphill.step()
        return images[:many], targets[:many]

    def learn(self, images: Tensor, targets: Tensor) -> Tensor:
        """Train the student on new answers, and keep them if some are replayed; return the loss."""
        if self.memory is not None:
            self.memory.add(images, targets)
        return self.fit(images, targets)

    def fit(self, images: Tensor, targets: Tensor) -> Tensor:
        """Take one step of the student; return the loss before it."""
        self.student.train(len(images) > 1)  # batch norm has no statistics of one image
        with self.fast():
            logits = self.student(images)
        loss = self.attack.gap(logits.float(), targets).mean()
        self.downhill.zero_grad()
        loss.backward()
        self.downhill.step()
        return loss.detach()

    def columns(self) -> dict[str, Any]:
        """Return the record's columns."""
        counts = {name: int(value) for name, value in self.counts.items()}
        total = self.api.queries
        return {
            "queries_gradients": counts["gradients"],
            "queries_training": total - counts["gradients"],
            "answers_unmoved": counts["unmoved"] / counts["neighbors"] if counts["neighbors"] else None,
            "answers_with_zeros": counts["zeros"] / total,
        }

    def parts(self) -> dict[str, Any]:
        """Return what has a state dict."""
        parts = {"generator": self.generator, "student": self.student, "uphill": self.uphill, "downhill": self.downhill}
        return parts if self.memory is None else {**parts, "memory": self.memory}

    def state(self) -> dict[str, Any]:
        """Return all that determines the rounds to come."""
        return {"turn": self.turn, "counts": self.counts, **{n: part.state_dict() for n, part in self.parts().items()}}

    def load(self, found: dict[str, Any]) -> None:
        """Go on from a ``state``."""
        self.turn, self.counts = found["turn"], {name: value.to(self.device) for name, value in found["counts"].items()}
        for name, part in self.parts().items():
            part.load_state_dict(found[name])


def sizes(count: int, most: int) -> list[int]:
    """Return the sizes of the fewest batches of at most ``most`` images, which differ by at most one."""
    parts = -(-count // most)
    return [(count + place) // parts for place in range(parts)]
