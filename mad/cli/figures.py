"""``mad-figures``, and the output at the end of a run: ``records.csv``, figures and the table."""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mad.cli import configs
from mad.cli.command import Parser, command
from mad.cli.known import FOLDER, package
from mad.errors import MadError
from mad.progress import out
from mad.schema import Record
from mad.storage.files import UnwritableError, advising, locked, write_alone

if TYPE_CHECKING:
    from pandas import DataFrame

WHAT = {
    "paper": "paper, the paper's figures, Table 1 and ledger",
    "pareto": "pareto, all defenses of each theft with their Pareto front, as figure and table",
    "board": "board, each defense by what its strongest adversary leaves, as figure and table",
}
DERIVED = Path("derived")  # the lock of records.csv and figures, so that they are written from the newest records


def finish(paths: list[Path], outputs: Path) -> None:
    """Write ``records.csv`` and the figures of the records' comparison groups; then print their table and the files.

    Where a theft was run with the members of a panel, its board takes the figures' place.
    """
    from mad.figures.board import PANEL, boards
    from mad.figures.table import show

    if not paths:
        return
    found, panel, written = None, False, list[Path]()
    try:
        with locked(outputs, DERIVED):
            found = beside(paths, outputs)
            if found is None:
                return
            table, groups, _ = found
            panel = bool(boards(groups, PANEL))  # its groups' figures, dozens with a point or two each, tell nothing
            written.extend(derive(table, groups, outputs, what="board" if panel else None))
    except UnwritableError:
        found = found or beside(paths, outputs)  # what cannot be written can be read
        panel = found is not None and bool(boards(found[1], PANEL))
        raise
    finally:  # show the table even if a figure failed
        if found is not None:
            show(found[2])
        if found is not None and panel:
            from mad.figures.board_views import printed  # needs matplotlib

            for text in printed(found[1], PANEL, out.width):
                out.print(text, soft_wrap=True, markup=False)
        listed(written)


def beside(paths: list[Path], outputs: Path) -> tuple[DataFrame, DataFrame, DataFrame] | None:
    """Return all records, those of the comparison groups of some, and of these the ones to show; None without any."""
    from mad.storage import records

    table = records.read(outputs)
    mine = table if table.empty else table[table.fingerprint.isin([path.parent.name for path in paths])]
    if mine.empty:
        return None
    groups = table[table.comparison_group.isin(mine.comparison_group)]
    reference = (groups.defense == "none") & groups.seed.isin(mine.seed)
    return table, groups, groups[groups.fingerprint.isin(mine.fingerprint) | reference]


def derive(table: DataFrame, groups: DataFrame, outputs: Path, *, what: str | None = None) -> Iterator[Path]:
    """Write ``records.csv`` and the figures of some comparison groups, or those of ``WHAT``; yield their paths.

    The figure of a group whose records did not change is left as it is. The caller holds the lock of these files. The
    user's own matplotlib settings are ignored.
    """
    from mad.storage import records, settled

    if not table.empty:
        yield records.write_csv(table, outputs)
    groups = settled.printable(groups)
    named = {} if what else figures_of(groups)
    new = {path: each for path, each in named.items() if not is_drawn(outputs, path, each[1])}
    yield from (outputs / f"{path}.png" for path in named if path not in new)
    if not new and not what:
        return
    import matplotlib
    import pandas as pd

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        if what == "paper":
            from mad.figures import paper

            yield from paper.write_all(groups, outputs)
            return
        if what == "pareto":
            from mad.figures import pareto

            yield from pareto.write_all(groups, outputs / "figures")
            return
        if what == "board":
            from mad.figures import board_views

            yield from board_views.write_all(groups, outputs)
            return
        from mad.figures import tradeoff

        yield from tradeoff.write_all(pd.concat([rows for rows, _ in new.values()]), outputs / "figures")
        for path, (_, stamp) in new.items():
            write_alone(outputs, FOLDER, stamp_of(path), stamp.encode())


