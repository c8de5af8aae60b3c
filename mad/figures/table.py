"""Records as a table on the terminal; it shows as many columns as fit and breaks no word."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pandas as pd
from rich.cells import cell_len

from mad.figures.groups import MARK, MEANING, SAID, counted, differing, figure_groups, mark, said, spoken, whole
from mad.progress import out

GAP = 2
LABEL = 30  # most characters of the labels' column; longer labels get lines of their own
WHAT = ["defense", "defense_settings", "strength_parameter", "strength"]
NOTHING_LEARNED = f"{MEANING}; try a smaller knockoff.learning_rate, more steps (knockoff.min_steps) or more queries"
ELSEWHERE = "Each seed's numbers and all other columns are in records.csv."


@dataclass(frozen=True)
class Column:
    """A column of numbers; columns of the highest rank are left out first, those of rank 0 never."""

    head: str
    cells: list[str]
    rank: int = 0

    @property
    def width(self) -> int:
        """The width in characters, with the gap before it."""
        return GAP + max(map(cell_len, [self.head, *self.cells]))


def fold(text: str, width: int) -> list[str]:
    """Return lines of at most ``width`` characters; words are not broken, so a long word may exceed it."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def grid(head: str, labels: list[str], columns: list[Column], width: int) -> tuple[list[str], list[list[str]]]:
    """Return the lines of a table's head, and the lines of each row: a label and the columns that fit.

    Args:
        head: the heading of the labels.
        labels: one per row; a long label gets lines of its own above its numbers.
        columns: the columns, in order.
        width: characters per line.
    """
    longest, shown = min(LABEL, max(map(cell_len, [head, *labels]))), [each for each in columns if not each.rank]
    for each in sorted((each for each in columns if each.rank), key=lambda each: each.rank):
        if longest + each.width + sum(one.width for one in shown) > width:
            break
        shown.append(each)
    shown = [each for each in columns if each in shown]
    room = max(1, width - sum(each.width for each in shown))
    first = max([cell_len(each) for each in [head, *labels] if cell_len(each) <= room], default=0)

    def line(label: str, cells: Iterable[str]) -> list[str]:
        above = fold(label, width) if cell_len(label) > room else []
        text = "" if above else label
        padded = (" " * (each.width - cell_len(cell)) + cell for each, cell in zip(shown, cells, strict=True))
        return [*above, (text + " " * (first - cell_len(text)) + "".join(padded)).rstrip()]

    rule = "─" * (first + sum(each.width for each in shown))
    rows = [line(label, (each.cells[place] for each in shown)) for place, label in enumerate(labels)]
    return [*line(head, (each.head for each in shown)), rule], rows


def show(rows: pd.DataFrame) -> None:
    """Print records on the terminal."""
    for text in lines(rows, out.width):
        out.print(text, soft_wrap=True, markup=False)


def lines(rows: pd.DataFrame, width: int) -> list[str]:
    """Return a table of the defenses' costs and of the stolen models, one row per defense and strength.

    A row shows means and standard deviations over the seeds. Each comparison group has a part of its own.
    """
    rows = pd.concat([rows[rows.defense == "none"], rows[rows.defense != "none"]])
    parts = {str(name): list(cells_of(each)) for name, each in rows.groupby(figure_groups(rows), sort=False)}
    every = [cell for part in parts.values() for cell in part]
    labels = [f"{cell.defense.iloc[0]} {cell.defense_settings.iloc[0]}".strip() for cell in every]
    head, body = grid("defense", labels, columns(rows, every), width)
    found, printed = fold(title(rows), width), iter(body)
    for name, heading in headings(rows).items():
        found += ["", *fold(heading, width), *head]
        found += [text for _ in parts[name] for text in next(printed)]
    notes = [ELSEWHERE]
    if any(cell.seed.nunique() > 1 for cell in every):
        notes.insert(0, "±: one standard deviation over the seeds.")
    if mark(rows):
        notes.insert(0, NOTHING_LEARNED)
    return [*found, "", *(text for each in notes for text in fold(each, width))]


def cells_of(group: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the records of each defense and strength, one record per seed."""
    for _, cell in group.groupby(WHAT, sort=False, dropna=False):
        yield cell


def columns(rows: pd.DataFrame, every: list[pd.DataFrame]) -> list[Column]:
    """Return the columns of a table with the given rows."""
    parameters = list(dict.fromkeys(rows[rows.defense != "none"].dropna(subset="strength").strength_parameter)) or [
        "epsilon"
    ]
    turned = [
        Column(parameters[0] if len(parameters) == 1 else "strength", [strength(cell, parameters) for cell in every])
    ]
    if rows.seed.nunique() > 1:
        turned.append(Column("seeds", [str(cell.seed.nunique()) for cell in every]))
    marks = [mark(cell) for cell in every]
    marks = [each or " " * len(MARK) for each in marks] if any(marks) else marks

    def percent(name: str) -> list[str]:
        ours = name in ("stolen_accuracy", "agreement")
        return [spoken(100 * cell[name]) + (one if ours else "") for cell, one in zip(every, marks, strict=True)]

    def mean(name: str, digits: int) -> list[str]:
        values = [cell[name].mean() if name in cell else float("nan") for cell in every]
        return ["" if pd.isna(value) else f"{value:,.{digits}f}" for value in values]

    whole_budget = (rows.queries == rows.budget).all()
    seconds = [f"{(cell.seconds_queries + cell.seconds_knockoff).mean():.0f}" for cell in every]
    found = [
        *turned,
        Column("victim %", percent("victim_accuracy"), 3),
        Column("defended %", percent("defended_accuracy")),
        Column("mean L1", mean("l1_mean", 3), 1),
        Column("target bits", mean("target_entropy", 2), 4),
        Column("stolen %", percent("stolen_accuracy")),
        Column("agreement %", percent("agreement"), 2),
        Column("queries", [] if whole_budget else mean("queries", 0), 5),
        Column("seconds", seconds, 6),
    ]
    return [each for each in found if any(each.cells)]


def strength(cell: pd.DataFrame, parameters: list[str]) -> str:
    """Return the strength of a defense, with the name of its parameter if there are several parameters."""
    value, parameter = cell.strength.iloc[0], cell.strength_parameter.iloc[0]
    if pd.isna(value) or (parameters != ["epsilon"] and cell.defense.iloc[0] == "none"):
        return ""
    return f"{value:g}" if len(parameters) == 1 else f"{parameter}={value:g}"


def title(rows: pd.DataFrame) -> str:
    """Return the title: what all comparison groups have in common."""
    first, apart = rows.iloc[0], differing(rows)
    number = rows.seed.nunique()
    seeds = counted([number]) if number > 1 else f"seed {first.seed}"
    if not apart:
        return f"{whole(first)}; {seeds}"
    victim, attack, pool = (
        f"several {name}s" if name in apart else first[name] for name in ("victim", "attack", "pool")
    )
    rest = said(first, [name for name in SAID if name not in (*apart, "victim", "attack", "pool")])
    return "; ".join(filter(None, [f"{victim} stolen by {attack} from {pool}", rest, seeds]))


def headings(rows: pd.DataFrame) -> dict[str, str]:
    """Return how each comparison group differs from the others; if no column tells, the digits of its file name."""
    firsts = {str(group): each.iloc[0] for group, each in rows.groupby(figure_groups(rows), sort=False)}
    found = {group: said(first, differing(rows)) for group, first in firsts.items()}
    if len(set(found.values())) == len(found):
        return found
    return {group: ", ".join(filter(None, [text, f"group {group[:6]}"])) for group, text in found.items()}
