"""The contract of a defense, and the one place that keeps its promises."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, final

import torch
from torch import Tensor, nn

from mad import plugins, simplex
from mad.context import Context
from mad.errors import MadError, check_number
from mad.progress import err
from mad.schema import Column
from mad.victim import Victim

Self = TypeVar("Self", bound="Defense")
EPSILON_MAX = 2.0  # the L1 diameter of the simplex


@dataclass
class Defense(ABC):
    """Perturbs posteriors. An author writes ``perturb``; calling the defense keeps the promises.

    Args:
        epsilon: L1 budget in [0, 2]; None for a baseline without one, whose L1 is then only measured.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    strength_parameter: ClassVar[str] = "epsilon"  # the field that trades utility for protection: a curve's points
    stateful: ClassVar[bool] = False  # whether answers depend on what a client asked before: on order and batches
    needs_gradients: ClassVar[bool] = False  # whether perturb takes gradients; else it runs without recording them
    max_batch: ClassVar[int | None] = None  # the most images that perturb takes at once; None for any number
    schema: ClassVar[tuple[Column, ...]] = ()  # the columns that it adds to a record
    epsilon: float | None

    def __post_init__(self) -> None:
        if self.epsilon is not None:
            check_number("defense.epsilon", self.epsilon, 0, EPSILON_MAX)

    @property
    def strength(self) -> float | None:
        """The value of the strength parameter; None where there is no such setting."""
        value = getattr(self, self.strength_parameter)
        return None if value is None else float(value)

    def check(self, victim: Victim) -> None:  # noqa: B027
        """Raise MadError for a victim this defense cannot guard, before anything is trained; by default never."""

    @final
    def prepared(self: Self, context: Context) -> Self:
        """Return a copy that is bound to a trained victim and ready to be called."""
        ready = copy.copy(self)
        ready.prepare(context)
        return ready

    def prepare(self, context: Context) -> None:  # noqa: B027
        """Build what ``perturb`` needs (a surrogate, a noise key); by default nothing. Networks: ``context.kept``."""

    @final
    def session(self: Self) -> Self:
        """Return a prepared defense for one client of whom nothing is known: this one, unless it is ``stateful``."""
        if not self.stateful:
            return self
        fresh = copy.copy(self)
        fresh.begin()
        return fresh

    def begin(self) -> None:  # noqa: B027
        """Set up what a ``stateful`` defense remembers of one client; what all clients share is made in ``prepare``."""

    def serve(self, context: Context) -> nn.Module:
        """Return the model that is served; a defense that acts at training time returns another than the victim."""
        return context.model

    def columns(self, context: Context) -> dict[str, Any]:
        """Return further columns of the record, under names that ``schema`` explains."""
        return {}

    @abstractmethod
    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return what to answer, float (B, K); images (B, C, H, W) in [0, 1], clean posteriors (B, K)."""

    @final
    def __call__(self, images: Tensor, clean: Tensor) -> Tensor:
        """Answer with posteriors: finite, on the simplex, within ``epsilon`` of ``clean`` in L1.

        Rows of ``perturb`` that are not finite, or have no mass, are answered with the clean ones; that is said once.

        Raises:
            MadError: if a row of ``clean`` is no posterior, or ``perturb`` returns anything but as many rows; nothing
                wrong is passed on.
        """
        with torch.set_grad_enabled(self.needs_gradients):
            return self._answered(images, clean)

    def _answered(self, images: Tensor, clean: Tensor) -> Tensor:
        if not simplex.are_posteriors(clean):
            raise MadError("the victim answered with NaN, infinities or rows off the simplex; check the victim")
        if self.epsilon == 0:
            return clean
        who, given = f"defense {self.name}: perturb", (images, clean)
        before = plugins.versions(given)
        found = plugins.like(who, self.perturb(images, clean), clean)
        plugins.unchanged(who, before, given)
        answer, lost = simplex.repair(found, clean)
        if lost and not getattr(self, "_said", False):
            self._said = True  # once a cell
            said = f"{who} returned NaN, infinities or only zeros for {lost} of {len(clean)} images"
            err.print(f"{said}: these get clean answers", soft_wrap=True, markup=False)
        return answer if self.epsilon is None else simplex.shrink(answer, clean, self.epsilon)


@dataclass
class Undefended(Defense):
    """The API as it is: every answer is the clean posterior."""

    name = "none"
    epsilon: float | None = 0.0

    def __post_init__(self) -> None:
        if self.epsilon != 0:
            raise MadError(f"defense=none perturbs nothing and takes no epsilon but 0, got {self.epsilon!r}")

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return the clean posteriors."""
        return clean
