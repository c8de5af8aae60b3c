"""A surrogate for MAD that its owner trains on images which neither the victim nor an adversary has seen.

mad-run --config-dir conf defense=mad defense/surrogate=private victim.validation=0.1
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mad.defenses import Context
from mad.defenses.surrogates import Surrogate
from mad.errors import check_number
from mad.victim import Victim


@dataclass(frozen=True)
class PrivateSurrogate(Surrogate):
    """The victim's architecture, trained on the images that the victim holds out (``victim.validation``).

    Args:
        epochs: passes over those images.
    """

    name = "private"
    needs_validation = True
    epochs: int = 10

    def __post_init__(self) -> None:
        check_number("defense.surrogate.epochs", self.epochs, 1, whole=True)

    def check(self, victim: Victim) -> None:
        """Refuse a victim that holds no images out."""
        victim.validation_split()

    def build(self, context: Context) -> nn.Module:
        """Train the surrogate once; later cells with the same settings load it."""
        victim = context.victim
        split = victim.validation_split()
        recipe = victim.trainer.but(epochs=self.epochs)

        def train(model: nn.Module) -> None:
            how = {"seed": context.seed, "device": context.device, "task": "private surrogate"}
            recipe.fit(model, split.images, split.labels, **how)

        return context.kept(
            "private-surrogate",
            [self, victim, context.seed],  # all that determines the weights
            lambda: victim.untrained(seed=context.seed, purpose="private surrogate"),
            train,
        )
