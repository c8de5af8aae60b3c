"""Data-free model extraction, DFME (Truong, Maini, Walls and Papernot, CVPR 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from mad.attacks.data_free import DataFree
from mad.errors import check_number

DECAYS = (0.1, 0.3, 0.5)  # shares of the budget after which both rates are multiplied by DECAY
DECAY = 0.3


@dataclass(frozen=True)
class Dfme(DataFree):
    """Steal without data: the gap of victim and student is the L1 distance of their logits, a mean over the classes.

    The victim's logits are recovered from its answer as log p minus the mean of log p over the classes, exact up to a
    constant that softmax ignores. A probability below ``floor`` counts as that, since the logarithm of 0, with which
    rounding and labels answer, is no logit. Of such answers L1 fits the median, which is the same for all images where
    each class is absent from most answers: with labels only, this attack learns next to nothing.

    The published recipe is 2 million queries for SVHN and 20 million for CIFAR-10, ResNet-18 from ResNet-34.

    Args:
        floor: the least probability of which the logarithm is taken.
    """

    name = "dfme"
    floor: float = 1e-7

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("attack.floor", self.floor, 1e-37, 0.1)

    def gap(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the classes of |student's logit - victim's|, (B,)."""
        return (logits - recovered_logits(targets, self.floor)).abs().mean(dim=1)

    def factor(self, share: float) -> float:
        """Return the factor of both rates: 0.3 for each of ``DECAYS`` that is passed."""
        return DECAY ** sum(share >= each for each in DECAYS)

    def generator_optimizer(self, generator: nn.Module) -> Optimizer:
        """Return Adam."""
        fused = next(generator.parameters()).device.type in ("cpu", "cuda")
        return Adam(generator.parameters(), lr=self.generator_learning_rate, fused=fused)


def recovered_logits(answers: Tensor, floor: float) -> Tensor:
    """Return the logits (B, K), of mean 0, whose softmax is the answers (B, K), none of them below ``floor``."""
    logs = answers.clamp(min=floor).log()
    return logs - logs.mean(dim=1, keepdim=True)
