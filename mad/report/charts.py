"""The interactive figures of a report, made by plotly: what is stolen against what a defense costs.

Texts that plotly draws may hold tags; all that come from records are escaped. Colors of text and grid are the page's.
"""

from __future__ import annotations

import html
import json
import math
import textwrap
from typing import TYPE_CHECKING, Any

import pandas as pd

from mad.figures.board_views import label
from mad.figures.drawing import styles
from mad.figures.tradeoff import UNCHANGED
from mad.report.contents import TESTS, Theft, without_folders

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SYMBOLS = {  # plotly's names of the marks of mad.figures
    **{"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross", "X": "x"},
    **{"<": "triangle-left", ">": "triangle-right"},
}
DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
LOST = "x-thin-open"  # the symbol of a point whose stolen model learned nothing
LINE = 44  # characters of a line of a hover text
HEIGHT, ENTRY = 290, 21  # pixels of a panel, and of an entry of the legend
PANELS = (("api", "accuracy of the defended API, %"), ("l1", "mean L1 distance of answers, test images"))


def figures(theft: Theft) -> list[Any]:
    """Return plotly's JSON of the trade-off of each adversary of a theft, in the order of its points."""
    parts = [points for _, points in theft.points.groupby("adversary", sort=False)]
    return [json.loads(tradeoff(points, theft.chance).to_json()) for points in parts]


def tradeoff(points: pd.DataFrame, chance: float) -> Figure:
    """Return the figure of one adversary: two panels, with a line for each defense."""
    from plotly.subplots import make_subplots

    names = [str(name) for name in points.curve.unique()]
    marks = styles(names)
    figure = make_subplots(rows=2, cols=1, vertical_spacing=0.14)
    for place, (x, title) in enumerate(PANELS, start=1):
        for name, rows in points.groupby("curve", sort=False):
            if x == "l1" and name != "none" and rows.l1.max() < UNCHANGED:
                continue  # a defense of the training does not move answers
            figure.add_scatter(**line(rows, x, str(name), marks[str(name)]), showlegend=place == 1, row=place, col=1)
        figure.add_hline(chance, line={"color": "#888888", "width": 1, "dash": "dot"}, row=place, col=1)
        figure.update_xaxes(title=title, zeroline=False, automargin=True, row=place, col=1)
    figure.update_yaxes(title="stolen, %", range=[-4, 104], zeroline=False)
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        height=2 * HEIGHT + 110,
        margin={"l": 56, "r": 12, "t": 16, "b": 56},
        hovermode="closest",
        hoverlabel={"align": "left", "font": {"size": 12}},
        legend={"tracegroupgap": 0, "itemwidth": 40, "font": {"size": 12}},
    )
    return figure


def line(rows: pd.DataFrame, x: str, name: str, marks: dict[str, Any]) -> dict[str, Any]:
    """Return a curve as plotly's scatter; a hollow mark is of one seed."""
    above, below = (rows.high - rows.stolen).astype(float), (rows.stolen - rows.low).astype(float)
    symbol = SYMBOLS[marks["marker"]]
    symbols = [
        LOST if not each.learned else f"{symbol}-open" if each.seeds == 1 else symbol for each in rows.itertuples()
    ]
    return {
        "x": [rounded(each) for each in rows[x]],
        "y": [rounded(each) for each in rows.stolen],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [rounded(each) for each in above.fillna(0)],
            "arrayminus": [rounded(each) for each in below.fillna(0)],
            "thickness": 1,
            "width": 3,
            "visible": bool(above.notna().any()),
        },
        "mode": "lines+markers",
        "name": plain(name),
        "visible": "legendonly" if name in TESTS else True,
        "legendgroup": plain(name),
        "hovertext": [hover(each) for _, each in rows.iterrows()],
        "hoverinfo": "text",
        "line": {"color": marks["color"], "dash": DASHES[marks["linestyle"]], "width": 1.6},
        "marker": {"symbol": symbols, "size": 8},
    }


def hover(at: pd.Series) -> str:
    """Return what is said of a point: the cell, its numbers, its seeds and its command."""
    bar = "" if at.low is None or pd.isna(at.low) else f" ({at.low:.1f} to {at.high:.1f})"
    seeds = "1 seed: an anecdote" if at.seeds == 1 else f"{at.seeds} seeds"
    lines = [
        f"<b>{plain(label(at))}</b>",
        f"stolen {at.stolen:.1f} %{bar} by {plain(at.member)}; {seeds}",
        f"API {at.api:.1f} %, mean L1 {at.l1:.3f}",
    ]
    if not at.learned:
        lines.append("a stolen model learned nothing: no measure of the defense")
    words = textwrap.wrap(without_folders(at.command), LINE, break_on_hyphens=False)
    return "<br>".join([*lines, *map(html.escape, words)])


def plain(text: object) -> str:
    """Return a text of a record without tags, and without the machine's folders."""
    return html.escape(without_folders(str(text)))


def rounded(value: Any) -> float | None:
    """Return a number with the digits that a screen can show."""
    return None if value is None or math.isnan(value) else round(float(value), 4)
