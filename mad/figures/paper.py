"""All figures of the paper for which there are records, Table 1, and the ledger of the paper's and our numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from mad.figures import ledger, moves, online, plane, table1
from mad.figures.cells import Theft, foremost, thefts
from mad.figures.tradeoff import each, save
from mad.progress import err
from mad.storage.files import write_alone

FIGURES = {
    "fig3": plane.fig3,
    "fig4": plane.fig4,
    "fig5": plane.fig5,
    "fig6": online.fig6,
    "fig7": online.fig7,
    "fig8": plane.fig8,
    "fig9": moves.fig9,
    "budget": moves.budget,
}


def write_all(table: pd.DataFrame, outputs: Path) -> list[Path]:
    """Write Table 1, the figures and the ledger below ``outputs/figures/paper``; return the paths.

    Table 1 is also printed. It shows every pool of a victim, the figures show the pool with the most records, and the
    ledger takes each number from the pool with the most queries that has it.
    """
    every, area = thefts(table), Path("figures", "paper")
    known = foremost(every)
    for theft in every:
        if not any(theft is drawn for drawn in known):
            said = (
                f"{theft.victim} stolen with {theft.pool}: another pool has more records; this one is "
                "in Table 1 and the ledger only"
            )
            err.print(said, soft_wrap=True)

    def text(name: str, make: Callable[[], str]) -> Path | None:
        content = make()
        return write_alone(outputs, area, area / name, content.encode()) if content else None

    def figure(name: str, draw: Callable[[list[Theft]], Figure | None]) -> Path | None:
        drawn = draw(known)
        return save(drawn, outputs, area / name, area) if drawn else None

    first = cache(lambda: table1.table1(every))
    texts = {
        "ledger.csv": lambda: ledger.ledger(every).to_csv(index=False),
        "table1.csv": lambda: first().to_csv(index=False) if len(first()) else "",
        "table1.md": lambda: table1.markdown(first()) if len(first()) else "",
    }
    jobs = {name: partial(text, name, make) for name, make in texts.items()}
    written = each(jobs | {name: partial(figure, name, draw) for name, draw in FIGURES.items()})
    if len(first()):
        table1.show(first())
    return written
