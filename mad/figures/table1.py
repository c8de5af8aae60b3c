"""Table 1: what each attack gets from undefended victims."""

from __future__ import annotations

import pandas as pd

from mad.figures.cells import Theft, undefended
from mad.figures.groups import MARK, MEANING, mark, spoken
from mad.figures.plane import ATTACKS
from mad.figures.table import Column, fold, grid
from mad.progress import out


def table1(thefts: list[Theft]) -> pd.DataFrame:
    """Return one row per victim and pool: accuracies in percent, mean and standard deviation over the seeds.

    Unknown accuracies are blank. ``!`` marks an accuracy if one of its stolen models learned nothing.
    """
    lines = []
    for theft in thefts:
        cells = {attack: undefended(theft.cells(attack)) for attack in ATTACKS}
        if all(rows.empty for rows in cells.values()):
            continue
        known = pd.concat(list(cells.values()))
        line = {
            "victim": theft.victim,
            "pool": theft.pool,
            "victim %": spoken(100 * known.drop_duplicates("seed").victim_accuracy),
        }
        for attack, rows in cells.items():
            line[attack] = spoken(100 * rows.stolen_accuracy, mark(rows))
        line["queries"] = " / ".join(f"{budget:,}" for budget in sorted(set(known.budget)))
        line["seeds"] = " / ".join(map(str, sorted({rows.seed.nunique() for rows in cells.values() if len(rows)})))
        lines.append(line)
    return pd.DataFrame(lines)


def markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def show(table: pd.DataFrame) -> None:
    """Print it."""
    labels = [f"{line.victim} stolen with {line.pool}" for line in table.itertuples()]
    rest = {name: 1 if name in ("queries", "seeds") else 0 for name in table.columns if name not in ("victim", "pool")}
    columns = [Column(name, table[name].astype(str).tolist(), rank) for name, rank in rest.items()]
    head, rows = grid("Table 1: undefended", labels, columns, out.width)
    notes = fold(MEANING, out.width) if table.map(lambda cell: MARK in str(cell)).any(axis=None) else []
    for text in (*head, *(text for row in rows for text in row), *notes):
        out.print(text, soft_wrap=True, markup=False)
