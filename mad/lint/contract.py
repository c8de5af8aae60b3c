"""The checks of what every defense promises; a broken promise is a ``fail``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mad import promises, simplex
from mad.deployment import deploy
from mad.errors import RAISED, MadError
from mad.lint.finding import Finding, failed, noted, passed
from mad.lint.subject import Subject, ask, global_seeds
from mad.promises import CLOSE, KINDS, MOST, ROWS
from mad.seeds import generator
from mad.storage.fingerprint import describe, digest
from mad.testing import toy_victim

HARD = (*KINDS, "tiny")


def gradients(subject: Subject) -> Finding:
    """Whether ``needs_gradients`` says what ``perturb`` needs."""
    if subject.defense.epsilon == 0 and not subject.defense.stateful:
        return passed("perturb is not called at epsilon=0")
    declared = subject.deployment.defense.needs_gradients

    def attempt(enabled: bool) -> Any:
        session = subject.session()  # here, since preparing may train
        with torch.set_grad_enabled(enabled):
            try:
                return session.perturb(subject.shown[:ROWS].clone(), subject.clean[:ROWS].clone())
            except RAISED as error:  # any; the next check raises it again
                return error

    without, found = attempt(False), attempt(True)
    if declared:
        alike = isinstance(without, Tensor) and isinstance(found, Tensor) and torch.equal(without, found)
        return noted("declared, and not needed: it is faster without") if alike else passed("declared and needed")
    if isinstance(without, RuntimeError) and isinstance(found, Tensor):
        return failed(f"perturb needs gradients ({line(without)}): set needs_gradients = True")
    return passed("perturb records no gradients")


def shape(subject: Subject) -> Finding:
    """Whether ``perturb`` returns floats of the shape, on the device and of the type of the posteriors."""
    kinds = {str(each.dtype).removeprefix("torch.") for each in subject.first.raw} - {"float32"}
    if kinds:
        return noted(f"perturb returns {', '.join(sorted(kinds))}, which the base class makes float32")
    return passed(f"{tuple(subject.clean.shape)} float32, as the posteriors")


def arguments(subject: Subject) -> Finding:
    """Whether the defense leaves its arguments and its settings alone."""
    if subject.first.wrote:
        return failed("perturb writes into the images or posteriors that it is given: let it work on a copy")
    session = subject.session()
    ask(session, subject.shown[:ROWS], subject.clean[:ROWS])
    if subject.recipe_changed or digest(describe(session)) != subject.recipe()[0]:
        return failed("it changes its own fields, and so its fingerprint: keep what it prepares in attributes with _")
    return passed("images, posteriors and settings are left alone")


def finite(subject: Subject) -> Finding:
    """Whether no answer is NaN or infinite."""
    for who, rows in (("perturb returns", subject.first.rows), ("the final answers have", subject.first.answers)):
        wrong = int((~torch.isfinite(rows).all(dim=1)).sum())
        if wrong:
            return failed(f"{who} NaN or infinities for {wrong} of {len(rows)} images, which get clean answers")
    return passed(f"{len(subject.clean)} answers")


def on_simplex(subject: Subject) -> Finding:
    """Whether answers are posteriors, before and after the repair of the base class."""
    raw, final = subject.first.rows, subject.first.answers
    if not simplex.are_posteriors(final):
        return failed("the final answers have rows that are negative or do not sum to 1")
    off = torch.maximum((raw.sum(dim=1) - 1).abs(), -raw.amin(dim=1))
    wrong, most = int((~(off <= simplex.TOLERANCE)).sum()), off.nan_to_num(0.0, 0.0, 0.0).amax().item()
    if wrong:
        why = f"the base class repaired {wrong} of {len(raw)} answers, which were off the simplex by up to {most:.3g}"
        return noted(why, repaired=wrong, by=most)
    return passed("perturb returns posteriors")


def budget(subject: Subject) -> Finding:
    """Whether answers are within the L1 budget, before and after the base class moves them there."""
    epsilon, clean, final = subject.defense.epsilon, subject.clean, subject.first.answers
    moved = simplex.l1(final, clean)
    mean, most = moved.mean().item(), moved.amax().item()
    if epsilon is None:
        return passed(f"none is set; L1 is {mean:.3f} in the mean, at most {most:.3f}", l1_mean=mean, l1_most=most)
    if most > epsilon + CLOSE:
        return failed(f"an answer is {most:g} from the clean one, above epsilon={epsilon:g}", l1_most=most)
    far = simplex.l1(subject.first.rows, clean)
    over = int((far > epsilon + CLOSE).sum())
    numbers = {"l1_mean": mean, "l1_most": most, "shrunk": over}
    if over:
        up = far.nan_to_num(0.0).amax().item()
        said = f"the base class moved {over} of {len(clean)} answers back, from an L1 of up to {up:.3f}"
        return noted(f"{said}, to epsilon={epsilon:g}", **numbers)
    return passed(f"L1 is {mean:.3f} in the mean, at most {most:.3f}, of {epsilon:g}", **numbers)


def determinism(subject: Subject) -> Finding:
    """Whether the same call gives the same answers."""
    promises.same("the same call", subject.again().answers, subject.first.answers)
    return passed("the same call twice gives the same answers")


def generators(subject: Subject) -> Finding:
    """Whether no answer depends on a global random generator."""
    if subject.first.drew:
        who = " and ".join(subject.first.drew)
        return failed(f"perturb draws from {who} global generator: use mad.seeds.generator with a key")
    alike, other = (subject.again(seed=seed).answers for seed in (0, 1))
    off = [(each - subject.first.answers).abs().amax().item() for each in (alike, other)]
    if off[0] <= CLOSE < off[1]:
        return failed("answers depend on the seed of a global generator: use mad.seeds.generator with a key")
    return passed("torch's, numpy's and Python's are neither drawn from nor read")


def prepared_twice(subject: Subject) -> Finding:
    """Whether two preparations with one seed answer alike."""
    with global_seeds(1):  # which a preparation must not draw from
        ready = subject.deployed(subject.second).defense.session()
    other = ask(ready, subject.shown, subject.clean)
    promises.same("the defense, prepared twice with one seed,", other.answers, subject.first.answers)
    networks = "all networks trained again" if subject.second is None else "networks as they are kept"
    return passed(f"the same answers, with {networks}")


def independence(subject: Subject) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield answers in another order and in smaller batches, and what was answered before."""
    count, before = len(subject.shown), subject.first.answers
    order = torch.randperm(count, generator=generator(0, "order"))
    yield "in another order", ask(subject.session(), subject.shown[order], subject.clean[order]).answers, before[order]
    yield "in batches of 5", subject.again(size=5).answers, before
    few = slice(min(ROWS, count))
    yield "one at a time", ask(subject.session(), subject.shown[few], subject.clean[few], size=1).answers, before[few]


