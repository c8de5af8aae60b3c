"""The boards and the points of the trade-off curves as LaTeX (booktabs) and as CSV."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any

import pandas as pd

from mad.errors import MadError
from mad.figures import groups
from mad.figures.board_views import ADVERSARIES, COSTS, flat, label, texts
from mad.report.contents import Theft, without_folders
from mad.report.tables import used

SPECIAL = str.maketrans(
    {
        **{each: f"\\{each}" for each in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"<": r"\textless{}", ">": r"\textgreater{}", "…": r"\ldots{}", "±": r"$\pm$"},
    }
)
POINTS = ["curve", "strength", "api", "l1", "stolen", "low", "high", "seeds"]
HEADS = ["defense", "strength", "API %", "mean L1", "stolen %", "low", "high", "seeds"]


def csv(thefts: list[Theft]) -> dict[str, bytes]:
    """Return the boards and the points of the curves as CSV, by the word for the file's name.

    Raises:
        MadError: if there is no theft.
    """
    if not thefts:
        raise MadError("no theft has an adversary without the clean answers: mad-run defense=mad,none first")
    parts = {
        "boards": pd.concat([flat(each.table).assign(theft=each.title) for each in thefts]),
        "points": pd.concat([each.points.assign(theft=each.title) for each in thefts]),
    }
    found = {}
    for name, table in parts.items():
        ordered = table[["theft", *(each for each in table if each != "theft")]]
        plain = ordered.map(lambda value: without_folders(value) if isinstance(value, str) else value)
        found[name] = groups.csv(plain).encode(errors="backslashreplace")
    return found


def latex(thefts: list[Theft]) -> bytes:
    """Return the boards and the points of the curves as LaTeX; needs ``booktabs`` and ``longtable``.

    Raises:
        MadError: if Jinja2 is not installed, by which pandas writes LaTeX.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise MadError("tables in LaTeX need Jinja2: pip install 'mad[report]'; --format csv needs nothing")
    found = ["% \\usepackage{booktabs,longtable}; one seed: an anecdote"]
    for theft in thefts:
        for columns, what in ((ADVERSARIES, "what adversaries leave"), (COSTS, "what honest users pay")):
            shown = used(theft, columns)
            rows = [[label(at), *(texts(at)[name] for name in shown.values())] for _, at in theft.table.iterrows()]
            found.append(table(["defense", *shown], rows, f"{theft.title}: {what}. {seeds(theft.table)}"))
        for adversary, points in theft.points.groupby("adversary", sort=False):
            rows = [[number(row[name], name) for name in POINTS] for _, row in points.iterrows()]
            found.append(table(HEADS, rows, f"{theft.title}: trade-off, {adversary}. {seeds(points)}"))
    return "\n".join(found).encode(errors="backslashreplace")


def seeds(rows: pd.DataFrame) -> str:
    """Return the caption's remark on the number of seeds."""
    return "A row of one seed is an anecdote." if (rows.seeds == 1).any() else ""


def number(value: Any, name: str = "") -> str:
    """Return a cell of a column: a number with up to three decimals, a text, or nothing; a strength stays whole."""
    if pd.isna(value):
        return ""
    if name == "strength":
        return f"{value:g}"
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def table(heads: list[str], rows: list[list[str]], caption: str) -> str:
    """Return a long table, whose head stands on each of its pages."""
    found = pd.DataFrame([escaped(row) for row in rows], columns=escaped(heads))
    columns = "l" + "r" * (len(heads) - 1)
    return found.to_latex(
        index=False, escape=False, longtable=True, column_format=columns, caption=escaped([caption.strip()])[0]
    )


def escaped(texts: Iterable[str]) -> list[str]:
    """Return texts as LaTeX shows them."""
    return [without_folders(text).translate(SPECIAL) for text in texts]
