"""Drawing functions of all figures: sizes are for print, and no text is cut off."""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Iterable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text

PANEL = (3.1, 2.7)  # inches
LEAST = 1.7  # inches, the least height of a panel's axes
SMALL = 8
INK = "#444444"
BARS: dict[str, Any] = {"capsize": 2, "elinewidth": 0.8}
# Okabe and Ito's palette without its yellow, and a gray. 7 hues, 9 markers and 4 dashes repeat at different periods:
# of 28 series each two differ in at least two of the three, for the color-blind and on a gray printer.
HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#666666")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
DASHES = ("-", "--", "-.", ":")
DEFENSES = (
    *("mad", "mad_argmax", "reverse_sigmoid", "random_noise", "dp_sgd", "mad_identity", "mad_random"),
    *("top_k", "argmax", "rounding"),
)
ATTACKS = ("knockoff", "jbda", "jbself", "jbtop3")
PLACES = {name: place for names in (DEFENSES, ATTACKS) for place, name in enumerate(names)}
LEARNED_NOTHING = "stolen model learned nothing: no measure of the defense"
NAME = 66  # most characters of a legend's line; names are not broken


class Shown(Figure):
    """A figure that a notebook displays with any matplotlib backend."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=110)
        return content.getvalue()


def marks(place: int) -> dict[str, Any]:
    """Return the marks (color, marker, dash) of the series with a number."""
    hue, marker, dashes = (each[place % len(each)] for each in (HUES, MARKERS, DASHES))
    return {"color": hue, "marker": marker, "linestyle": dashes}


def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the marks of each series: fixed for known names, the next free ones for others."""
    free = itertools.count(len(DEFENSES))
    return {name: marks(PLACES[name] if name in PLACES else next(free)) for name in names}


def style(name: str) -> dict[str, Any]:
    """Return a series' marks in the paper's figures."""
    return styles([name])[name] | {"markersize": 4, "linewidth": 1.2}


def sheet(rows: int, columns: int, heights: float = PANEL[1]) -> tuple[Figure, Any]:
    """Return a figure of panels, and its axes as an array (rows, columns)."""
    figure = Shown(figsize=(max(4.8, PANEL[0] * columns), heights * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for each in axes.flat:
        each.grid(alpha=0.25, linewidth=0.6)
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=SMALL)
        each.xaxis.label.set_size(SMALL)
        each.yaxis.label.set_size(SMALL)
    return figure, axes


def spread(found: Any, bars: str) -> Any:
    """Return the lengths of error bars: one ``deviation``, or the ``range`` over seeds; None if there is one seed."""
    if bars == "deviation":
        return found["std"].fillna(0) if found["std"].notna().any() else None
    below, above = found["mean"] - found["min"], found["max"] - found["mean"]
    return (below, above) if (above > 0).any() else None


def line(
    axes: Axes, found: pd.DataFrame, x: str, y: str, label: str, marks: dict[str, Any], bars: str = "range"
) -> None:
    """Draw a curve of ``points``, with error bars (see ``spread``) and a circle at the undefended point."""
    at_x, at_y = found[x]["mean"], found[y]["mean"]
    axes.errorbar(at_x, at_y, xerr=spread(found[x], bars), yerr=spread(found[y], bars), **marks, **BARS, label=label)
    if found.index[0] == 0:
        circle(axes, at_x.iloc[0], at_y.iloc[0])
    cross(axes, at_x, at_y, found["learned"]["min"])


def circle(axes: Axes, x: float, y: float) -> None:
    """Draw a circle around the undefended point."""
    ring: dict[str, Any] = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "markeredgecolor": "black"}
    axes.plot([x], [y], **ring, linestyle="none", zorder=1, label="undefended")


def cross(axes: Axes, x: pd.Series, y: pd.Series, learned: pd.Series) -> None:
    """Cross out points for which the stolen models of all or some seeds learned nothing."""
    idle = ~learned.astype(bool).to_numpy()
    if idle.any():
        marker: dict[str, Any] = {
            "marker": "x",
            "markersize": 9,
            "markeredgewidth": 1.6,
            "linestyle": "none",
            "zorder": 6,
        }
        axes.plot(x.to_numpy()[idle], y.to_numpy()[idle], color="black", **marker, label=LEARNED_NOTHING)


def ideal(axes: Axes, x: float, y: float) -> None:
    """Mark the ideal defense, below all points: the thief at chance level, no cost for honest users."""
    marker: dict[str, Any] = {
        "marker": "*",
        "markersize": 13,
        "color": "#F0E442",
        "markeredgecolor": "black",
        "linestyle": "none",
    }
    axes.plot([x], [y], **marker, zorder=1, label="ideal: no cost, chance for the thief")


def finish(figure: Figure, axes: Iterable[Axes], title: str) -> Figure:
    """Add a title above and one legend below all panels, and make the figure high enough for both."""
    known: dict[str, Any] = {}
    said, limit = title.splitlines(), figure.bbox.width - 20
    for each in axes:
        fit(each.title, each.get_title().splitlines(), limit * PANEL[0] / figure.get_figwidth() * 0.85)
        if any(one.has_xerr or one.has_yerr for one in each.containers if isinstance(one, ErrorbarContainer)):
            said = [*title.splitlines(), "bars: least to greatest over the seeds; a single seed has none"]
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    return surround(figure, known, said)


def surround(figure: Figure, known: dict[str, Any], said: list[str]) -> Figure:
    """Add a legend below and a title above a figure, increase its height by theirs, and lay it out.

    Args:
        figure: a figure with the height of its panels.
        known: the legend's handle for each label.
        said: the lines of the title; long ones are folded.
    """
    limit = figure.bbox.width - 20
    heading = figure.suptitle("", fontsize=9)
    fit(heading, said, limit)
    plain = [each.lines[0] if isinstance(each, ErrorbarContainer) else each for each in known.values()]
    place: dict[str, Any] = {"loc": "outside lower center", "frameon": False, "fontsize": SMALL, "handlelength": 3}
    shapes = [(columns, NAME) for columns in range(min(6, len(known)), 0, -1)]
    for columns, longest in [*shapes, *((1, longest) for longest in range(NAME, 10, -4))]:
        labels = [textwrap.fill(label, longest, break_on_hyphens=False) for label in known]
        legend = figure.legend(plain, labels, ncols=columns, **place)
        for text in legend.get_texts():
            text.set_parse_math(False)
        if legend.get_window_extent().width <= limit:
            break
        legend.remove()
    taken = heading.get_window_extent().height + legend.get_window_extent().height
    figure.set_figheight(figure.get_figheight() + taken / figure.dpi)
    figure.draw_without_rendering()
    first: Any = figure.axes[0]
    lacking = LEAST - min(each.bbox.height for each in figure.axes) / figure.dpi
    if lacking > 0:  # long labels above and below a panel reduce its height
        figure.set_figheight(figure.get_figheight() + lacking * first.get_subplotspec().get_gridspec().nrows)
        figure.draw_without_rendering()
    return figure


def fit(text: Text, lines: list[str], limit: float) -> None:
    """Set a text to lines, folded so that none is wider than ``limit`` pixels."""
    text.set_parse_math(False)  # dollar signs are literal
    for characters in range(max(map(len, lines), default=1), 10, -2):
        folded = [textwrap.wrap(each, characters, break_on_hyphens=False) for each in lines]
        text.set_text("\n".join(itertools.chain.from_iterable(folded)))
        if text.get_window_extent().width <= limit:
            return
