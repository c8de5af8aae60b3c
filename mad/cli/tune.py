r"""``mad-tune``: the best defense, and its strength, within limits on what it may cost honest users.

    mad-tune [--config-dir FOLDER] victim=mnist pool=fashion_mnist loss=0.01 l1=0.5 [-- "defense=mad 0 2" ...]

loss=0.01 is the most accuracy that the API may lose (a share), l1=2 the largest mean L1 distance of answers, latency=MS
the longest that 99 of 100 requests of one image may take. What else stands before the -- is what mad-run takes; each
argument after it is a defense with its settings, then its weakest and strongest strength, or neither. Without
candidates, those that train no network of their own are tried.

Strengths are searched, and a small panel of adversaries (as answered, labels, constant, surest half) is run, on the
validation split (victim.validation=0.1, unless given); by successive halving the better half gets four times the
queries, up to attack.budget. The winner gets records, which are the first to see the test split. seeds=0,1,2 are those
of the last round. All is kept in outputs/tune: the same command goes on where it was stopped. Needs mad[tune].
"""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mad.cli import configs
from mad.cli.command import command
from mad.cli.messages import beside, one_line
from mad.errors import MadError, check_number, whole_numbers
from mad.progress import err, out

CANDIDATES = (
    "defense=mad 0 2",
    "defense=mad defense.solver=exact 0 2",
    "defense=mad_argmax 0 2",
    "defense=mad_random 0 2",
    "defense=reverse_sigmoid 0 1",
    "defense=random_noise defense.epsilon=null 0 200",
    "defense=dcp 0 1",
    "defense=modelguard_w 0 2",
    "defense=modelguard_s 0 2",
    "defense=dp_posterior 100 0.1",
    "defense=rounding 7 1",
    "defense=argmax",
    "defense=gate 0 0.2",
)
MEMBERS = (("recovery=none",), ("recovery=argmax",), ("recovery=constant",), ("recovery=confident",))
LIMITS = ("loss", "l1", "latency")
NOT_TAKEN = ("seed", "force", "plan", "export")  # keys of mad-run that would be passed over
BUDGET = 5000


@command
def main() -> None:
    """Enter ``mad-tune``: a table of the candidates, the winner's record, and the command that serves it."""
    given = sys.argv[1:]
    if not given or "-h" in given or "--help" in given:
        out.print((__doc__ or "").replace("``", ""), soft_wrap=True, markup=False)
        return
    place = configs.folder_of(given)
    cut = given.index("--") if "--" in given else len(given)
    common, named = given[:cut], given[cut + 1 :]
    told = {key(word): word.partition("=")[2] for word in common}
    refused = [word for word in common if key(word).split(".")[0] in ("defense", "recovery")]
    if refused:
        raise MadError(f"{refused[0]}: mad-tune chooses the defense and tries recoveries; candidates come after --")
    for name in told:
        if name in NOT_TAKEN:
            instead = "; it takes seeds=0,1,2, and searches strengths with seed 0" if name == "seed" else ""
            raise MadError(f"mad-tune takes no {name}{instead}")
    words = [word for word in common if key(word) not in (*LIMITS, "seeds")]
    if "victim.validation" not in told:
        words.append("victim.validation=0.1")
    if "attack.budget" not in told:
        words.append(f"attack.budget={BUDGET}")
    sys.path.append(os.getcwd())  # plug-ins, as for mad-run
    candidates = [candidate(each) for each in named or CANDIDATES]
    twice = [name for name, count in Counter(each.name for each in candidates).items() if count > 1]
    if twice:
        raise MadError(f"{twice[0]} is a candidate twice: give it one range of strengths, from WEAKEST to STRONGEST")
    tuned(words, candidates, told, place)


def key(word: str) -> str:
    """Return the key that an override sets, with or without a plus, or deletes with a tilde."""
    return word.lstrip("+~").partition("=")[0]


def merged(words: Sequence[str]) -> list[str]:
    """Return overrides without those whose key a later one sets again; ``~a`` and ``+a=1`` go together."""
    return list({(word.startswith("~"), key(word)): word for word in words}.values())


def candidate(text: str) -> Any:
    """Return a candidate from its words: overrides, then its weakest and strongest strength, or neither."""
    from mad.tuning import Candidate

    try:
        words = shlex.split(text)
    except ValueError as error:  # an open quote
        raise MadError(f"{text!r} is no candidate: its quotes do not match") from error
    ends = [number(word) for word in words if "=" not in word]
    name = shlex.join(word for word in words if "=" in word)
    if len(ends) not in (0, 2) or None in ends or not name.startswith("defense="):
        raise MadError(f"{text!r} is no candidate: say 'defense=NAME [settings] WEAKEST STRONGEST', or no strengths")
    return Candidate(name, *ends)


def number(text: str) -> float | None:
    """Return a number, None if the text is none."""
    try:
        return float(text)
    except ValueError:
        return None


def limit(told: dict[str, str], name: str, usual: Any) -> Any:
    """Return a limit that the command line gives, or the usual one."""
    if name not in told or told[name] == "null":
        return usual
    found = number(told[name])
    if found is None:
        raise MadError(f"{name} must be a number, got {told[name]!r}")
    return found


