"""The checks of a defense's settings and of what it leaves behind: fingerprints, strengths, columns and exports."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from mad import promises, schema
from mad.deployment import deploy, open_deployment
from mad.errors import MadError
from mad.lint.contract import differing
from mad.lint.finding import Finding, failed, noted, passed
from mad.lint.subject import Subject, ask
from mad.promises import ROWS
from mad.storage.fingerprint import describe, digest


def other_strengths(defense: Any) -> list[Any]:
    """Return the defense with its strength parameter at other values, weaker ones first."""
    name, found = defense.strength_parameter, []
    value = getattr(defense, name, None)
    if name not in {each.name for each in dataclasses.fields(defense)} or not isinstance(value, (int, float)):
        return []
    whole = isinstance(value, int) and name != "epsilon"
    others = (value // 2, value + 1, value - 1) if whole else (value / 2, value / 8, value * 2, value + 0.1)
    for other in dict.fromkeys(others):
        with contextlib.suppress(MadError, ValueError, TypeError):  # out of its range
            found += [dataclasses.replace(defense, **{name: other})] if other != value else []
    return found


def fingerprint(subject: Subject) -> Finding:
    """Whether all settings are in the fingerprint."""
    defense = subject.defense
    promises.named("defense", defense)
    if not hasattr(defense, defense.strength_parameter):
        return failed(f"strength_parameter must name one of its fields, got {defense.strength_parameter!r}")
    own = digest(describe(defense))
    others = other_strengths(defense)
    if any(digest(describe(each)) == own for each in others):
        return failed(f"two values of {defense.strength_parameter} have one fingerprint: make it a field that compares")
    return passed(f"{own}; another {defense.strength_parameter} has another" if others else own, fingerprint=own)


def strength(subject: Subject) -> Finding:
    """Whether the strength parameter changes answers."""
    defense, name = subject.defense, subject.defense.strength_parameter
    others, before = other_strengths(defense), subject.first.answers
    if not others:
        return passed(f"{name} is not set: there is no strength to turn")
    if name != "epsilon" and (defense.trainings(subject.victim) or hasattr(defense, "recipe")):
        return passed(f"{name} is a setting of a training, which is not repeated with another")
    for other in others:
        ready = deploy(subject.victim, other, seed=subject.seed, store=subject.store, device=subject.device)
        found = ask(ready.defense.session(), subject.shown, subject.clean).answers
        if differing(found, before):
            return passed(f"answers differ between {name}={defense.strength:g} and {other.strength:g}")
    said = f"the answers to {len(before)} images are the same at {name}="
    said += ", ".join(f"{each.strength:g}" for each in (defense, *others))
    if name == "epsilon" and differing(before, subject.clean) and not subject.deployment.defense.stateful:
        return failed(f"{said}: perturb does not read it")
    return noted(said)


def columns(subject: Subject) -> Finding:
    """Whether the columns that it adds to a record are those of its schema; ``deploy`` has checked the others."""
    session = subject.session()
    ask(session, subject.shown[:ROWS], subject.clean[:ROWS])
    schema.check(session.session_columns() | session.honest_columns([session]), "it", subject.defense.schema)
    names = ", ".join(column.name for column in subject.defense.schema)
    return passed(names or "none")


def exported(subject: Subject) -> Finding:
    """Whether an exported deployment opens and answers alike."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "deployment")
        try:
            subject.deployment.export(folder)
        except MadError as error:
            return noted(str(error))
        opened = open_deployment(folder, subject.device).defense.session()
    found = ask(opened, subject.shown, subject.clean).answers
    promises.same("an exported deployment, opened,", found, subject.first.answers)
    return passed("an exported deployment opens to the same answers")
