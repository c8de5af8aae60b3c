"""The report as one HTML page that needs no network: tables, styles, scripts and plotly's library lie in it."""

from __future__ import annotations

import base64
import functools
import gzip
from pathlib import Path
from typing import Any

import pandas as pd

from mad.errors import MadError
from mad.figures import board
from mad.figures.board_views import FAILED, MEANING
from mad.figures.groups import counted
from mad.report import charts, contents, methods, tables

TEMPLATES = Path(__file__).parent / "templates"


def html(records: pd.DataFrame) -> bytes:
    """Return the page of some records (``mad.storage.records.frame``); the same records make the same page.

    Raises:
        MadError: if plotly or Jinja2 is not installed.
    """
    try:
        import jinja2
        from markupsafe import Markup

        packed = library()
    except ImportError as problem:
        raise MadError(f"the page needs plotly and Jinja2 ({problem}): pip install 'mad[report]'") from problem

    def told(value: Any) -> Any:
        """Return what the template prints: texts of records without the machine's folders."""
        return contents.without_folders(value) if type(value) is str else value

    def breakable(text: str) -> Any:
        """Return a name that may be broken after each underscore, as on a phone."""
        return Markup("_<wbr>").join(told(text).split("_"))

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=told,
    )
    environment.filters["breakable"] = breakable
    thefts = contents.read(records)
    links = tables.Links(thefts, records)
    text = environment.get_template("page.html").render(
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "page.js").read_text(encoding="utf-8")),
        library=Markup(packed),
        facts=facts(records, thefts),
        thefts=[part(theft, links) for theft in thefts],
        meaning=f"{MEANING} {FAILED}",
        methods=methods.used(records),
        runs=tables.runs(records, links),
    )
    return text.encode(errors="backslashreplace")


@functools.cache
def library() -> str:
    """Return plotly's JavaScript, compressed by gzip to less than a third, in base64; browsers unpack it themselves."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def part(theft: contents.Theft, links: tables.Links) -> dict[str, Any]:
    """Return what the template shows of a theft."""
    return {
        "title": theft.title,
        "headline": contents.headline(theft),
        "warnings": contents.warnings(theft),
        "checks": board.checks(theft.table),
        "board": tables.boards(theft, links),
        "figures": charts.figures(theft),
        "adversaries": list(theft.points.adversary.unique()),
        "heat": tables.heat(theft, links),
        "utility": tables.utility(theft),
        "seconds": tables.seconds(theft),
        "members": tables.members(theft, links),
    }


def facts(records: pd.DataFrame, thefts: list[contents.Theft]) -> list[tuple[str, str]]:
    """Return the numbers of the page's head with what they count."""
    members = {str(name) for theft in thefts for name in theft.members.member}
    defenses = {str(name) for name in records.defense} - {"none"}
    counts = {
        "record": len(records),
        "theft": len(thefts),
        "defense": len(defenses),
        "adversar": len(members),
    }
    plural = {"adversar": ("y", "ies")}
    found = [(f"{count:,}", name + plural.get(name, ("", "s"))[count != 1]) for name, count in counts.items()]
    number, _, word = counted([records.seed.nunique()]).partition(" ")
    return [*found, (number, word)]
