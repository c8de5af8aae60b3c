"""``mad-figures``, and what a run writes at its end: ``records.csv``, figures and the table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mad.cli import configs
from mad.cli.command import Parser, command
from mad.errors import MadError
from mad.progress import out
from mad.storage.files import locked

if TYPE_CHECKING:
    from pandas import DataFrame

DERIVED = Path("derived")  # its lock: who reads records later writes later what is derived from them


def finish(paths: list[Path], outputs: Path) -> None:
    """Write ``records.csv`` and the figures of some records' groups; then show their table and these files."""
    from mad.figures.table import show
    from mad.storage import records

    if not paths:
        return
    shown, written = None, list[Path]()
    try:
        with locked(outputs, DERIVED):
            table = records.read(outputs)
            mine = table if table.empty else table[table.fingerprint.isin([path.parent.name for path in paths])]
            if mine.empty:
                return
            groups = table[table.comparison_group.isin(mine.comparison_group)]
            reference = (groups.defense == "none") & groups.seed.isin(mine.seed)
            shown = groups[groups.fingerprint.isin(mine.fingerprint) | reference]
            written.extend(derive(table, groups, outputs))
    finally:  # what there is is shown, also where a figure could not be drawn
        if shown is not None:
            show(shown)
        listed(written)


def derive(table: DataFrame, groups: DataFrame, outputs: Path, *, paper: bool = False) -> Iterator[Path]:
    """Write ``records.csv`` and figures, of some comparison groups or the paper's; yield what is written.

    The caller holds the lock of these. A user's own matplotlib settings are left aside.
    """
    import matplotlib

    from mad.storage import records

    yield records.write_csv(table, outputs)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        if paper:
            from mad.figures.paper import write_all

            yield from write_all(table, outputs)
        else:
            from mad.figures import tradeoff

            yield from tradeoff.write_all(groups, outputs / "figures")


def listed(files: list[Path]) -> None:
    """Print the places of files."""
    for file in files:
        out.print(str(file), soft_wrap=True, markup=False)


@command
def main() -> None:
    """Enter ``mad-figures``: records to ``records.csv`` and figures; nothing is trained."""
    parser = Parser(
        prog="mad-figures",
        description="Draw every trade-off curve from the records of earlier runs; trains nothing.",
    )
    parser.add_argument("what", nargs="?", metavar="paper", help="the paper's figures, Table 1 and ledger instead")
    parser.add_argument("--outputs", default="outputs", help="the outputs folder (default: outputs)")
    arguments = parser.parse_args()
    if arguments.what not in (None, "paper"):
        raise MadError(
            f"mad-figures draws the trade-off curves, or with the word paper the paper's figures; "
            f"got {arguments.what!r}"
        )
    from mad.storage import records

    outputs, written = Path(configs.home("--outputs", arguments.outputs)), list[Path]()
    if records.read(outputs).empty:
        raise MadError(f"no record below {outputs}/runs; run mad-run first, or say --outputs FOLDER")
    try:
        with locked(outputs, DERIVED):
            table = records.read(outputs)
            written.extend(derive(table, table, outputs, paper=arguments.what == "paper"))
    finally:
        listed(written)
