"""Records as a table on the terminal."""

from __future__ import annotations

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from mad.progress import out

TELL_APART = (
    *("victim", "pool", "attack", "attack_settings", "recovery", "knockoff_architecture", "knockoff_optimizer"),
    "knockoff_learning_rate",
)


def show(rows: pd.DataFrame) -> None:
    """Print one line a record: what the defense cost honest users, what the thief got, and the price in time.

    Of what else sets thefts apart, such as the attack, the columns that differ are shown.
    """
    victim, attack, pool = (common(rows, name) for name in ("victim", "attack", "pool"))
    queries = f", {rows.queries.iloc[0]:,} queries" if rows.queries.nunique() == 1 else ""
    title = f"{victim} stolen by {attack} from {pool}{queries}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    differing = [name for name in TELL_APART if name in rows and rows[name].nunique() > 1]
    for heading in (*differing, "defense", "strength", "seed"):
        table.add_column(heading.replace("_", "\n"), overflow="fold")  # a long value is folded, never cut off
    for heading in (
        "victim\n%",
        "defended\n%",
        "mean\nL1",
        "target\nbits",
        "stolen\n%",
        "undefended\nstolen %",
        "agreement\n%",
        "queries",
        "seconds",
    ):
        table.add_column(heading, justify="right", overflow="fold")
    rows = pd.concat([rows[rows.defense == "none"], rows[rows.defense != "none"]])
    for _, row in rows.iterrows():
        table.add_row(
            *(str(row[name]) for name in differing),
            f"{row.defense} {row.defense_settings}".strip(),
            "" if pd.isna(row.strength) else f"{row.dial}={row.strength:g}",
            str(row.seed),
            *(f"{100 * row[name]:.1f}" for name in ("victim_accuracy", "defended_accuracy")),
            f"{row.l1_mean:.3f}",
            "" if pd.isna(row.get("target_entropy")) else f"{row.target_entropy:.2f}",
            f"{100 * row.stolen_accuracy:.1f}",
            "" if pd.isna(row.stolen_accuracy_undefended) else f"{100 * row.stolen_accuracy_undefended:.1f}",
            f"{100 * row.agreement:.1f}",
            f"{row.queries:,}",
            f"{row.seconds_queries + row.seconds_knockoff:.0f}",
        )
    out.print(table)


def common(rows: pd.DataFrame, name: str) -> str:
    """Return what all rows have in a column, or that they differ."""
    return str(rows[name].iloc[0]) if rows[name].nunique() == 1 else f"several {name}s"