def tuned(words: Sequence[str], candidates: Sequence[Any], told: dict[str, str], place: Path | None) -> None:
    """Tune, printing a line for each candidate that is settled; then the winner's record and how to serve it."""
    from mad import tuning, tuning_checks  # imports torch
    from mad.cli.compose import cell_of
    from mad.cli.figures import finish
    from mad.cli.launchers import jobs
    from mad.device import choose, computing
    from mad.pipeline import run
    from mad.storage.fingerprint import digest
    from mad.storage.store import Store
    from mad.study import open_study

    limits = tuning.Limits(limit(told, "loss", 0.01), limit(told, "l1", 2.0), limit(told, "latency", None))
    seeds = whole_numbers("seeds", told.get("seeds", "0"))
    with beside((*LIMITS, "seeds")):
        config = configs.composed(words, place)
    outputs, device = configs.outputs_of(config), choose(config.device)
    store, budget = Store(outputs), check_number("attack.budget", config.attack.budget, 1, whole=True)

    def make(more: Sequence[str], seed: int) -> Any:
        every = [*words, *(word for each in more for word in shlex.split(each)), f"seed={seed}"]
        last = merged(every)  # a rung's budget replaces the given one
        return cell_of(configs.composed(last, place), last)

    for each in candidates:
        usable(make, each)
    first = candidates[0].name  # sources and data count as in records: after an edit nothing of before is taken
    known = [fingerprint(make, [each.name]) for each in candidates]
    known += [fingerprint(make, [first, *member]) for member in MEMBERS]
    asked = [sorted(words), [vars(each) for each in candidates], vars(limits), seeds, MEMBERS, known]
    at_once = jobs(config.device) if device.type == "cpu" else 1

    def say(text: str) -> None:
        err.print(text, soft_wrap=True, markup=False)

    tuning_checks.keep_apart(make([first], 0), say)
    tuning_checks.enough(make([first], 0), limits.loss, say)
    with computing(config.threads):
        found, name = None, digest(asked)
        with alone(outputs, name, say):
            given = (make, limits, budget, seeds, store, device, open_study(outputs, name), say, at_once)
            for found in tuning.tune(candidates, MEMBERS, *given):
                say(line(found))
        assert found is not None
        best = [found.name, *tuning.strength_words(make, found.name, found.told or {})]
        out.print(f"best within the limits: {shlex.join(best)}", soft_wrap=True, markup=False)
        paths, stolen, costs = [], {member: [0.0, 0.0] for member in MEMBERS}, []  # with the defense and without
        for cell, member in ((make([*best, *member], seed), member) for seed in seeds for member in MEMBERS):
            for number, each in enumerate((cell, cell.reference)):
                record = run(each, store, device)[0]
                stolen[member][number] += record["stolen_accuracy"] / len(seeds)
                if not number:
                    costs.append((record["victim_accuracy"] - record["defended_accuracy"], record["l1_mean"]))
            paths.append(cell.path)
    finish(paths, outputs)
    if told_of := tuning_checks.above(costs, limits.loss, limits.l1):
        say(told_of)
    left, before = (max(shares) for shares in zip(*stolen.values(), strict=True))
    gain = "" if left < before else ": it leaves a thief no less than no defense does"
    text = f"the strongest of these adversaries steals {left:.1%}, undefended {before:.1%}{gain}"
    out.print(text, soft_wrap=True, markup=False)
    kept = [word for word in words if key(word).split(".")[0] not in ("attack", "pool", "knockoff")]
    further = [] if place is None else ["--config-dir", str(place)]
    out.print(f"serve it: mad-serve {shlex.join([*further, *kept, *best])} --check", soft_wrap=True, markup=False)


@contextmanager
def alone(outputs: Path, name: str, say: Callable[[str], object]) -> Iterator[None]:
    """Let one process at a time work on a study; a line says for which one it waits."""
    from mad.storage.files import holder, lock_file, locked

    area = Path("tune", name)
    if owner := holder(outputs / lock_file(area)):
        say(f"process {owner['pid']} on {owner['host']} tunes by the same words: waiting for what it finds")
    with locked(outputs, area):
        yield


def usable(make: Any, candidate: Any) -> None:
    """Raise MadError if a candidate's strengths are out of range, or its strongest one is no defense.

    One that cannot guard this victim at any strength is no mistake: it is left out later.
    """
    try:
        parameter = make([candidate.name], 0).defense.strength_parameter
    except MadError:
        return
    ends = [each for each in (candidate.weakest, candidate.strongest) if each is not None]
    for words in [[f"defense.{parameter}={each:.12g}"] for each in ends] or [[]]:
        made = make([candidate.name, *words], 0)
    if made.defense.name == "none":
        raise MadError(
            f"candidate {shlex.join([candidate.name, *words])!r} is no defense: say 'defense=NAME WEAKEST STRONGEST'"
        )


def fingerprint(make: Any, words: Sequence[str]) -> str:
    """Return the fingerprint of a candidate's cell, or why there is none."""
    try:
        return str(make(words, 0).fingerprint)
    except MadError as error:
        return str(error)


def line(found: Any) -> str:
    """Return what became of a candidate."""
    if found.why is not None:
        return f"{found.name}: left out ({one_line(MadError(found.why))})"
    told, strength = found.told, ""
    if told["strength"] is not None:
        strength = f" at {told['strength']:g}"
    took = "" if told["latency"] is None else f", {told['latency']:.1f} ms"
    shares = ", ".join(f"{share:.1%}" for share in found.stolen)
    return f"{found.name}{strength}: costs {told['loss']:.2%}, mean L1 {told['l1']:.2f}{took}; stolen at most {shares}"
