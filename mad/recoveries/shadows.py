"""Shadow victims: the adversary's own, defended by the same code, which show what the defense does to answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mad.api import BlackBox
from mad.datasets import Images, Split, batches, to_unit_range
from mad.datasets.held_out import chosen
from mad.deployment import Deployment, deploy
from mad.errors import MadError
from mad.knockoff import Knockoff
from mad.knowledge import Knowledge
from mad.seeds import derive, generator
from mad.transfer import TransferSet
from mad.victim import Architecture, StandIn

Draw = Callable[[Tensor, int], Tensor]

PART = 1000  # images that a shadow answers at once
SECRETS = 4  # seeds of the defense for each shadow: where it pushes answers depends on its secret
HELD_OUT = 0.1  # of a shadow's images, where the defense is calibrated on images that its victim has not learned from
CHEAPER = 3  # a shadow takes this share of the knockoff's epochs and steps: it learns labels, not posteriors


@dataclass(frozen=True)
class Answered:
    """Images of an adversary with answers of an API, as a data set: each one's label is its answer's top class.

    Args:
        pool: (N, C, H, W).
        answers: posteriors (N, K).
        classes: K.
        shape: (C, H, W).
        name: the name of the data set.
    """

    every_class: ClassVar[bool] = False  # a class that the API never answered with is no fault of the data
    pool: Images = field(compare=False)  # the contents of a data set are hashed
    answers: Tensor
    classes: int
    shape: tuple[int, int, int]
    name: str = "answered"

    def train(self) -> Split:
        """Return all images, with their labels."""
        return Split(self.pool, self.answers.argmax(dim=1))

    def test(self) -> Split:
        """Return the same: an adversary has no others."""
        return self.train()


@dataclass(frozen=True)
class Shadow(StandIn):
    """A shadow victim, which starts from the knockoff's initial weights if that has any.

    Args:
        knockoff: the knockoff's recipe.
    """

    kind = "mad.victim.Victim"  # kept shadows are found again
    knockoff: Knockoff | None = field(default=None, compare=False)

    @property
    def amended(self) -> str | None:
        """As of every stand-in; and the initial weights, by their checksum."""
        start = None if self.knockoff is None else self.knockoff.initial_sha256
        return "; ".join(filter(None, [super().amended, start])) or None

    def untrained(self, architecture: Architecture | None = None, *, seed: int, purpose: str) -> nn.Module:
        """Return an untrained network; one of the knockoff's architecture that is to be a victim starts as it does."""
        model, own = super().untrained(architecture, seed=seed, purpose=purpose), self.knockoff
        # A defense may serve a network of another architecture, or train others for its own use.
        if own is not None and purpose == "victim" and (architecture or self.architecture) is own.architecture:
            own.start(model)
        return model


class Pairs(NamedTuple):
    """What the shadows' defense makes of posteriors: ``defended`` and ``clean`` ones, (P, K) each, on the CPU."""

    defended: Tensor
    clean: Tensor


class Guarded(NamedTuple):
    """A shadow behind the defense, and its API for one client."""

    deployment: Deployment
    api: BlackBox

    def answers(self, images: Iterable[Tensor], drawn: Draw | None = None) -> list[Pairs]:
        """Return the pairs of some batches of images (B, C, H, W) in [0, 1].

        If the defense serves another model, and none of that model's answers is changed, the defense is the model:
        clean are then the undefended shadow's answers to the images, and defended the model's.

        Args:
            images: the batches.
            drawn: returns posteriors that take the place of the model's, for a batch and its number; None for its own.
        """
        made = self.deployment
        seen: list[Pairs] = []
        served: list[Pairs] = []
        for number, some in enumerate(images):
            clean, defended = self.api.answer(some, None if drawn is None else drawn(some, number))
            seen.append(Pairs(defended, clean))
            if made.served is not made.model:
                served.append(Pairs(replace(made, model=made.served).clean(some), made.clean(some)))
        return served if served and all(each.clean.equal(each.defended) for each in seen) else seen


def halves(adversary: Knowledge, transfer: TransferSet) -> tuple[Tensor, Tensor]:
    """Return two halves, as places in a transfer set: of those that shadows learn, and of those that they answer."""
    order = torch.randperm(len(transfer), generator=generator(adversary.seed, "halves of the transfer set"))
    return order[: (len(order) + 1) // 2], order[len(order) // 2 :]


def shadows(adversary: Knowledge, transfer: TransferSet, count: int) -> list[Guarded]:
    """Return some shadow victims behind the defense; they are trained once, and kept for all recoveries that need them.

    A shadow has the knockoff's architecture, initial weights and recipe, with a third of its epochs and steps. It
    learns half of the transfer set's images, with the top classes of their answers, but for those that the defense asks
    it to hold out. Each is guarded ``SECRETS`` times by the same code and settings as the victim, with other secret
    seeds, so that there are that many APIs a shadow.

    Args:
        adversary: one that knows the defense.
        transfer: images and answers.
        count: number of shadows.

    Raises:
        MadError: if the defense cannot guard a shadow.
    """
    assert adversary.defense is not None  # given to whoever knows the defense
    assert adversary.knockoff.architecture is not None  # a cell fills it in
    learned, _ = halves(adversary, transfer)
    images = chosen(transfer.images, transfer.rows[learned])
    dataset = Answered(images, transfer.answers[learned], adversary.classes, adversary.shape)
    recipe = adversary.knockoff.trainer
    recipe = recipe.but(epochs=-(-recipe.epochs // CHEAPER), min_steps=-(-recipe.min_steps // CHEAPER))
    found = []
    for number in range(count):
        seed = derive(adversary.seed, f"shadow {number}") // 2
        held = HELD_OUT if adversary.defense.holds_out else 0.0
        make = adversary.knockoff.architecture
        victim = Shadow("shadow", dataset, make, recipe, seed=seed, validation=held, knockoff=adversary.knockoff)
        for secret in range(SECRETS):
            own = derive(seed, f"secret {secret}") // 2
            try:
                made = deploy(victim, adversary.defense, seed=own, store=adversary.store, device=adversary.device)
            except MadError as error:
                raise MadError(f"the adversary's shadow victim cannot be defended as the victim is: {error}") from error
            found.append(Guarded(made, made.session()))
    return found


def asked(guarded: list[Guarded], transfer: TransferSet, rows: Tensor) -> Iterator[tuple[Guarded, Iterable[Tensor]]]:
    """Yield each of ``shadows`` with the batches of images that it is asked about, float (B, C, H, W) in [0, 1].

    Those in some rows (M,) of the pool go to each shadow, divided among its secrets.
    """
    for number, each in enumerate(guarded):
        own = rows[number % SECRETS :: SECRETS]
        yield each, map(to_unit_range, batches(transfer.images, own, PART, torch.device("cpu")) if len(own) else ())


def together(found: Iterable[Pairs]) -> Pairs:
    """Return all pairs as one."""
    defended, clean = zip(*found, strict=True)
    return Pairs(torch.cat(defended), torch.cat(clean))


def pairs(adversary: Knowledge, transfer: TransferSet, count: int) -> Pairs:
    """Return what the defense of ``shadows`` makes of their answers to the other half of the images; see there."""
    _, others = halves(adversary, transfer)
    every = asked(shadows(adversary, transfer, count), transfer, transfer.rows[others])
    return together(pair for guarded, images in every for pair in guarded.answers(images))
