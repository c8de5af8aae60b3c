"""Defenses that are wrong in one way each, and what a review of each finds."""

import secrets
import sys
from dataclasses import dataclass, field

import numpy as np
import torch

from mad.defenses import Defense, Permuted


@dataclass
class Good(Defense):
    """Move each answer toward the uniform posterior, by a quarter of the way in the budget."""

    name = "good"
    epsilon: float | None = 0.5

    def perturb(self, images, clean):
        return torch.lerp(clean, torch.full_like(clean, 1 / clean.shape[1]), self.epsilon / 8)


@dataclass
class Planted(Good):
    """A defense that is wrong in one way, which its subclass says."""

    name = "planted"
    epsilon: float | None = 0.5

    def perturb(self, images, clean):
        return self.wrong(images, clean, super().perturb(images, clean))


class NotANumber(Planted):
    def wrong(self, images, clean, good):
        return torch.where(clean.argmax(dim=1, keepdim=True) == 1, torch.nan, good)


class OffSimplex(Planted):
    def wrong(self, images, clean, good):
        return good - 0.1


class OverBudget(Planted):
    def wrong(self, images, clean, good):
        return clean.flip(1)


class Unbudgeted(Good):
    name = "unbudgeted"

    def __call__(self, images, clean):
        return clean.roll(1, dims=1)


class Drawn(Planted):
    """Draw from what no seed fixes."""

    def wrong(self, images, clean, good):
        return torch.softmax(clean.log() + secrets.randbits(8) / 256 * clean, dim=1)


class Global(Planted):
    def wrong(self, images, clean, good):
        return torch.softmax(good.log() + 0.1 * torch.randn(good.shape), dim=1)


class GlobalOfNumpy(Planted):
    def wrong(self, images, clean, good):
        return torch.lerp(good, clean, float(np.random.rand()))  # noqa: NPY002


class ReadsGlobal(Planted):
    """Depend on the global generator's state, and leave it as it is."""

    def wrong(self, images, clean, good):
        with torch.random.fork_rng(devices=[]):
            return torch.lerp(good, clean, torch.rand(()).item())


class Beside(Planted):
    def wrong(self, images, clean, good):
        return 0.9 * clean + 0.1 * clean.mean(dim=0)


class Ordered(Planted):
    """Depend on how much was asked before, and not say so."""

    _asked = 0

    def wrong(self, images, clean, good):
        self._asked += len(images)
        return torch.lerp(good, clean, 1 / self._asked)


class Mutating(Planted):
    def wrong(self, images, clean, good):
        return clean.mul_(0.9).add_(0.1 / clean.shape[1])


class ChangesItself(Planted):
    def wrong(self, images, clean, good):
        self.epsilon = 1.0
        return good


class Deaf(Planted):
    """Ignore epsilon."""

    def wrong(self, images, clean, good):
        return torch.lerp(clean, torch.full_like(clean, 1 / clean.shape[1]), 0.01)


class Hoarding(Planted):
    def prepare(self, context):
        self._held = []

    def wrong(self, images, clean, good):
        self._held += list(images.clone())
        return good


class HoardingOpenly(Hoarding):
    stateful = True

    def begin(self):
        self._held = []


class OneTarget(Planted):
    def wrong(self, images, clean, good):
        return torch.lerp(clean, torch.eye(clean.shape[1])[2].expand_as(clean), 0.1)


class Double(Planted):
    def wrong(self, images, clean, good):
        return good.double()


class Narrow(Planted):
    def wrong(self, images, clean, good):
        return good[:, 1:]


class Whole(Planted):
    def wrong(self, images, clean, good):
        return good.long()


class Raising(Planted):
    def wrong(self, images, clean, good):
        raise KeyError("nothing there")


class Leaving(Planted):
    def wrong(self, images, clean, good):
        sys.exit(3)


class Undeclared(Planted):
    """Use autograd and not say so."""

    def wrong(self, images, clean, good):
        logs = clean.log().requires_grad_()
        (slope,) = torch.autograd.grad(torch.softmax(logs, dim=1).square().sum(), logs)
        return torch.softmax(logs.detach() - 0.01 * slope, dim=1)


