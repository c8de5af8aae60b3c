"""The promises of plug-ins: what ``mad.testing`` and ``mad-lint`` both check, and the posteriors that both try."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mad import plugins, simplex
from mad.defenses import Defense
from mad.errors import MadError, check_name
from mad.seeds import generator, seeded
from mad.storage.fingerprint import describe, digest

ROWS = 12
MOST = 0.7  # share of rows: of two equally good solutions, rounding may select another
CLOSE = 1e-5  # how much rounding may change a probability
KINDS = ("dirichlet", "one_hot", "uniform", "tied")


def answered(defense: Defense, images: Tensor, clean: Tensor, size: int = ROWS) -> Tensor:
    """Return a defense's answers, in batches of at most ``size`` and of its ``max_batch``."""
    size = min(size, defense.max_batch or size)
    return torch.cat([defense(*part) for part in zip(images.split(size), clean.split(size), strict=True)])


def named(kind: str, part: Any) -> str:
    """Return a part's name for errors; check that it is a valid name, and that the fields determine a fingerprint."""
    check_name(f"{kind}.name", part.name)
    if digest(describe(part)) != digest(describe(copy.copy(part))):
        raise MadError(f"{kind} {part.name}: a copy has another fingerprint: make all that it is a field")
    return f"{kind} {part.name}"


@contextmanager
def untouched(who: str, *parts: Any) -> Iterator[None]:
    """Raise MadError if the block changes tensors or plug-ins, or draws from torch's global generator."""
    before = [part.clone() if isinstance(part, Tensor) else dict(vars(part)) for part in parts]
    with seeded(0, "untouched"):
        state = torch.random.get_rng_state()
        yield
        if not torch.equal(torch.random.get_rng_state(), state):
            raise MadError(f"{who} draws from torch's global generator: use mad.seeds.generator")
    for part, old in zip(parts, before, strict=True):
        if not (torch.equal(part, old) if isinstance(old, Tensor) else vars(part) == old):
            raise MadError(f"{who} changed what it was given: let it work on a copy")


def needs_none(who: str, deployed: Callable[[], object]) -> None:
    """Check that a defense which does not ask for held-out images can be deployed without any.

    Raises:
        MadError: if it cannot, so that no adversary who knows it could defend a shadow victim by it.
    """
    try:
        deployed()
    except MadError as error:
        raise MadError(f"{who} must say needs_validation = True if it reads validation_split(): {error}") from error


def check_answers(who: str, answers: Any, clean: Tensor, epsilon: float | None) -> None:
    """Raise MadError if answers (B, K) are not posteriors, or farther from the clean ones than the L1 budget."""
    plugins.like(who, answers, clean)
    if not simplex.are_posteriors(answers):
        raise MadError(f"{who} must answer with rows that are at least 0 and sum to 1")
    farthest = simplex.l1(answers, clean).max().item()
    if farthest > (2 if epsilon is None else epsilon) + CLOSE:
        raise MadError(f"{who} moved an answer by {farthest:g}, above its budget of {epsilon}")


def same(who: str, found: Tensor, expected: Tensor, share: float = 1.0) -> None:
    """Raise MadError if fewer than ``share`` of the rows of ``found`` equal those of ``expected`` up to rounding."""
    if found.shape != expected.shape:
        raise MadError(f"{who} gives {tuple(found.shape)} instead of {tuple(expected.shape)}")
    off = (found - expected).abs().reshape(len(found) if found.dim() else 1, -1).amax(dim=1)
    equal = off <= CLOSE * max(1.0, expected.abs().amax().item())
    if equal.double().mean() < share:
        raise MadError(f"{who} gives something else, by up to {off.max().item():g}: fix what it draws by its seed")


def posteriors(kind: str, classes: int) -> Tensor:
    """Return posteriors (ROWS, K): of one of ``KINDS``, random, sure, flat, or tied between two classes; or ``tiny``.

    The ``tiny`` ones are sure but for 1e-38 of each other class, a number whose square and inverse float32 cannot hold.
    """
    if kind == "dirichlet":
        drawn = torch.rand(ROWS, classes, generator=generator(7, "posteriors"), dtype=torch.float64)
        mass = -(drawn.log() ** 3)  # a few classes have most of the mass
        return (mass.abs() / mass.abs().sum(dim=1, keepdim=True)).float()
    if kind == "uniform":
        return torch.full((ROWS, classes), 1 / classes)
    sure = torch.eye(classes)[torch.arange(ROWS) % classes]
    if kind == "tiny":
        return sure.clamp(min=1e-38)
    return sure if kind == "one_hot" else sure / 2 + torch.eye(classes)[0] / 2
