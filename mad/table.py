"""Records as a table on the terminal."""

from __future__ import annotations

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from mad.progress import out


def show(rows: pd.DataFrame) -> None:
    """Print one line a record: what the defense cost honest users, what the thief got, and the price in time."""
    first = rows.iloc[0]
    title = f"{first.victim} stolen by {first.attack} from {first['pool']}, {first.queries:,} queries"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("defense", "strength", "seed"):
        table.add_column(heading)
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
        table.add_column(heading, justify="right")
    rows = pd.concat([rows[rows.defense == "none"], rows[rows.defense != "none"]])
    for _, row in rows.iterrows():
        table.add_row(
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
