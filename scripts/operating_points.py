"""The strengths at which defenses cost 0.5, 1, 2 and 5 points of accuracy, chosen on the validation split.

    python scripts/operating_points.py victim=mnist outputs=outputs -- "defense=mad 0 2" "defense=reverse_sigmoid 0 1"

What stands before the -- is common to all and goes to mad-run's settings; each argument after it is a defense with its
settings, then its weakest and its strongest strength. A tenth of the training images is held out
(victim.validation=0.1, unless another share is given). Prints a table (the strength, what it costs there, mean L1), and
for each defense that has such a strength the command that steals from it. Strengths are those of one victim, of seed 0
unless ``seed`` is given; without it the commands steal from those of seeds 0, 1 and 2.
"""

import argparse
import shlex
import sys
from pathlib import Path

import mad
from mad.cli.command import Parser
from mad.cli.command import command as entry
from mad.cli.tune import candidate
from mad.device import choose, computing
from mad.operating_point import operating_points
from mad.progress import out
from mad.storage.store import Store

LOSSES = (0.005, 0.01, 0.02, 0.05)


def command(words: list[str], outputs: list[str]) -> str:
    """Return the sweep over the strengths in some words, with three seeds unless one is given, in the last folder."""
    seeds = [] if any(word.startswith("seed=") for word in words) else ["seed=0,1,2"]
    return shlex.join(["mad-run", "-m", *words, *seeds, *(f"outputs={each}" for each in outputs[-1:])])


@entry
def main() -> None:
    """Print one line for each defense and limit."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("common", nargs="*")
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    common, wanted = parser.parse_args(sys.argv[1:cut]).common, [candidate(each) for each in sys.argv[cut + 1 :]]
    if not wanted or any(each.weakest is None for each in wanted):
        parser.error("a defense with its weakest and its strongest strength stands after a --")
    outputs = [word.partition("=")[2] for word in common if word.startswith("outputs=")]
    common = [word for word in common if not word.startswith("outputs=")]
    if not any(word.startswith("victim.validation=") for word in common):
        common.append("victim.validation=0.1")
    cells, commands = [mad.load(*common, *shlex.split(each.name)) for each in wanted], []
    out.print("| defense | lost at most | strength | lost | mean L1 |\n| --- | --- | --- | --- | --- |", markup=False)
    for each, cell in zip(wanted, cells, strict=True):
        words, found = shlex.split(each.name), []
        store = Store(Path(outputs[-1] if outputs else "outputs").expanduser())
        with computing(1):
            for limit, point in operating_points(cell, LOSSES, each.weakest, each.strongest, store, choose("auto")):
                said = "none | | "
                if point is not None:
                    found.append(f"{point.strength:.12g}")  # as it was measured: rounded, it may cost more
                    said = f"{found[-1]} | {point.loss:.2%} | {point.l1_mean:.3f}"
                out.print(f"| {' '.join(words)} | {limit:.1%} | {said} |", markup=False, soft_wrap=True)
        if found:
            strengths = f"defense.{cell.defense.strength_parameter}={','.join(dict.fromkeys(found))}"
            commands.append(command([*common, *words, strengths], outputs))
    out.print("", *commands, sep="\n", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