def figures_of(groups: DataFrame) -> dict[Path, tuple[DataFrame, str]]:
    """Return the records of each group's figure and a checksum of them and of this package, by the figure's path.

    Paths are relative to the outputs folder and lack the ending.
    """
    from mad.figures.groups import figure_groups, file_name

    found = {}
    for _, rows in groups.groupby(figure_groups(groups)):
        # Neither columns that only other groups have, nor their order and types in the whole table, count.
        own = [{name: whole(each) for name, each in row.items() if not empty(each)} for row in rows.to_dict("records")]
        text = package() + json.dumps(own, sort_keys=True, default=str)
        found[Path("figures", file_name(rows.iloc[0]))] = rows, hashlib.sha256(text.encode()).hexdigest()
    return found


def empty(value: Any) -> bool:
    """Tell whether a record has nothing in a column."""
    return value is None or value != value


def whole(value: Any) -> Any:
    """Return a whole number as such, also where its column is of floats; anything else as it is."""
    return int(value) if isinstance(value, (bool, float)) and float(value).is_integer() else value


def is_drawn(outputs: Path, path: Path, stamp: str) -> bool:
    """Tell whether a figure shows the records that a checksum is of."""
    with suppress(OSError):
        there = all((outputs / f"{path}.{ending}").is_file() for ending in ("png", "pdf"))
        return there and (outputs / stamp_of(path)).read_text() == stamp
    return False


def stamp_of(path: Path) -> Path:
    """Return the file that has the checksum of a figure's records, relative to the outputs folder."""
    return FOLDER / f"{path.name}.drawn"


def listed(files: list[Path]) -> None:
    """Print the paths of files."""
    for file in files:
        out.print(str(file), soft_wrap=True, markup=False)


@command
def main() -> None:
    """Enter ``mad-figures``: records to ``records.csv`` and figures; nothing is trained."""
    parser = Parser(
        prog="mad-figures",
        description="Draw every trade-off curve from the records of earlier runs; trains nothing.",
    )
    parser.add_argument("what", nargs="?", metavar="|".join(WHAT), help=f"instead: {'; '.join(WHAT.values())}")
    add_records(parser)
    arguments = parser.parse_args()
    if arguments.what not in (None, *WHAT):
        raise MadError(
            f"mad-figures draws the trade-off curves, or with a word ({', '.join(WHAT)}) others; got {arguments.what!r}"
        )
    outputs, others = given_records(arguments)
    from mad.storage import records

    written = list[Path]()
    try:
        with advising("make it writable, or name a copy of the outputs: --outputs COPY"), locked(outputs, DERIVED):
            table = records.read(outputs)
            every = records.read(outputs, others) if others else table
            if every.empty:
                raise no_record(outputs)
            written.extend(derive(table, every, outputs, what=arguments.what))
    finally:
        listed(written)


def add_records(parser: Parser) -> None:
    """Add the flags that say which records to show; see ``given_records``."""
    parser.add_argument("--outputs", default="outputs", help="the outputs folder (default: outputs)")
    parser.add_argument(
        "--records",
        action="append",
        default=[],
        metavar="FILE",
        help="records of others to show, too, as in a records.csv, such as docs/bench/panel.csv; may be said again",
    )


def given_records(given: Namespace) -> tuple[Path, list[Record]]:
    """Return the outputs folder that was given, and the records of others.

    Raises:
        MadError: if there is no record.
    """
    from mad.storage import records

    outputs = Path(configs.home("--outputs", given.outputs))
    others = [each for file in given.records for each in records.read_csv(Path(configs.home("--records", file)))]
    if not others and not records.paths(outputs):  # before the folder is made
        raise no_record(outputs)
    return outputs, others


def no_record(outputs: Path) -> MadError:
    """Return the error that an outputs folder holds no record, or damaged ones only."""
    return MadError(f"no record below {outputs}/runs; run mad-run first, or say --outputs FOLDER or --records FILE")
