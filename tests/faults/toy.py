"""Parts for the fault tests: seconds for a whole sweep. Every training is written to the file that TOY_LOG names."""

import os
from dataclasses import dataclass

import torch
from torch import nn

from mad import testing
from mad.training import Trainer


@dataclass(frozen=True)
class Blobs(testing.Blobs):
    """The same, smaller."""

    shape: tuple[int, int, int] = (1, 4, 4)
    size: int = 120
    name: str = "toy"


class Linear(nn.Module):
    """One linear layer."""

    def __init__(self, shape, classes):
        super().__init__()
        self.head = nn.Linear(torch.Size(shape).numel(), classes)

    def forward(self, images):
        return self.head(images.flatten(1))


class Odd(Linear):
    """Logits that end in what ``last`` says: NaN, an infinity, or an exact zero and one."""

    def __init__(self, shape, classes, last):
        super().__init__(shape, classes)
        self.last = float(last)

    def forward(self, images):
        return torch.cat([super().forward(images)[:, 1:], torch.full((len(images), 1), self.last)], dim=1)


@dataclass(frozen=True)
class Logged(Trainer):
    """A trainer whose every finished training is a line of the log."""

    def fit(self, model, images, targets, *, seed, task, **how):
        super().fit(model, images, targets, seed=seed, task=task, **how)
        if "TOY_LOG" in os.environ:
            with open(os.environ["TOY_LOG"], "a") as log:
                log.write(f"{os.getpid()} {task} {seed}\n")
