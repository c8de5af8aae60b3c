"""Checks that a plug-in keeps its contract, for the tests of its author; they run on toy data in seconds.

    from mad.testing import check_defense
    check_defense(MyDefense(epsilon=0.5))

Each check raises ``MadError`` with the expected and the given value. A check cannot tell whether a plug-in does what
its paper says; for that, compare it with a plain implementation of the definition.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mad import plugins, schema, simplex
from mad.adversary import Adversary
from mad.attacks import Attack, Stolen, TransferSet
from mad.datasets import Split, checked
from mad.defenses import Defense, Undefended
from mad.deployment import deploy
from mad.device import computing
from mad.errors import MadError, check_choice, check_name
from mad.knockoff import Knockoff
from mad.knowledge import KNOWLEDGE
from mad.recoveries import AsAnswered, Recovery
from mad.seeds import generator, seeded
from mad.storage.fingerprint import describe, digest
from mad.training import Trainer, logits_of
from mad.victim import Victim

CPU = torch.device("cpu")
ROWS, CLASSES = 12, (2, 10, 100)
MOST = 0.7  # share of rows: of two equally good solutions, rounding may select another
CLOSE = 1e-5  # how much rounding may change a probability
KINDS = ("dirichlet", "one_hot", "uniform", "tied")


@dataclass(frozen=True)
class Blobs:
    """A data set of noisy copies of one random image per class, which a linear layer can learn; also a pool.

    Args:
        classes: number of classes K.
        shape: (C, H, W).
        size: number of images in each split, and in the pool.
        name: the name of the data set.
    """

    classes: int = 4
    shape: tuple[int, int, int] = (1, 8, 8)
    size: int = 200
    name: str = "blobs"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))  # a list in a YAML file

    def train(self) -> Split:
        """Return the training split."""
        return self.split("train")

    def test(self) -> Split:
        """Return the test split."""
        return self.split("test")

    def images(self, shape: tuple[int, int, int]) -> Tensor:
        """Return the images of the pool, whose noise differs from that of the splits."""
        return self.split("pool").images  # type: ignore[return-value]

    def split(self, part: str) -> Split:
        """Return the images and labels of a part, whose name is the seed of the noise."""
        centers = torch.randint(0, 200, (self.classes, *self.shape), generator=generator(0, "centres"))
        labels = torch.arange(self.size) % self.classes
        noise = torch.randint(0, 56, (self.size, *self.shape), generator=generator(0, part))
        return Split((centers[labels] + noise).to(torch.uint8), labels)


class Linear(nn.Module):
    """One linear layer, images (B, C, H, W) to logits (B, K)."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(torch.Size(shape).numel(), classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(images.flatten(1))


def trainer(epochs: int = 8) -> Trainer:
    """Return a recipe that trains ``Linear`` on ``Blobs`` in milliseconds."""
    return Trainer(epochs, 20, "momentum", 0.05, 0.9, 0.0, "one_cycle")


class Toy(Victim):
    """A victim that is trained once in a process; each deployment has a copy of its network."""

    trained = functools.cache(Victim.ready)

    def ready(self, *where: Any) -> nn.Module:
        """Return a copy of the network."""
        return copy.deepcopy(self.trained(*where))


def toy_victim(classes: int = 4) -> Victim:
    """Return the recipe of a victim that is trained in milliseconds."""
    return Toy("toy", Blobs(classes, size=max(200, 3 * classes)), Linear, trainer(), validation=0.2)


def toy_adversary(recovery: Recovery | None = None, classes: int = 4, **given: Any) -> Adversary:
    """Return an adversary of a toy victim; ``given`` are further fields of ``Adversary``."""
    blobs, knockoff = Blobs(classes), Knockoff(trainer(), Linear)
    known = {"shape": blobs.shape, "classes": classes, "seed": 0, "device": CPU, "labels": blobs.test().labels}
    return Adversary(knockoff=knockoff, recovery=recovery or AsAnswered(), **{**known, **given})


@computing(1)
def check_defense(defense: Defense, classes: tuple[int, ...] = CLASSES) -> None:
    """Check that a defense answers with posteriors within its budget, and that no answer depends on the batch.

    A ``stateful`` defense may depend on order and batches; two new sessions must then answer alike.

    Raises:
        MadError: if the check fails.
    """
    who = named("defense", defense)
    if not hasattr(type(defense), defense.strength_parameter) and not hasattr(defense, defense.strength_parameter):
        raise MadError(f"{who}: strength_parameter must name one of its fields, got {defense.strength_parameter!r}")
    for count in classes:
        victim = toy_victim(count)
        with untouched(who, defense):
            first, again = (deploy(victim, defense).defense for _ in range(2))
        images = torch.rand(ROWS, *victim.dataset.shape, generator=generator(count, "images"))
        twin = torch.softmax(logits_of(victim.untrained(seed=0, purpose="surrogate"), images, CPU), dim=1)
        for kind, clean in {**{kind: posteriors(kind, count) for kind in KINDS}, "surrogate": twin}.items():
            with untouched(f"{who} on {kind} posteriors", images, clean):
                session = first.session()
                answers = answered(session, images, clean)
                check_answers(f"{who} on {kind} posteriors over {count} classes", answers, clean, defense.epsilon)
                same(f"{who}, prepared twice,", answered(again.session(), images, clean), answers)
                if defense.stateful:
                    schema.check(session.session_columns() | first.honest_columns([session]), who, defense.schema)
                    continue
                order = torch.randperm(ROWS, generator=generator(0, "order"))
                moved, parts = answered(first, images[order], clean[order]), answered(first, images, clean, 5)
                if kind == "uniform":  # all classes are equally good targets
                    answers, moved, parts = (each.sort(dim=1).values for each in (answers, moved, parts))
                same(f"{who}, in another order,", moved, answers[order], MOST)
                same(f"{who}, in smaller batches,", parts, answers, MOST)


