"""All checks of a defense, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from mad import foreign
from mad.errors import RAISED, MadError
from mad.lint import contract, observations, settings
from mad.lint.contract import line
from mad.lint.finding import FAIL, Finding, failed, noted
from mad.lint.subject import Subject, global_seeds

FIRST: dict[str, Callable[[Subject], Finding]] = {  # without these, no other check can be run
    "needs_gradients": contract.gradients,
    "shape": contract.shape,
}
CHECKS: dict[str, Callable[[Subject], Finding]] = {
    "arguments": contract.arguments,
    "finite": contract.finite,
    "simplex": contract.on_simplex,
    "budget": contract.budget,
    "determinism": contract.determinism,
    "global generators": contract.generators,
    "prepared twice": contract.prepared_twice,
    "order and batches": contract.order,
    "repeat": contract.repeat,
    "hard posteriors": contract.hard_posteriors,
    "2 and 100 classes": contract.other_classes,
    "fingerprint": settings.fingerprint,
    "strength": settings.strength,
    "columns": settings.columns,
    "export": settings.exported,
    "state growth": observations.state,
    "top class": observations.top_class,
    "target entropy": observations.target,
    "near copies": observations.near_copies,
    "label left": observations.label_left,
    "cost": observations.cost,
}


def review(subject: Subject) -> Iterator[Finding]:
    """Yield what each check finds; an error of the defense is a ``fail`` of the check that met it.

    If ``perturb`` cannot be called, or returns what is no posterior, the other checks are not run.
    """
    for name, check in FIRST.items():
        found = run(name, check, subject)
        yield found
        if found.verdict == FAIL:
            yield replace(noted(f"{len(CHECKS)} are not run until this is mended"), check="other checks")
            return
    for name, check in CHECKS.items():
        yield run(name, check, subject)


def run(name: str, check: Callable[[Subject], Finding], subject: Subject) -> Finding:
    """Return what one check finds."""
    try:
        with global_seeds(0):
            found = check(subject)
    except MadError as error:
        found = failed(str(error))
    except RAISED as error:  # whatever a plug-in raises
        found = failed(foreign.said(error) or f"it raised {type(error).__name__}: {line(error)}")
    return replace(found, check=name)
