"""The tables of a report's page: heads, and rows of cells that are texts already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mad.figures import board
from mad.figures.board_views import ADVERSARIES, COSTS, label, texts
from mad.report.contents import Theft, command, key

UTILITY = {head: name for head, name in COSTS.items() if name != "seconds"}
ONE_SEED, GIVEN = "anecdote", "given clean answers"


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Args:
        text: what it shows.
        to: the id of the row that it leads to; empty for none.
        mark: a short remark beside it.
        share: percent, for a cell of a heat map; None for others.
        code: whether it is a command.
        links: texts that lead to rows, with their ids, after ``text``.
    """

    text: str
    to: str = ""
    mark: str = ""
    share: float | None = None
    code: bool = False
    links: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Row:
    """A row: its cells, the first of which is its head, and its id, to which other tables lead."""

    cells: list[Cell]
    id: str = ""


@dataclass(frozen=True)
class Table:
    """A table: the heads of its columns, and its rows."""

    heads: list[str]
    rows: list[Row]


class Links:
    """The ids of the rows of members and of records, by what they are of."""

    def __init__(self, thefts: list[Theft], records: pd.DataFrame) -> None:
        self.records = {str(name): f"r{place}" for place, name in enumerate(records.fingerprint)}
        self.members: dict[Any, str] = {}
        for number, theft in enumerate(thefts):
            for place, (_, at) in enumerate(theft.members.iterrows()):
                self.members[theft.title, key(at)] = f"m{number}-{place}"

    def member(self, theft: Theft, at: pd.Series, name: str) -> str:
        """Return the id of the row of a member of a board's row."""
        return self.members.get((theft.title, key(at, name)), "")


def boards(theft: Theft, links: Links) -> Table:
    """Return a board: what the adversaries reach."""
    shown = used(theft, ADVERSARIES)
    rows = []
    for _, at in theft.table.iterrows():
        cells = texts(at)
        to = {name: links.member(theft, at, at.worst_member) for name in ("worst", "worst_member")}
        to |= {
            name: links.member(theft, at, member) for name, member in [("naive", board.NAIVE), ("labels", board.LABELS)]
        }
        mark = {"seeds": ONE_SEED} if at.seeds == 1 else {}
        found = [
            Cell(cells[name], to.get(name, "") if cells[name] else "", mark.get(name, "")) for name in shown.values()
        ]
        rows.append(Row([Cell(label(at)), *found]))
    return Table(["defense", *shown], rows)


def utility(theft: Theft) -> Table:
    """Return what honest users pay for each defense."""
    shown = used(theft, UTILITY)
    rows = [
        Row([Cell(label(at)), *(Cell(texts(at)[name]) for name in shown.values())]) for _, at in theft.table.iterrows()
    ]
    return Table(["defense", *shown], rows)


def used(theft: Theft, columns: dict[str, str]) -> dict[str, str]:
    """Return the columns that are not empty in a whole board; older records lack some."""
    every = [texts(at) for _, at in theft.table.iterrows()]
    return {head: name for head, name in columns.items() if any(row[name] for row in every)}


def heat(theft: Theft, links: Links) -> Table | None:
    """Return what each adversary reaches behind each defense; None if there is one.

    The adversary that met most defenses is first, then the strongest; those with clean answers are last.
    """
    found = pd.DataFrame(list(theft.table.by_member)).rename(columns=str)
    if found.shape[1] < 2:
        return None
    given = set(theft.members[board.informed(theft.members)].member)
    columns = sorted(map(str, found), key=lambda name: (name in given, -found[name].count(), -found[name].mean()))
    rows = []
    for (_, at), shares in zip(theft.table.iterrows(), found[columns].to_numpy(), strict=True):
        cells = [Cell(label(at))]
        for name, share in zip(columns, shares, strict=True):
            told = "" if pd.isna(share) else f"{share:.1f}"
            cells.append(
                Cell(told, links.member(theft, at, name) if told else "", share=float(share) if told else None)
            )
        rows.append(Row(cells))
    return Table(["defense", *(f"{name} ({GIVEN})" if name in given else name for name in columns)], rows)


def seconds(theft: Theft) -> Table:
    """Return what a run of each defense takes, mean seconds."""
    parts = {"answers": "seconds_queries", "stolen model": "seconds_knockoff", "victim": "seconds_victim"}
    rows = []
    for _, at in theft.seconds.iterrows():
        found = ["" if pd.isna(at[name]) else f"{at[name]:,.1f}" for name in parts.values()]
        rows.append(Row([Cell(named(at)), *map(Cell, found), Cell(str(at.runs)), Cell(at.device)]))
    return Table(["defense", *(f"{head}, s" for head in parts), "runs", "device"], rows)


def named(at: pd.Series) -> str:
    """Return the defense of a record, or of a row of members, with its settings and strength."""
    name, parameter, _, _ = key(at, "")
    return label(pd.Series({"defense": name, "parameter": parameter, "strength": at.strength}))


def members(theft: Theft, links: Links) -> Table:
    """Return each adversary behind each defense, with the fingerprints of its records."""
    rows = []
    for _, at in theft.members.iterrows():
        bar = "" if pd.isna(at.stolen_deviation) else f" ± {at.stolen_deviation:.1f}"
        rows.append(
            Row(
                [
                    Cell(named(at)),
                    Cell(at.member),
                    Cell(at.recovery_knows),
                    Cell(f"{at.stolen:.1f}{bar}"),
                    Cell("" if pd.isna(at.agreement) else f"{at.agreement:.1f}"),
                    Cell(str(at.seeds), mark=ONE_SEED if at.seeds == 1 else ""),
                    Cell("", links=tuple((name, links.records.get(name, "")) for name in at.records.split())),
                ],
                links.members[theft.title, key(at)],
            )
        )
    return Table(["defense", "adversary", "was given", "stolen %", "agreement %", "seeds", "records"], rows)


def runs(records: pd.DataFrame, links: Links) -> Table:
    """Return every record with its command, and what made it."""
    names = {"fingerprint", "victim", "pool", "budget", "seed"}
    assert names <= {*records}  # every record has them
    rows = [Row(list(cells(at)), links.records[str(at.fingerprint)]) for _, at in board.named(records).iterrows()]
    heads = [
        "fingerprint",
        "theft",
        "defense",
        "adversary",
        "seed",
        "stolen %",
        "API %",
        "mean L1",
        "command",
        "made by",
    ]
    return Table(heads, rows)


def cells(at: pd.Series) -> Iterator[Cell]:
    """Yield the cells of a record."""
    made = [
        f"mad {at.get('version')}",
        f"torch {at.get('torch')}",
        *(str(at.get(each)) for each in ("device", "precision")),
    ]
    alone = pd.DataFrame([at])
    yield Cell(str(at.fingerprint))
    yield Cell(f"{at.victim}, {at['pool']}, {at.budget:,}")
    yield Cell(named(at))
    yield Cell(at.member)
    yield Cell(str(at.seed))
    yield from (Cell(f"{100 * at[name]:.1f}") for name in (board.STOLEN, "defended_accuracy"))
    yield Cell(f"{at.l1_mean:.3f}")
    yield Cell(command(alone) or "built in Python", code=True)
    yield Cell(", ".join(told(made)))


def told(words: Iterable[str]) -> list[str]:
    """Return the words that say something: an older record lacks some columns."""
    return [word for word in words if not word.endswith(("None", "nan"))]