@computing(1)
def check_attack(attack: Attack, classes: int = 4) -> None:
    """Check that an attack spends exactly its budget, returns a valid result, and the same one when run again.

    Raises:
        MadError: if the check fails.
    """
    who, victim = named("attack", attack), toy_victim(classes)
    pool = Blobs(classes).images((1, 8, 8)) if attack.needs_pool else None
    attack.check(victim)
    budget = min(attack.affordable(pool, "blobs"), 100)
    found = []
    for repeat in range(2):
        api = deploy(victim, seed=0).session(budget)
        with untouched(f"{who}, of its pool,", *([] if pool is None else [pool])):
            stolen = attack.spend(api, pool, toy_adversary(classes=classes))
        if stolen.network is not None:
            plugins.fits(f"{who}: its network", lambda stolen=stolen, **_: stolen.network, (1, 8, 8), classes)
        found.append(stolen)
        if not attack.depends_on_answers and repeat == 0:
            check_independence(who, attack, pool, budget, stolen, classes)
    for one, other in zip(*(tensors_of(each) for each in found), strict=True):
        same(f"{who}, run twice,", other.double(), one.double())


def check_independence(who: str, attack: Attack, pool: Any, budget: int, stolen: Stolen, classes: int) -> None:
    """Raise MadError if an attack with ``depends_on_answers=False`` queries another victim with other images."""
    other = replace(toy_victim(classes), seed=1, trainer=trainer(1))
    there = attack.spend(deploy(other).session(budget), pool, toy_adversary(classes=classes))
    if stolen.transfer is None or there.transfer is None or stolen.network is not None:
        raise MadError(f"{who}: with depends_on_answers=False it must return a transfer set and no network")
    if not torch.equal(stolen.transfer.rows, there.transfer.rows):
        raise MadError(f"{who}: it asked another victim about other images, so depends_on_answers must be True")


@computing(1)
def check_recovery(recovery: Recovery, classes: tuple[int, ...] = CLASSES) -> None:
    """Check that a recovery returns posteriors, the same ones when prepared again, and that ``knows`` is valid.

    Raises:
        MadError: if the check fails.
    """
    who = named("recovery", recovery)
    for known in recovery.knows:
        check_choice(f"{who}: what it knows", known, KNOWLEDGE)
    for count in classes:
        victim, pool = toy_victim(count), Blobs(count).images((1, 8, 8))
        answers = torch.cat([posteriors(kind, count) for kind in KINDS])
        transfer = TransferSet(pool, torch.arange(len(answers)), answers)
        given: dict[str, Any] = {
            "defense": Undefended() if "the defense" in recovery.knows else None,
            "victim": victim if "the victim's data" in recovery.knows else None,
            "clean": deploy(victim).clean if "the victim's clean answers" in recovery.knows else None,
        }
        adversary = toy_adversary(recovery, count, **given)
        with untouched(who, recovery, pool, answers):
            first, second = (adversary.learned_from(transfer).targets(transfer) for _ in range(2))
        same(f"{who}, prepared twice,", second, first)


@computing(1)
def check_victim(victim: Victim) -> None:
    """Check a victim's data and network: splits, logits, and that no answer depends on other images of the batch.

    Nothing is trained, so the check takes only seconds and the time to load the data.

    Raises:
        MadError: if the check fails.
    """
    who = named("victim", victim)
    plugins.fits(who, victim.architecture, victim.dataset.shape, victim.dataset.classes)
    for part in ("train", "test"):
        checked.split(victim.dataset, part)
    model = victim.untrained(seed=victim.seed, purpose="victim")
    images = torch.rand(4, *victim.dataset.shape, generator=generator(0, "images"))
    whole = logits_of(model, images, CPU)
    same(f"{who}, one image at a time,", torch.cat([logits_of(model, each, CPU) for each in images.split(1)]), whole)


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


def tensors_of(stolen: Stolen) -> list[Tensor]:
    """Return all tensors in the result of an attack."""
    network = [] if stolen.network is None else list(stolen.network.state_dict().values())
    return network + ([] if stolen.transfer is None else [stolen.transfer.rows, stolen.transfer.answers])


def posteriors(kind: str, classes: int) -> Tensor:
    """Return posteriors (ROWS, K) of one of ``KINDS``: random, sure, flat, or tied between two classes."""
    if kind == "dirichlet":
        drawn = torch.rand(ROWS, classes, generator=generator(7, "posteriors"), dtype=torch.float64)
        mass = -(drawn.log() ** 3)  # a few classes have most of the mass
        return (mass.abs() / mass.abs().sum(dim=1, keepdim=True)).float()
    if kind == "uniform":
        return torch.full((ROWS, classes), 1 / classes)
    sure = torch.eye(classes)[torch.arange(ROWS) % classes]
    return sure if kind == "one_hot" else sure / 2 + torch.eye(classes)[0] / 2
