"""``mad-lint``: a review of a defense, check by check: pass, note or fail, and the reason."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from mad.cli import configs
from mad.cli.command import Leave, Parser, command
from mad.errors import MadError
from mad.progress import out
from mad.storage.files import advising, check_writable, write

if TYPE_CHECKING:
    from mad.lint.finding import Finding
    from mad.lint.subject import Subject

QUICK = {  # a victim of the digits that is trained in a second
    "architecture": "mlp",
    "trainer.epochs": "2",
    "trainer.min_steps": "200",
    "pool.size": "2000",
}
ELSEWHERE = "say --json FILE, in a folder you may write"
NAMING = ("victim", "dataset", "experiment")  # words with these names say which victim; it is then kept
ABOUT = """Review a defense: what it promises (fail), and what its author should know (note).
It takes mad-run's words; without a victim, a small one of the digits is trained, which takes seconds and is not kept.
The exit code is 1 if a check fails."""


@command
def main() -> None:
    """Enter ``mad-lint``."""
    arguments = parse(sys.argv[1:] or ["--help"])
    sys.path.append(os.getcwd())  # plug-ins, as for mad-run
    place = configs.further(arguments.config_dir)
    named = any(word.lstrip("+~").partition("=")[0].partition(".")[0] in NAMING for word in arguments.words)
    words = arguments.words if named else [*quick(arguments.words), *arguments.words]
    config = configs.composed(words, place)
    file = None if arguments.json is None else Path(configs.home("--json", arguments.json))
    if file is not None:
        with advising(ELSEWHERE):
            check_writable(file)
    with subject(config, words, named) as given:
        from mad.lint.review import review

        findings = list(review(given))
        told = summary(given, findings)
    show(findings, told)
    if file is not None:
        with advising(ELSEWHERE):
            write(file, content(told, findings))
    if told["fail"]:
        raise Leave(1)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command line.

    Raises:
        MadError: if it is not valid.
    """
    parser = Parser(prog="mad-lint", description=ABOUT)
    parser.add_argument("words", nargs="*", metavar="key=value", help="as mad-run takes: defense=mad defense.epsilon=1")
    parser.add_argument("--config-dir", help="a further folder of configs, as for mad-run")
    parser.add_argument("--json", metavar="FILE", help="also write what was found to a file")
    found = parser.parse_intermixed_args(words)
    odd = next((word for word in found.words if "=" not in word), None)
    if odd is not None:
        raise MadError(f"{odd!r} is no setting: it must be key=value, like defense=mad")
    return found


def quick(words: Sequence[str]) -> list[str]:
    """Return the words of a small victim; what the command line chooses itself is left out."""
    own = {word.lstrip("+~").partition("=")[0] for word in words}
    groups = {name.partition(".")[0] for name in own if name not in QUICK}
    return [f"{key}={value}" for key, value in QUICK.items() if key not in own and key.partition(".")[0] not in groups]


@contextlib.contextmanager
def subject(config: Any, words: Sequence[str], named: bool) -> Iterator[Subject]:
    """Yield the defense under review; a ``named`` victim is loaded from the outputs folder, or trained and kept."""
    from mad.cli.compose import cell_of
    from mad.device import choose, use_threads
    from mad.lint.subject import Subject
    from mad.storage.store import Store

    use_threads(config.threads)
    cell, device = cell_of(config, words), choose(config.device)
    if cell.victim.form == "service":
        raise MadError("mad-lint asks thousands of times, which a service may charge for: leave victim= out")
    with tempfile.TemporaryDirectory() as place:
        store = Store(configs.outputs_of(config) if named else Path(place))
        second = store if named else None
        yield Subject(cell.victim, cell.defense, cell.pool, cell.seed, store, second, device)


def summary(given: Subject, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return what was reviewed, and how many checks had each verdict."""
    from mad.storage.fingerprint import describe, digest, settings

    counts = Counter(each.verdict for each in findings)
    return {
        "defense": given.defense.name,
        "settings": settings(given.defense),
        given.defense.strength_parameter: given.defense.strength,
        "fingerprint": digest(describe(given.defense)),
        "victim": given.victim.name,
        **{verdict: counts[verdict] for verdict in ("pass", "note", "fail")},
    }


def show(findings: Sequence[Finding], told: dict[str, Any]) -> None:
    """Print a line for each check, and the counts."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for each in findings:
        table.add_row(each.verdict, each.check, each.reason)
    out.print(table)
    counts = f"{told['pass']} pass, {told['note']} note, {told['fail']} fail"
    out.print(f"defense {told['defense']} on {told['victim']}: {counts}", soft_wrap=True, markup=False)


def content(told: dict[str, Any], findings: Sequence[Finding]) -> bytes:
    """Return what was found as JSON."""
    rows = [
        {"check": each.check, "verdict": each.verdict, "reason": each.reason, "numbers": each.numbers}
        for each in findings
    ]
    return json.dumps({**told, "checks": rows}, indent=2).encode() + b"\n"
