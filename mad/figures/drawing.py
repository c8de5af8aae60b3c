"""What the paper's figures are drawn with; sizes are those of print."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from mad.figures.tradeoff import INK, STYLES

PANEL = (3.1, 2.7)  # inches
SMALL = 8
BARS: dict[str, Any] = {"capsize": 2, "elinewidth": 0.8}
NAMES = {
    "mad": 0,
    "mad_argmax": 1,
    "reverse_sigmoid": 2,
    "random_noise": 3,
    "dp_sgd": 4,
    "mad_identity": 2,
    "mad_random": 3,
    "knockoff": 0,
    "jbda": 1,
    "jbself": 2,
    "jbtop3": 3,
}  # a name has the same marks in every figure it is in


def sheet(rows: int, columns: int, heights: float = PANEL[1]) -> tuple[Figure, Any]:
    """Return a figure of panels, and its axes as an array (rows, columns)."""
    figure = Figure(figsize=(max(4.8, PANEL[0] * columns), heights * rows + 1.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for each in axes.flat:
        each.grid(alpha=0.25, linewidth=0.6)
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=SMALL)
        each.xaxis.label.set_size(SMALL)
        each.yaxis.label.set_size(SMALL)
    return figure, axes


def style(name: str) -> dict[str, Any]:
    """Return a series' marks: told apart by marker and dash as well as by hue."""
    color, marker, dashes = STYLES[NAMES.get(name, len(STYLES) - 1)]
    return {"color": color, "marker": marker, "linestyle": dashes, "markersize": 4, "linewidth": 1.2}


def spread(found: Any) -> Any:
    """Return how far bars go down and up from means to the least and the greatest; None where one seed is all."""
    below, above = found["mean"] - found["min"], found["max"] - found["mean"]
    return (below, above) if (above > 0).any() else None


def line(axes: Axes, found: pd.DataFrame, x: str, y: str, label: str, marks: dict[str, Any]) -> None:
    """Draw a curve: bars from the least to the greatest over the seeds, and a circle where nothing is defended."""
    bars = {"xerr": spread(found[x]), "yerr": spread(found[y])}
    axes.errorbar(found[x]["mean"], found[y]["mean"], **bars, **marks, **BARS, label=label)
    if 0 in found.index:
        circle(axes, found[x]["mean"][0], found[y]["mean"][0])


def circle(axes: Axes, x: float, y: float) -> None:
    """Mark the undefended point."""
    axes.plot(
        [x], [y], "o", markersize=9, markerfacecolor="none", markeredgecolor="black", zorder=4, label="undefended"
    )


def ideal(axes: Axes, x: float, y: float) -> None:
    """Mark what a perfect defense would do: the thief at chance, honest users unharmed."""
    axes.plot([x], [y], "P", markersize=11, color="cyan", markeredgecolor=INK, zorder=5, label="ideal")


def finish(figure: Figure, axes: Iterable[Axes], title: str) -> Figure:
    """Give a figure its title, and one legend below all panels, where it covers nothing."""
    known: dict[str, Any] = {}
    bars = False
    for each in axes:
        bars |= any(one.has_xerr or one.has_yerr for one in each.containers if isinstance(one, ErrorbarContainer))
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    width = figure.get_figwidth()
    columns = max(1, int(width / (0.5 + 0.065 * max(map(len, known)))))
    figure.legend(
        list(known.values()), list(known), loc="outside lower center", ncols=columns, frameon=False, fontsize=SMALL
    )
    said = [*title.splitlines(), "bars: least to greatest over the seeds"] if bars else title.splitlines()
    wrapped = [part for each in said for part in textwrap.wrap(each, int(14 * width))]
    figure.suptitle("\n".join(wrapped), fontsize=9)
    return figure
