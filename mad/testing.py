"""Checks that a plug-in keeps its contract, for the tests of its author; they run on toy data in seconds.

    from mad.testing import check_defense
    check_defense(MyDefense(epsilon=0.5))

Each check raises ``MadError`` with the expected and the given value. A check cannot tell whether a plug-in does what
its paper says; for that, compare it with a plain implementation of the definition.
"""

from __future__ import annotations

import copy
import functools
import json
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mad import plugins, schema
from mad.adversary import Adversary
from mad.attacks import Attack, Stolen, TransferSet
from mad.datasets import Split, checked
from mad.defenses import Defense, Undefended
from mad.deployment import deploy
from mad.device import computing
from mad.errors import MadError, check_choice, check_kind, check_number
from mad.knockoff import Knockoff
from mad.knowledge import KNOWLEDGE
from mad.promises import KINDS, MOST, ROWS, answered, check_answers, named, needs_none, posteriors, same, untouched
from mad.recoveries import AsAnswered, Recovery
from mad.seeds import generator
from mad.training import Trainer, logits_of
from mad.victim import Victim

CPU = torch.device("cpu")
CLASSES = (2, 10, 100)


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
        check_number("classes", self.classes, 2, whole=True)
        check_number("size", self.size, 1, whole=True)
        object.__setattr__(self, "shape", sides(self.shape))

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


def sides(shape: Any) -> tuple[int, ...]:
    """Return the shape (C, H, W) of images as a tuple, which is a list in a YAML file; MadError if it is none."""
    if not isinstance(shape, (tuple, list)) or len(shape) != 3:
        raise MadError(f"shape must be (C, H, W), got {shape!r}")
    return tuple(check_number("shape", side, 1, whole=True) for side in shape)


class Linear(nn.Module):
    """One linear layer, images (B, C, H, W) to logits (B, K)."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(math.prod(sides(shape)), check_number("classes", classes, 1, whole=True))

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
    check_number("classes", classes, 2, whole=True)
    return Toy("toy", Blobs(classes, size=max(200, 3 * classes)), Linear, trainer(), validation=0.2)


def toy_adversary(recovery: Recovery | None = None, classes: int = 4, **given: Any) -> Adversary:
    """Return an adversary of a toy victim; ``given`` are further fields of ``Adversary``."""
    blobs, knockoff = Blobs(classes), Knockoff(trainer(), Linear)
    if recovery is not None:
        check_kind("recovery", recovery, Recovery, "mad.recoveries.AsAnswered()")
    check_number("seed", given.get("seed", 0), 0, 2**62, whole=True)
    known = {"shape": blobs.shape, "classes": classes, "seed": 0, "device": CPU, "labels": blobs.test().labels}
    return Adversary(knockoff=knockoff, recovery=recovery or AsAnswered(), **{**known, **given})


@computing(1)
def check_defense(defense: Defense, classes: tuple[int, ...] = CLASSES) -> None:
    """Check that a defense answers with posteriors within its budget, and that no answer depends on the batch.

    A ``stateful`` defense may depend on order and batches; two new sessions must then answer alike, and so must a new
    one that is given the ``remembered`` of another.

    Raises:
        MadError: if the check fails.
    """
    who = tried("defense", defense, Defense)
    if not hasattr(defense, str(defense.strength_parameter)):
        raise MadError(f"{who}: strength_parameter must name one of its fields, got {defense.strength_parameter!r}")
    for count in numbers(classes):
        victim = toy_victim(count)
        with untouched(who, defense):
            first, again = (deploy(victim, defense).defense for _ in range(2))
        if count == classes[0] and not defense.holds_out:
            needs_none(who, functools.partial(deploy, replace(victim, validation=0.0), defense))
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
                    if (memory := session.remembered()) is not None:
                        restarted = again.session()
                        restarted.recall(json.loads(json.dumps(memory)))
                        kept = answered(restarted, images, clean)
                        same(f"{who}, restarted,", kept, answered(session, images, clean))
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
    who, victim = tried("attack", attack, Attack), toy_victim(classes)
    for known in attack.knows:
        check_choice(f"{who}: what it knows", known, KNOWLEDGE)
    given = knowledge(attack, victim)
    pool = Blobs(classes).images((1, 8, 8)) if attack.needs_pool else None
    attack.check(victim)
    budget = min(attack.affordable(pool, "blobs"), 100)
    found = []
    for repeat in range(2):
        api = deploy(victim, seed=0).session(budget)
        with untouched(f"{who}, of its pool,", *([] if pool is None else [pool])):
            stolen = attack.spend(api, pool, toy_adversary(classes=classes, **given))
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

    What it keeps, adds and records is checked, too.

    Raises:
        MadError: if the check fails.
    """
    who = tried("recovery", recovery, Recovery)
    for known in recovery.knows:
        check_choice(f"{who}: what it knows", known, KNOWLEDGE)
    for count in numbers(classes):
        victim, pool = toy_victim(count), Blobs(count).images((1, 8, 8))
        answers = torch.cat([posteriors(kind, count) for kind in KINDS])
        transfer = TransferSet(pool, torch.arange(len(answers)), answers)
        adversary = toy_adversary(recovery, count, **knowledge(recovery, victim))
        found = []
        for _ in range(2):
            with untouched(who, recovery, pool, answers):
                ready = adversary.learned_from(transfer)
                schema.check(ready.recovery.columns(), who, recovery.schema)
                more = ready.added()
                found.append([*ready.chosen(transfer, said=False), *([] if more is None else more)])
        for one, other in zip(*found, strict=True):
            same(f"{who}, prepared twice,", other.double(), one.double())


