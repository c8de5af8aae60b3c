"""Figures of the white-box study: the angular deviation of gradients (figure 6) and the test loss (figure 7)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mad.figures.cells import Theft, shown
from mad.figures.drawing import finish, marks, sheet

BINS = "deviation_histogram"
LOSSES, QUERIES = "test_loss", "test_loss_queries"
WIDTH = 5  # degrees per bin


def study(theft: Theft, column: str) -> pd.DataFrame:
    """Return the records of ``attack=online``, under MAD and without a defense, that have a value in a column."""
    rows = theft.cells("online")
    if column not in rows:
        return rows[:0]
    rows = rows[rows[column].notna() & rows.defense.isin(["mad", "none"])]
    return rows if (rows.defense == "mad").any() else rows[:0]


def numbers(series: Any) -> np.ndarray:
    """Return a record's series as an array; in records of earlier versions it is text, separated by spaces."""
    return np.array(series.split() if isinstance(series, str) else series, dtype=float)


def angles(rows: pd.DataFrame) -> pd.DataFrame:
    """Return counts, summed over seeds: one row per degree, indexed by its middle, and one column per strength."""
    sums = {at: np.sum([numbers(text) for text in cells[BINS]], axis=0) for at, cells in rows.groupby("strength")}
    found = pd.DataFrame(sums)
    return found.set_index(180 / len(found) * (np.arange(len(found)) + 0.5))


def mean_angle(rows: pd.DataFrame) -> float:
    """Return the mean angle of records, in degrees."""
    return float(rows.deviation_mean.mean())


def fig6(thefts: list[Theft]) -> Figure | None:
    """Draw one histogram of angles per strength."""
    known = [(theft, study(theft, BINS)) for theft in thefts]
    known = [(theft, rows) for theft, rows in known if len(rows)]
    if not known:
        return None
    figure, axes = sheet(1, len(known))
    for each, (theft, rows) in zip(axes[0], known, strict=True):
        poisoned = rows[rows.defense == "mad"]
        counts = angles(poisoned)
        edges = np.arange(0, 180 + WIDTH, WIDTH)
        for at, own in styles(sorted(set(poisoned.strength))):
            drawn = np.histogram(counts.index, edges, weights=100 * counts[at] / counts[at].sum())[0]
            each.plot((edges[1:] + edges[:-1]) / 2, drawn, **own, label=f"epsilon {at:g}")
            mean = mean_angle(poisoned[poisoned.strength == at])
            each.plot([mean], [0], "^", color=own["color"], clip_on=False, markersize=6, zorder=5)
        each.set(
            xlim=(0, 180),
            xlabel="angle to the clean gradient, degrees",
            ylabel=f"queries, % per {WIDTH} degrees",
        )
        each.set_xticks(range(0, 181, 30))
        each.set_ylim(bottom=0)
        each.set_title(shown(theft, rows), fontsize=8)
    return finish(figure, axes.flat, "Fig. 6: how far MAD turns a white-box adversary's gradients (triangles: means)")


def fig7(thefts: list[Theft]) -> Figure | None:
    """Draw the test loss against the number of queries: the mean over seeds, and a band from minimum to maximum."""
    known = [(theft, study(theft, LOSSES)) for theft in thefts]
    known = [(theft, rows) for theft, rows in known if len(rows)]
    if not known:
        return None
    figure, axes = sheet(1, len(known))
    for each, (theft, rows) in zip(axes[0], known, strict=True):
        for at, own in styles(sorted(set(rows.strength))):
            cells = rows[rows.strength == at]
            losses = np.stack([numbers(text) for text in cells[LOSSES]])
            queries = numbers(cells[QUERIES].iloc[0])
            label = f"epsilon {at:g}" if at else "undefended"
            each.plot(queries, losses.mean(axis=0), **own, label=label)
            each.fill_between(queries, losses.min(axis=0), losses.max(axis=0), color=own["color"], alpha=0.15, lw=0)
        each.set(xlabel="queries", ylabel="test loss of the adversary", ylim=(0, None))
        each.set_title(shown(theft, rows), fontsize=8)
    return finish(figure, axes.flat, "Fig. 7: a white-box adversary's test loss while it trains on MAD's answers")


def styles(strengths: Collection[float]) -> list[tuple[float, dict[str, Any]]]:
    """Return the color and dash of each strength, the same in both figures."""
    found = [(at, marks(place) | {"marker": ""}) for place, at in enumerate(each for each in strengths if each)]
    return [(0.0, {"color": "black", "linestyle": "-"})] * (0 in strengths) + found
