"""Table 1: what each attack gets from undefended victims."""

from __future__ import annotations

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from mad.figures.cells import Theft, undefended
from mad.figures.plane import ATTACKS
from mad.progress import out


def table1(thefts: list[Theft]) -> pd.DataFrame:
    """Return a row a victim and pool: accuracies in percent, mean and deviation over the seeds; blank where unknown."""
    lines = []
    for theft in thefts:
        cells = {attack: undefended(theft.cells(attack)) for attack in ATTACKS}
        if all(rows.empty for rows in cells.values()):
            continue
        known = pd.concat(list(cells.values()))
        line = {"victim": theft.victim, "pool": theft.pool, "victim %": spoken(known.drop_duplicates("seed"), "victim")}
        for attack, rows in cells.items():
            line[attack] = spoken(rows, "stolen")
        line["queries"] = " / ".join(f"{budget:,}" for budget in sorted(set(known.budget)))
        line["seeds"] = " / ".join(map(str, sorted({rows.seed.nunique() for rows in cells.values() if len(rows)})))
        lines.append(line)
    return pd.DataFrame(lines)


def spoken(rows: pd.DataFrame, whose: str) -> str:
    """Return the mean and the deviation of an accuracy."""
    values = 100 * rows[f"{whose}_accuracy"]
    return "" if values.empty else f"{values.mean():.1f}" + (f" ± {values.std():.1f}" if len(values) > 1 else "")


def markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def show(table: pd.DataFrame) -> None:
    """Print it."""
    shown = Table(title="Table 1: undefended", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in table.columns:
        shown.add_column(name)
    for line in table.astype(str).to_numpy().tolist():
        shown.add_row(*line)
    out.print(shown)
