"""MAZE, model stealing by zeroth-order gradient estimation (Kariyappa, Prakash and Qureshi, CVPR 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from mad.api import BlackBox
from mad.attacks.data_free import MOMENTUM, WEIGHT_DECAY, DataFree
from mad.attacks.memory import Memory
from mad.datasets.base import IN_MEMORY
from mad.errors import check_number


@dataclass(frozen=True)
class Maze(DataFree):
    """Steal without data: the gap is KL(victim || student), and the student also learns earlier answers again.

    In each round, steps on new answers are followed by steps on answers drawn from all that were given so far (on the
    latest batch of each round in the published code). As there, the first step of the student takes the images of the
    generator's step, whose answers are known. Both networks are trained by SGD with momentum, at rates that fall to 0
    by half a cosine. A class of probability 0 adds nothing to the gap.

    The published budgets are 5 million queries for Fashion-MNIST and SVHN and 30 million for CIFAR-10 and GTSRB; the
    generator's published rate is 1e-4, and 1e-3 for Fashion-MNIST.

    Args:
        replay_steps: steps of the student on earlier answers in a round.
        replay_size: the most images that are kept for them, the latest; fewer if they take more than a gigabyte.
    """

    name = "maze"
    reuses: ClassVar[bool] = True
    recorded_schedule: ClassVar[str] = "cooldown"
    batch_size: int = 128
    directions: int = 10
    noise: int = 100
    replay_steps: int = 10
    replay_size: int = 50_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("attack.replay_steps", self.replay_steps, 0, whole=True)
        check_number("attack.replay_size", self.replay_size, 1, whole=True)

    @property
    def amended(self) -> str | None:
        """As of every attack; and a small memory once mixed up images and targets."""
        mixed = "a memory of less than a batch" if self.replay_size < self.batch_size else None
        return "; ".join(filter(None, [super().amended, mixed])) or None

    @property
    def replays(self) -> int:
        """Steps of the student on earlier images in a round."""
        return self.replay_steps

    def gap(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return KL(targets || softmax of the logits), (B,), in nats."""
        return F.kl_div(logits.log_softmax(dim=1), targets, reduction="none").sum(dim=1)

    def factor(self, share: float) -> float:
        """Return the factor of both rates, from 1 to 0 by half a cosine."""
        return (1 + math.cos(math.pi * share)) / 2

    def generator_optimizer(self, generator: nn.Module) -> Optimizer:
        """Return SGD with momentum."""
        fused = next(generator.parameters()).device.type in ("cpu", "cuda")
        return SGD(
            generator.parameters(),
            lr=self.generator_learning_rate,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            fused=fused,
        )

    def memory(self, api: BlackBox, classes: int) -> Memory | None:
        """Return where images and answers are kept."""
        if not self.replay_steps:
            return None
        most = IN_MEMORY // (2 * math.prod(api.shape) + 4 * classes)
        return Memory(max(1, min(self.replay_size, most, api.budget or 1)), api.shape, classes)