def order(subject: Subject) -> Finding:
    """Whether an answer depends on the other images of its batch, or on their order."""
    changed = {how: differing(found, before) for how, found, before in independence(subject)}
    worst = max(changed, key=lambda how: changed[how])
    said = f"{changed[worst]:.0%} of the answers are others {worst}"
    if not changed[worst]:
        return passed("the same answers in another order, in batches of 5, and one at a time", changed=0.0)
    if subject.deployment.defense.stateful:
        return noted(f"declared stateful; {said}", changed=changed[worst])
    if changed[worst] <= 1 - MOST:
        return noted(f"{said}: of two equally good answers, rounding may take the other", changed=changed[worst])
    return failed(f"{said}: compute each row by itself, or set stateful = True", changed=changed[worst])


def repeat(subject: Subject) -> Finding:
    """Whether an image gets the same answer when the same client asks again later."""
    session, others = subject.session(), subject.thefts[:200]
    first = ask(session, subject.shown, subject.clean).answers
    ask(session, others, subject.served(others))
    changed = differing(ask(session, subject.shown, subject.clean).answers, first)
    if not changed:
        return passed(f"the same answers after {len(others)} other queries", changed=0.0)
    said = f"{changed:.0%} of the images get another answer after {len(others)} other queries"
    if subject.deployment.defense.stateful:
        return noted(f"declared stateful; {said}", changed=changed)
    return failed(f"{said}: keep no state, or set stateful = True", changed=changed)


def hard_posteriors(subject: Subject) -> Finding:
    """Whether answers to hard posteriors are good: one-hot, uniform, tied and tiny ones, on black and white images."""
    images = subject.shown[torch.arange(ROWS) % len(subject.shown)]
    tried(subject.session(), images, subject.defense.epsilon, subject.clean.shape[1])
    return passed(f"{', '.join(HARD)}: finite, on the simplex, within the budget")


def other_classes(subject: Subject) -> Finding:
    """Whether the same holds for victims of 2 and of 100 classes, where the defense permits these."""
    refused = []
    for classes in (2, 100):
        victim = toy_victim(classes)
        try:
            ready = deploy(victim, subject.defense, seed=subject.seed)
        except MadError as error:
            refused.append(f"{classes} classes are refused ({error})")
            continue
        images = torch.rand(ROWS, *victim.dataset.shape, generator=generator(classes, "images"))
        tried(ready.defense.session(), images, subject.defense.epsilon, classes)
    return noted("; ".join(refused)) if refused else passed("victims of 2 and of 100 classes")


def tried(session: Any, images: Tensor, epsilon: float | None, classes: int) -> None:
    """Ask about hard posteriors.

    Raises:
        MadError: if an answer is not finite before the base class repairs it, or breaks a promise afterwards.
    """
    images = images.clone()
    images[0], images[1] = 0, 1
    for kind in HARD:
        clean = promises.posteriors(kind, classes).to(images.device)
        found = ask(session, images, clean)
        if not torch.isfinite(found.rows).all():
            raise MadError(f"perturb returns NaN or infinities for {kind} posteriors over {clean.shape[1]} classes")
        promises.check_answers(
            f"it, on {kind} posteriors over {clean.shape[1]} classes,", found.answers, clean, epsilon
        )


def differing(found: Tensor, before: Tensor) -> float:
    """Return the share of rows that differ by more than rounding."""
    return ((found - before).abs().amax(dim=1) > CLOSE).double().mean().item()


def line(error: BaseException) -> str:
    """Return an error's text as one short line."""
    return " ".join(str(error).split())[:120]
