"""The contract of a defense, and the one place that keeps its promises."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, final

import torch
from torch import Tensor, nn

from mad import plugins, simplex
from mad.cache import Cache
from mad.cached_network import CachedNetwork
from mad.errors import MadError, check_number
from mad.progress import err

if TYPE_CHECKING:
    from mad.adversary import Adversary
    from mad.storage.store import Store
    from mad.victim import Victim

Self = TypeVar("Self", bound="Defense")
EPSILON_MAX = 2.0  # the L1 diameter of the simplex


@dataclass(frozen=True)
class Context:
    """What a defense is given when it is prepared or served.

    Args:
        victim: the recipe of the victim it guards.
        model: that victim, trained, in eval mode on ``device``; in ``prepare``, the model that is served.
        seed: the cell's; derive one per purpose from it (``mad.seeds``).
        device: where to compute.
        store: keeps what is trained; None trains anew each time.
        memo: what cells of one process share; None shares nothing.
        adversary: who is about to steal: for white-box studies alone.
    """

    victim: Victim
    model: nn.Module
    seed: int
    device: torch.device
    store: Store | None = None
    memo: Cache | None = None
    adversary: Adversary | None = None

    def trained(self, recipe: Victim) -> nn.Module:
        """Return the network of a recipe, in eval mode: trained once, and kept as victims are."""
        return recipe.train(self.device) if self.store is None else self.store.victim(recipe, self.device)[0]

    def remembered(self, network: nn.Module, about: Any) -> nn.Module:
        """Return a network in eval mode that no longer changes, run once over each batch where cells share."""
        return network if self.memo is None else CachedNetwork(network, about, self.memo)


@dataclass
class Defense(ABC):
    """Perturbs posteriors. An author writes ``perturb``; calling the defense keeps the promises.

    Args:
        epsilon: L1 budget in [0, 2]; None for a baseline without one, whose L1 is then only measured.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    strength_parameter: ClassVar[str] = (
        "epsilon"  # the field that is turned to trade utility for protection: a curve's points
    )
    epsilon: float | None

    def __post_init__(self) -> None:
        if self.epsilon is not None:
            check_number("defense.epsilon", self.epsilon, 0, EPSILON_MAX)

    @property
    def strength(self) -> float | None:
        """Where the strength parameter stands; None where there is nothing to turn."""
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
        """Build what ``perturb`` needs (a surrogate, a noise key); by default nothing."""

    def serve(self, context: Context) -> nn.Module:
        """Return the model that is served; a defense that acts at training time returns another than the victim."""
        return context.model

    def facts(self, context: Context) -> dict[str, Any]:
        """Return further columns of the record: numbers or one line of text, under names of their own."""
        return {}

    @abstractmethod
    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return what to answer, float (B, K); images (B, C, H, W) in [0, 1], clean posteriors (B, K)."""

    @final
    @torch.no_grad()
    def __call__(self, images: Tensor, clean: Tensor) -> Tensor:
        """Answer with posteriors: finite, on the simplex, within ``epsilon`` of ``clean`` in L1.

        Rows of ``perturb`` that are not finite, or have no mass, are answered with the clean ones; that is said once.

        Raises:
            MadError: if a row of ``clean`` is no posterior, or ``perturb`` returns anything but as many rows; nothing
                wrong is passed on.
        """
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
            said = f"{who} returned NaN, infinities or zeros alone for {lost} of {len(clean)} images"
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
