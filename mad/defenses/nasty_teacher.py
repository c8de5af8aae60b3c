"""Nasty teacher (Ma et al., ICLR 2021, "Undistillable"): a victim that is trained to answer unlike a normal network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mad.datasets import Split
from mad.defenses.base import Context, Defense
from mad.errors import MadError, check_flag, check_number
from mad.training import Trainer
from mad.victim import Victim

FEW = 10  # up to as many classes the paper's temperature is that of CIFAR-10


@dataclass(frozen=True)
class NastyTrainer(Trainer):
    """A recipe that minimizes the cross-entropy and maximizes the divergence from a fixed network.

    Args:
        omega: weight of the divergence.
        temperature: temperature T of both posteriors in the divergence.
        adversary: the fixed network, in eval mode, images in [0, 1] to logits (B, K).
    """

    omega: float = 0.01
    temperature: float = 4.0
    adversary: nn.Module | None = field(default=None, compare=False, repr=False)

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return a batch's mean cross-entropy - omega T^2 KL(model || adversary), with the KL at temperature T."""
        assert self.adversary is not None
        logits = self.logits(model, images)
        with torch.no_grad():
            normal = self.logits(self.adversary, images)
        return F.cross_entropy(logits, targets) - self.omega * self.temperature**2 * divergence(
            logits / self.temperature, normal / self.temperature
        )


def divergence(logits: Tensor, others: Tensor) -> Tensor:
    """Return the mean of KL(p || q), p and q the posteriors of two tensors of logits (B, K)."""
    found, normal = F.log_softmax(logits, dim=1), F.log_softmax(others, dim=1)
    return F.kl_div(normal, found, reduction="batchmean", log_target=True)


@dataclass
class NastyTeacher(Defense):
    """Serve a network whose wrong classes mislead whoever distills it; its answers are left as they are.

    The network is of the victim's architecture and trained with the victim's recipe on its training images. It
    minimizes the mean of CE(y, p) - omega T^2 KL(p_T || q_T): p is its own posterior, q that of a fixed adversarial
    network, here the normally trained victim, and T their temperature. The divergence grows mostly in the wrong
    classes, so that the accuracy falls little; the answers also become less sure.

    The paper's student has the labels of the training images, too. Here an adversary has other images and answers only.

    It is trained once for each setting and stored like a victim.

    Args:
        epsilon: None: there is no L1 budget.
        omega: weight of the divergence, at least 0; larger is stronger. The published code has 0.04 for CIFAR-10,
            0.005 for CIFAR-100 and 0.01 for Tiny-ImageNet.
        temperature: T, at least 0.1; None for the paper's: 4 up to 10 classes (CIFAR-10), 20 for more (CIFAR-100).
        from_victim: start from the victim's weights; False starts from new ones, as the published code does.
        epochs: passes over the training images; None for the victim's.
    """

    name = "nasty_teacher"
    strength_parameter = "omega"
    epsilon: float | None = None
    omega: float = 0.01
    temperature: float | None = None
    from_victim: bool = False
    epochs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epsilon:
            raise MadError(
                f"defense=nasty_teacher has no L1 budget, got defense.epsilon={self.epsilon:g}: turn defense.omega"
            )
        check_number("defense.omega", self.omega, 0)
        check_number("defense.temperature", 1 if self.temperature is None else self.temperature, 0.1)
        check_number("defense.epochs", 1 if self.epochs is None else self.epochs, 1, whole=True)
        check_flag("defense.from_victim", self.from_victim)

    def check(self, victim: Victim) -> None:
        """Raise MadError if the victim is given and cannot be trained anew."""
        victim.check_trainable("defense=nasty_teacher")

    def trainer(self, victim: Victim, adversary: nn.Module | None) -> NastyTrainer:
        """Return how the served network is trained against an adversarial network."""
        few = victim.dataset.classes <= FEW
        temperature = self.temperature or (4.0 if few else 20.0)
        recipe = victim.trainer.but(epochs=self.epochs)
        return NastyTrainer.like(recipe, temperature=temperature, omega=self.omega, adversary=adversary)

    def trainings(self, victim: Victim) -> float:
        """Return the measured factor of its steps, times the epochs that it takes."""
        return 1.4 * (self.epochs or victim.trainer.epochs) / victim.trainer.epochs

    def serve(self, context: Context) -> nn.Module:
        """Return the nasty teacher, trained or loaded."""

        def fit(network: nn.Module, split: Split, how: dict[str, Any]) -> None:
            if self.from_victim:
                network.load_state_dict(context.model.state_dict())
            self.trainer(context.victim, context.model).fit(network, split.images, split.labels, **how)

        return context.retrained(self.name, self, fit)

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return the posteriors of the nasty teacher unchanged."""
        return clean
