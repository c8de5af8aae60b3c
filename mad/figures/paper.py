"""Every figure of the paper whose cells are there, Table 1, and the ledger of the paper's numbers beside ours."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mad.figures import ledger, moves, online, plane, table1
from mad.figures.cells import foremost, thefts
from mad.figures.tradeoff import save
from mad.files import write_alone
from mad.progress import err

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
    """Write Table 1, the figures and the ledger below ``outputs/figures/paper``; return what was written.

    Table 1 is printed in the end. It has every pool that a victim was stolen with; all else that of the most records.
    """
    every, area, written = thefts(table), Path("figures", "paper"), []
    known, first = foremost(every), table1.table1(every)
    for theft in every:
        if not any(theft is drawn for drawn in known):
            said = (
                f"{theft.victim} stolen with {theft.pool}: another pool has more records; this one is in Table 1 alone"
            )
            err.print(said, soft_wrap=True)
    texts = {"ledger.csv": ledger.ledger(known).to_csv(index=False)}
    if len(first):
        texts |= {"table1.csv": first.to_csv(index=False), "table1.md": table1.markdown(first)}
    for name, text in texts.items():
        written.append(write_alone(outputs, area, area / name, text.encode()))
    for name, draw in FIGURES.items():
        figure = draw(known)
        if figure is not None:
            written.append(save(figure, outputs, area / name, area))
    if len(first):
        table1.show(first)
    return written