class Overdeclared(Planted):
    needs_gradients = True

    def wrong(self, images, clean, good):
        return good


class Unprepared(Planted):
    """Prepare something else each time."""

    def prepare(self, context):
        self._part = secrets.randbits(16) / 2**16

    def wrong(self, images, clean, good):
        return torch.lerp(good, clean, self._part)


class PreparedByChance(Unprepared):
    """Prepare by a global generator."""

    def prepare(self, context):
        self._part = torch.rand(()).item()


class FragileAtZero(Planted):
    """Break down where a probability is nearly 0."""

    def wrong(self, images, clean, good):
        return good * (clean.amin(dim=1, keepdim=True) ** 2).pow(-1) / (clean.amin(dim=1, keepdim=True) ** 2).pow(-1)


class FourClasses(Planted):
    def wrong(self, images, clean, good):
        return good * torch.ones(4)


class Jumping(Planted):
    """Answer another image, however near, with another posterior."""

    def wrong(self, images, clean, good):
        heads = (images.flatten(1).double().sum(dim=1, keepdim=True) * 2**20).long() % 2
        return torch.where(heads == 1, clean, torch.lerp(clean, good, 4.0))


class Locked(Planted):
    """Need the data to be prepared, which do not travel."""

    def prepare(self, context):
        self._count = len(context.victim.training_split().images)

    def wrong(self, images, clean, good):
        return torch.lerp(good, clean, 1 / self._count)


@dataclass
class Hidden(Planted):
    name = "hidden"
    strength_parameter = "way"
    way: float = field(default=0.5, compare=False)

    def wrong(self, images, clean, good):
        return torch.lerp(clean, good, self.way)


FOUND = {
    NotANumber: ("fail", "finite", "perturb returns NaN or infinities for"),
    OffSimplex: ("note", "simplex", "the base class repaired 40 of 40 answers"),
    OverBudget: ("note", "budget", "the base class moved 40 of 40 answers back"),
    Unbudgeted: ("fail", "budget", r"above epsilon=0\.5"),
    Drawn: ("fail", "determinism", "the same call gives something else"),
    Global: ("fail", "global generators", "torch's global generator"),
    GlobalOfNumpy: ("fail", "global generators", "numpy's global generator"),
    ReadsGlobal: ("fail", "global generators", "the seed of a global generator"),
    Beside: ("fail", "order and batches", "of the answers are others (in batches|one)"),
    Ordered: ("fail", "order and batches", "set stateful = True"),
    Mutating: ("fail", "arguments", "work on a copy"),
    ChangesItself: ("fail", "arguments", "changes its own fields"),
    Deaf: ("fail", "strength", "perturb does not read it"),
    Hoarding: ("fail", "state growth", "bytes a query: keep no state"),
    HoardingOpenly: ("note", "state growth", "still .* bytes a query"),
    OneTarget: ("note", "target entropy", "100% go to one class"),
    Double: ("note", "shape", "perturb returns float64"),
    Narrow: ("fail", "shape", r"must return a tensor of \(40, 4\).*got a tensor of \(40, 3\)"),
    Whole: ("fail", "shape", "int64"),
    Raising: ("fail", "shape", "raised KeyError: 'nothing there'"),
    Leaving: ("fail", "shape", r"ended the program with sys\.exit\(3\)"),
    Undeclared: ("fail", "needs_gradients", "set needs_gradients = True"),
    Overdeclared: ("note", "needs_gradients", "not needed"),
    Unprepared: ("fail", "prepared twice", "gives something else"),
    PreparedByChance: ("fail", "prepared twice", "gives something else"),
    FragileAtZero: ("fail", "hard posteriors", "NaN or infinities for one_hot"),
    FourClasses: ("fail", "2 and 100 classes", "raised RuntimeError"),
    Permuted: ("note", "label left", "what the top class hides can be learned"),
    Jumping: ("note", "near copies", "a thief can average"),
    Locked: ("note", "export", "cannot be exported"),
    Hidden: ("fail", "fingerprint", "two values of way have one fingerprint"),
}
LATER = {Ordered: ("fail", "repeat", "keep no state"), Permuted: ("note", "top class", "changed in 100.0%")}