@computing(1)
def check_victim(victim: Victim) -> None:
    """Check a victim's data and network: splits, logits, and that no answer depends on other images of the batch.

    Nothing is trained, so the check takes only seconds and the time to load the data.

    Raises:
        MadError: if the check fails.
    """
    who = tried("victim", victim, Victim)
    plugins.fits(who, victim.architecture, victim.dataset.shape, victim.dataset.classes)
    for part in ("train", "test"):
        checked.split(victim.dataset, part)
    model = victim.untrained(seed=victim.seed, purpose="victim")
    images = torch.rand(4, *victim.dataset.shape, generator=generator(0, "images"))
    whole = logits_of(model, images, CPU)
    same(f"{who}, one image at a time,", torch.cat([logits_of(model, each, CPU) for each in images.split(1)]), whole)


def tried(kind: str, part: Any, base: type) -> str:
    """Return a part's name for errors (``named``).

    Raises:
        MadError: if it is none of its kind, such as its class.
    """
    if not isinstance(part, base):
        what = f"an object of a subclass of {base.__name__}" if base is not Victim else "a mad.Victim"
        raise MadError(f"check_{kind} takes {what}, with its settings, got {repr(part)[:80]}")
    who = named(kind, part)
    if base is not Victim:
        plugins.declared(who, part, base)
    return who


def numbers(classes: Any) -> tuple[int, ...]:
    """Return the numbers of classes to check with.

    Raises:
        MadError: if there is none, since nothing would be checked, or if one is no number of classes.
    """
    if not isinstance(classes, (tuple, list)) or not classes:
        raise MadError(f"classes must be numbers of classes, such as {CLASSES}, got {classes!r}")
    return tuple(check_number("classes", count, 2, whole=True) for count in classes)


def knowledge(plugin: Attack | Recovery, victim: Victim) -> dict[str, Any]:
    """Return what an attack or a recovery is given of a victim, as a cell does."""
    return {
        "defense": Undefended() if "the defense" in plugin.knows else None,
        "victim": victim if "the victim's data" in plugin.knows else None,
        "clean": deploy(victim).clean if "the victim's clean answers" in plugin.knows else None,
    }


def tensors_of(stolen: Stolen) -> list[Tensor]:
    """Return all tensors in the result of an attack."""
    network = [] if stolen.network is None else list(stolen.network.state_dict().values())
    return network + ([] if stolen.transfer is None else [stolen.transfer.rows, stolen.transfer.answers])
