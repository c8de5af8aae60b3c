"""Several defenses, one after the other, within one budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from mad.defenses.base import Context, Defense, answering
from mad.errors import MadError
from mad.schema import Column, merged
from mad.seeds import derive
from mad.transfer import TransferSet
from mad.victim import Architecture, Victim


@dataclass
class Chain(Defense):
    """Apply defenses in order: each sees the images, and the answers of the one before it as the clean posteriors.

    A part's own budget is around the answers that it sees, the chain's ``epsilon`` around the victim's clean ones. Of
    two parts of one class, the first draws from the cell's seed as it does alone, the others from seeds of their own.

    One part may serve another model than the victim, wherever it stands in the order: all parts then work on that
    model's answers.

    Args:
        epsilon: L1 budget in [0, 2] of the whole chain; None for no budget but those of the parts.
        parts: the defenses in the order in which they are applied. On the command line also names of choices, or names
            with changed settings: ``'defense.parts=[{mad_argmax: {epsilon: 0.5}}, prada]'``.
    """

    name = "chain"
    epsilon: float | None = None
    parts: Sequence[Defense] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.parts, (str, Defense)) or not isinstance(self.parts, Sequence) or not self.parts:
            raise MadError(f"defense.parts must be a list of defenses, such as [mad_argmax, prada], got {self.parts!r}")
        for part in self.parts:
            if not isinstance(part, Defense):
                raise MadError(f"defense.parts must hold defenses, got {part!r} of type {type(part).__name__}")
        self.parts = tuple(self.parts)
        _ = self.schema  # raises if two parts add a column of one name

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        """Whether any part is."""
        return any(part.stateful for part in self.parts)

    @property
    def needs_gradients(self) -> bool:  # type: ignore[override]
        """Whether any part does; each runs as it asks for."""
        return any(part.needs_gradients for part in self.parts)

    @property
    def needs_validation(self) -> bool:  # type: ignore[override]
        """Whether any part does."""
        return any(part.holds_out for part in self.parts)

    @property
    def max_batch(self) -> int | None:  # type: ignore[override]
        """The smallest of the parts' numbers."""
        return min((part.max_batch for part in self.parts if part.max_batch is not None), default=None)

    @property
    def honest_queries(self) -> int:  # type: ignore[override]
        """The largest of the stateful parts' numbers."""
        return max((part.honest_queries for part in self.parts if part.stateful), default=Defense.honest_queries)

    @property
    def schema(self) -> tuple[Column, ...]:  # type: ignore[override]
        """The columns of all parts."""
        names = [f"part {number} of defense=chain, {part.name}," for number, part in enumerate(self.parts, 1)]
        columns = [{each.name: each for each in part.schema} for part in self.parts]
        return tuple(merged(dict(zip(names, columns, strict=True))).values())

    def components(self) -> tuple[Defense, ...]:
        """Return the defenses in the chain, and those of chains in it."""
        return tuple(each for part in self.parts for each in part.components())

    def settled(self, victim: Victim) -> Defense:
        """Return the chain of the parts as they are for a victim."""
        return replace(self, parts=tuple(part.settled(victim) for part in self.parts))

    def serving(self) -> list[Defense]:
        """Return the parts that serve another model than the victim."""
        return [each for each in self.components() if each.serves_another()]

    def serves_another(self) -> bool:
        """Return whether a part serves another model than the victim."""
        return bool(self.serving())

    def most_costs(self) -> tuple[float, float]:
        """Return the sums of what the parts' guarantees allow."""
        costs = [part.most_costs() for part in self.parts]
        return min(1.0, sum(loss for loss, _ in costs)), min(2.0, sum(moved for _, moved in costs))

    @property
    def amended(self) -> str | None:
        """See ``mad.storage.fingerprint``: the parts of chains in a chain once drew on the same keys as others."""
        return "keys of chains in chains" if any(isinstance(part, Chain) for part in self.parts) else None

    def check(self, victim: Victim) -> None:
        """Raise MadError if a part cannot guard the victim, or if two parts serve a model of their own."""
        if len(serving := self.serving()) > 1:
            names = " and ".join(each.name for each in serving)
            raise MadError(f"{names} each serve a model of their own, and the API runs one: take one of them")
        for part in self.parts:
            part.check(victim)

    def prepare(self, context: Context) -> None:
        """Prepare each part for the model that is served."""
        seen: Counter[type] = Counter()
        ready = []
        for part in self.parts:
            kinds = [*map(type, part.components()), *([type(part)] if isinstance(part, Chain) else [])]
            twin = max(seen[kind] for kind in kinds)
            own = replace(context, seed=derive(context.seed, f"part {twin}") >> 1) if twin else context
            ready.append(part.prepared(own))
            seen.update(kinds)
        self._parts: tuple[Defense, ...] = tuple(ready)

    def held(self) -> tuple[Defense, ...]:
        """Return the prepared parts."""
        return self._parts

    def begin(self) -> None:
        """Begin a session of each stateful part."""
        self._parts = tuple(part.session() for part in self._parts)

    @property
    def suspect(self) -> bool:
        """Whether a part holds the client for a thief."""
        return any(part.suspect for part in self._parts)

    def remembered(self) -> Any:
        """Return the memories of all parts; None if no part has one."""
        found = [part.remembered() for part in self._parts]
        return None if all(each is None for each in found) else found

    def recall(self, remembered: Any) -> None:
        """Go on from the memories of the parts of another session."""
        if not isinstance(remembered, list) or len(remembered) != len(self._parts):
            raise MadError(
                f"defense=chain cannot go on from {remembered!r}: it is no memory of {len(self._parts)} parts"
            )
        for part, own in zip(self._parts, remembered, strict=True):
            if own is not None:
                part.recall(own)

    def serve(self, context: Context) -> nn.Module:
        """Return the model of the part that serves one, else the victim's."""
        return next((part.serve(context) for part in self.serving()), context.model)

    def served_architecture(self, victim: Victim) -> Architecture:
        """Return what builds that model."""
        return next((part.served_architecture(victim) for part in self.serving()), super().served_architecture(victim))

    def columns(self, context: Context) -> dict[str, Any]:
        """Return the columns of all parts."""
        return joined(part.columns(context) for part in self._parts)

    def session_columns(self) -> dict[str, Any]:
        """Return the columns of all parts about this session."""
        return joined(part.session_columns() for part in self._parts)

    def accounts_columns(self, sessions: Sequence[Any]) -> dict[str, Any]:
        """Return the columns of all parts about the sessions of a thief's accounts."""
        return joined(
            part.accounts_columns([each.held()[number] for each in sessions]) for number, part in enumerate(self._parts)
        )

    def honest_columns(self, sessions: Sequence[Any]) -> dict[str, Any]:
        """Return the columns of all parts about honest traffic."""
        return joined(
            part.honest_columns([each.held()[number] for each in sessions] if part.stateful else [part])
            for number, part in enumerate(self._parts)
        )

    def verify(self, network: nn.Module, transfer: TransferSet, context: Context) -> dict[str, Any]:
        """Return the columns of all parts about a stolen network."""
        return joined(part.verify(network, transfer, context) for part in self._parts)

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return the answers (B, K) of the last part."""
        answers = clean
        with answering(images, clean):
            for part in self._parts:
                answers = part(images, answers)
        return answers


def joined(parts: Any) -> dict[str, Any]:
    """Return all columns in one dict; their names differ."""
    return {name: value for columns in parts for name, value in columns.items()}
