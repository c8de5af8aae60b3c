"""The contract of a defense: the base class, and the checks that every answer passes."""

from __future__ import annotations

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, final

import torch
from torch import Tensor, nn

from mad import plugins, simplex
from mad.context import Context
from mad.errors import MadError, SettingError, check_number
from mad.progress import err
from mad.schema import Column
from mad.transfer import TransferSet
from mad.victim import Architecture, Victim

Self = TypeVar("Self", bound="Defense")
EPSILON_MAX = 2.0  # the L1 diameter of the simplex


@dataclass
class Defense(ABC):
    """Base class of defenses, which perturb the victim's posteriors.

    A new defense implements ``perturb``. Calling the defense checks what ``perturb`` returns and enforces the budget.

    Args:
        epsilon: L1 budget in [0, 2]; None for a baseline without a budget, whose L1 distance is only measured.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    strength_parameter: ClassVar[str] = "epsilon"  # the field whose values are the points of a trade-off curve
    stateful: ClassVar[bool] = False  # whether answers depend on a client's earlier queries, or on their batches
    needs_gradients: ClassVar[bool] = False  # whether perturb computes gradients; if not, it runs without autograd
    needs_validation: ClassVar[bool] = False  # whether it is calibrated on images that the victim holds out
    needs_epsilon: ClassVar[bool] = False  # whether it perturbs as far as epsilon allows, which then cannot be None
    max_batch: ClassVar[int | None] = None  # the most images that perturb takes at once; None for any number
    honest_queries: ClassVar[int] = 100  # of one honest client, on which a stateful defense is scored
    schema: ClassVar[tuple[Column, ...]] = ()  # the columns that it adds to a record
    epsilon: float | None

    def __post_init__(self) -> None:
        if self.epsilon is None and self.needs_epsilon:
            what = f"needs a number from 0 to 2: {self.name} perturbs as far as this budget allows; 2 sets no limit"
            raise SettingError("epsilon", f"{what}, got null")
        if self.epsilon is not None:
            check_number("defense.epsilon", self.epsilon, 0, EPSILON_MAX)

    @property
    def strength(self) -> float | None:
        """The value of the strength parameter; None if it is not set."""
        value = getattr(self, self.strength_parameter)
        return None if value is None else float(value)

    @property
    def holds_out(self) -> bool:
        """Whether it, or its surrogate, is calibrated on images that the victim holds out."""
        return self.needs_validation or any(getattr(part, "needs_validation", False) for part in vars(self).values())

    def check(self, victim: Victim) -> None:  # noqa: B027
        """Raise MadError if this defense cannot guard the victim; called before anything is trained."""

    @final
    def prepared(self: Self, context: Context) -> Self:
        """Return a copy that is bound to a trained victim and ready to be called."""
        ready = copy.copy(self)
        ready.prepare(context)
        return ready

    def prepare(self, context: Context) -> None:  # noqa: B027
        """Build what ``perturb`` needs, such as a surrogate or a noise key; by default nothing.

        Train networks with ``context.kept``, so that they are stored and loaded again.
        """

    @final
    def session(self: Self) -> Self:
        """Return the defense for a new client: a fresh copy if it is ``stateful``, otherwise this object."""
        if not self.stateful:
            return self
        fresh = copy.copy(self)
        fresh.begin()
        return fresh

    def begin(self) -> None:  # noqa: B027
        """Set up the per-client state of a ``stateful`` defense; ``prepare`` makes the state that all clients share."""

    @property
    def suspect(self) -> bool:
        """Whether a ``stateful`` defense holds the client of this session for a thief."""
        return False

    def remembered(self) -> Any:
        """Return what this session remembers of its client, of JSON's types, for ``recall``; None if it keeps nothing.

        A server writes it down, so that a restart does not clear a client.
        """
        return None

    def recall(self, remembered: Any) -> None:  # noqa: B027
        """Go on from the ``remembered`` of another session of this defense; called on a new session, if it is not None.

        Raises:
            MadError: if it is no such memory.
        """

    def serve(self, context: Context) -> nn.Module:
        """Return the model that the API serves: the victim, or another one if the defense acts at training time."""
        return context.model

    def serves_another(self) -> bool:
        """Return whether the API runs another model than the victim; by default whether ``serve`` is overridden."""
        return type(self).serve is not Defense.serve

    def served_architecture(self, victim: Victim) -> Architecture:
        """Return what builds the network that ``serve`` returns, for an export; by default the victim's."""
        return victim.rebuilt_by(victim.architecture)

    def most_costs(self) -> tuple[float, float]:
        """Return how much accuracy (a share) and mean L1 honest users may lose by the defense's own guarantee.

        It is for a defense that is calibrated on the validation split, which therefore cannot show its costs; by
        default 0 and 0: the split shows all.
        """
        return 0.0, 0.0

    def trainings(self, victim: Victim) -> float:
        """Return about how many times as long as the victim's training the networks take that ``prepare`` trains.

        It is for ``plan=true`` only. What ``recipe(victim)`` returns is counted without it.
        """
        return 0.0

    def columns(self, context: Context) -> dict[str, Any]:
        """Return the columns that this defense adds to a record, under the names in ``schema``."""
        return {}

    def session_columns(self) -> dict[str, Any]:
        """Return columns of ``schema`` about a client's session; asked of the thief's, after the attack."""
        return {}

    def accounts_columns(self, sessions: Sequence[Any]) -> dict[str, Any]:
        """Return columns of ``schema`` about a thief with several accounts; by default those about the first.

        Args:
            sessions: what ``session`` returned for each account, after the attack.
        """
        columns: dict[str, Any] = sessions[0].session_columns()
        return columns

    def honest_columns(self, sessions: Sequence[Any]) -> dict[str, Any]:
        """Return columns of ``schema`` about honest traffic.

        Args:
            sessions: what ``session`` returned for each honest client, after its queries: ``honest_queries`` each, but
                for the last client, who may have fewer. Without ``stateful`` it is this object alone.
        """
        return {}

    def verify(self, network: nn.Module, transfer: TransferSet, context: Context) -> dict[str, Any]:
        """Return columns of ``schema`` about a stolen network, such as how much of a watermark it has learned.

        It is not called for an attack that returns no transfer set.

        Args:
            network: the stolen network, images in [0, 1] to logits (B, K), in eval mode on ``context.device``.
            transfer: the thief's queries, and what it was answered.
            context: as in ``prepare``.
        """
        return {}

    def settled(self, victim: Victim) -> Defense:
        """Return this defense with the settings that it looks up for a victim; whoever knows the defense knows them."""
        return self

    def components(self) -> tuple[Defense, ...]:
        """Return the defenses that this one is made of, itself if it is one; before ``prepare``, as they are given."""
        return (self,)

    def held(self) -> tuple[Defense, ...]:
        """Return the prepared defenses that this prepared one calls, for an export; by default none."""
        return ()

    @abstractmethod
    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return perturbed posteriors, float (B, K), for images (B, C, H, W) in [0, 1] and clean posteriors (B, K)."""

    @final
    def __call__(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return the answers: posteriors (B, K), finite, on the simplex, within ``epsilon`` of ``clean`` in L1.

        Negative entries of ``perturb`` are set to 0, and rows are rescaled to sum to one. A row that is not finite, or
        has no positive entry, is replaced by the clean row; the first time this happens, a line on stderr says so.

        Raises:
            MadError: if a row of ``clean`` is not a posterior, if ``perturb`` changes its arguments, or if it does not
                return a float tensor of the shape and on the device of ``clean``.
        """
        if not len(clean):  # nothing to perturb, or to compute a gradient of
            return clean
        with torch.set_grad_enabled(self.needs_gradients):
            return self._answered(images, clean)

    def _answered(self, images: Tensor, clean: Tensor) -> Tensor:
        if not simplex.are_posteriors(clean):
            raise MadError("the victim answered with NaN, infinities or rows off the simplex; check the victim")
        if self.epsilon == 0:
            if self.stateful:  # it looks at the queries all the same
                self.perturb(images, clean)
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


_UNDER_WAY = threading.local()


@contextmanager
def answering(images: Tensor, clean: Tensor) -> Iterator[None]:
    """Remember the victim's own answers (B, K) to images while the parts of a chain change them one after another."""
    outer = getattr(_UNDER_WAY, "pair", None)
    _UNDER_WAY.pair = (images, clean) if outer is None or outer[0] is not images else outer
    try:
        yield
    finally:
        _UNDER_WAY.pair = outer


def given(images: Tensor, clean: Tensor) -> Tensor:
    """Return the victim's own answers to images: ``clean`` or, for a part of a chain, what the chain was given."""
    pair = getattr(_UNDER_WAY, "pair", None)
    own: Tensor = clean if pair is None or pair[0] is not images else pair[1]
    return own


@dataclass
class Undefended(Defense):
    """No defense: every answer is the clean posterior."""

    name = "none"
    epsilon: float | None = 0.0

    def __post_init__(self) -> None:
        if self.epsilon != 0:
            raise MadError(f"defense=none perturbs nothing and takes no epsilon but 0, got {self.epsilon!r}")

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return the clean posteriors."""
        return clean
