"""The checks of what a defense may do and its author should know; none of them is a ``fail`` but undeclared state."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mad import simplex
from mad.api import UNCHANGED
from mad.lint.finding import Finding, failed, noted, passed
from mad.lint.subject import Subject, ask
from mad.promises import answered
from mad.seeds import generator

LEAST_BITS = 1.0  # of the classes that answers are pushed to
VISIBLE = 0.05  # an L1 distance between the answers to an image and to its copy
OFTEN = 0.1  # share of copies
RECOVERED = 0.05  # by how much more often a model finds the clean top class than the answer's own top class is it
ROUNDS = 5  # of timings, of which the fastest counts
SLACK = 4096  # bytes by which a defense may grow, such as by a counter


def top_class(subject: Subject) -> Finding:
    """How often the top class stays."""
    theft = subject.theft
    changed = {
        "honest": moved_top(subject.first.answers, subject.clean),
        "theft": moved_top(theft.answers, theft.clean),
    }
    said = f"changed in {changed['honest']:.1%} of the answers to test images, {changed['theft']:.1%} of a thief's"
    return noted(said, **changed) if any(changed.values()) else passed("always kept", **changed)


def moved_top(answers: Tensor, clean: Tensor) -> float:
    """Return the share of answers with another top class."""
    return (answers.argmax(dim=1) != clean.argmax(dim=1)).double().mean().item()


def target(subject: Subject) -> Finding:
    """The entropy of the classes that answers are pushed to; with one target for all, a thief can subtract it."""
    moved = subject.theft.answers - subject.theft.clean
    classes = moved.shape[1]
    targets = moved.argmax(dim=1)[moved.abs().sum(dim=1) > UNCHANGED]
    if not len(targets):
        return passed("no answer is moved")
    counts = torch.bincount(targets, minlength=classes).double()
    bits = simplex.entropy_in_bits(counts / counts.sum()).item()
    said = f"{bits:.2f} of {math.log2(classes):.2f} bits in the classes that answers are pushed to"
    if bits < min(LEAST_BITS, math.log2(classes) / 2):
        share = (counts.max() / counts.sum()).item()
        return noted(f"{said}: {share:.0%} go to one class, which a thief can learn", bits=bits)
    return passed(said, bits=bits)


def near_copies(subject: Subject) -> Finding:
    """How many slightly changed copies of an image get another answer; a thief can average over them."""
    noise = torch.randint(-1, 2, tuple(subject.shown.shape), generator=generator(0, "near copies")) / 255
    copies = (subject.shown + noise.to(subject.device)).clamp(0, 1)
    clean = subject.served(copies)
    answers = ask(subject.session(), copies, clean).answers
    own = simplex.l1(answers, subject.first.answers) > simplex.l1(clean, subject.clean) + VISIBLE
    share = own.double().mean().item()
    said = f"{share:.0%} of copies, off by one gray level in 255, get another answer (L1 above {VISIBLE:g})"
    often = share > OFTEN
    return noted(f"{said}: a thief can average over them", changed=share) if often else passed(said, changed=share)


def label_left(subject: Subject) -> Finding:
    """How much of the clean label is left in an answer."""
    from sklearn.ensemble import RandomForestClassifier  # a slow import

    answers = subject.theft.answers.cpu().double()
    labels = subject.deployment.clean(subject.thefts).argmax(dim=1).cpu()
    half = len(labels) // 2
    held = labels[half:]
    model = RandomForestClassifier(n_estimators=30, random_state=0).fit(answers[:half].numpy(), labels[:half].numpy())
    found = {
        "model": float(model.score(answers[half:].numpy(), held.numpy())),
        "argmax": (answers[half:].argmax(dim=1) == held).double().mean().item(),
        "chance": (held.bincount().max() / len(held)).item(),
    }
    said = f"a random forest finds the clean top class in {found['model']:.1%} of a thief's answers, argmax in "
    said += f"{found['argmax']:.1%}, chance in {found['chance']:.1%}"
    if found["model"] > found["argmax"] + RECOVERED:
        return noted(f"{said}: what the top class hides can be learned", **found)
    return passed(said, **found)


def state(subject: Subject) -> Finding:
    """How the defense's memory grows with a thief's queries."""
    held = subject.theft.bytes_after
    counts = list(held)
    start, half, end = held[counts[0]], held[counts[len(counts) // 2 - 1]], held[counts[-1]]
    middle, last = counts[len(counts) // 2 - 1], counts[-1]
    more, later = end - start, end - half
    numbers = {f"bytes_after_{count}": held[count] for count in (counts[0], middle, last)}
    if more <= SLACK:
        return passed(f"{end / 1e3:,.0f} kB, which {last:,} queries do not add to", **numbers)
    said = f"{half / 1e3:,.0f} kB after {middle:,} queries, {end / 1e3:,.0f} kB after {last:,}"
    growing = later > (half - start) / 2
    said += f", still {later / max(1, last - middle):,.0f} bytes a query" if growing else ""
    if growing and not subject.deployment.defense.stateful:
        return failed(f"{said}: keep no state, or set stateful = True and a limit", **numbers)
    return noted(said, **numbers)


def cost(subject: Subject) -> Finding:
    """How much time an answer takes beside the served model's forward pass."""
    images, clean, session = subject.shown, subject.clean, subject.session()
    forward, defended = [], []
    for _ in range(ROUNDS):  # in turn, so that both are slowed alike
        forward.append(seconds(lambda: subject.served(images)))
        defended.append(seconds(lambda: answered(session, images, clean, len(images))))
    ratio, each = min(defended) / max(min(forward), 1e-9), min(defended) / len(images)
    said = f"{ratio:.2f} times the served model's forward pass, {each * 1e6:,.0f} us an image"
    numbers = {"ratio": ratio, "seconds_per_image": each}
    return passed(said, **numbers) if ratio < 1 else noted(f"{said}; a larger victim makes it less", **numbers)


def seconds(work: Callable[[], Tensor]) -> float:
    """Return the processor time of some work, until its result is on the CPU."""
    start = time.process_time()
    work().cpu()
    return time.process_time() - start
