"""The board as a table on the terminal, in Markdown and CSV, and as figures."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mad.errors import MadError
from mad.figures.board import AGREEMENT, DEFENSE, LABELS, LEAST, NAIVE, STOLEN, boards, checks, each_member
from mad.figures.board import COSTS as MEASURED
from mad.figures.drawing import HUES, INK, SMALL, Shown, sheet, surround
from mad.figures.groups import SAID, csv
from mad.figures.table import Column, fold, grid
from mad.figures.tradeoff import save, weak_to_strong
from mad.storage.files import LONGEST, write_alone
from mad.storage.fingerprint import digest
from mad.storage.settled import DIGITS, csv_of, printable

AREA = Path("figures")
ACROSS = 4  # panels of a figure, side by side
WIDE = 32  # characters of a line beside a figure
ADVERSARIES = {  # the columns of the first table of a board, by their heads
    "worst %": "worst",
    "95 %": "interval",
    "worst member": "worst_member",
    "knows nothing": "unaided",
    "own images": "own",
    "naive": "naive",
    "labels": "labels",
    "given clean": "informed",
    "agreement": "agreement",
    "honest answers": "honest",
    "API %": "api",
    "mean L1": "l1_mean",
    "members": "members",
    "seeds": "seeds",
}
COSTS = {
    "API %": "api",
    "points lost": "lost",
    "mean L1": "l1_mean",
    "largest L1": "l1_max",
    "NLL": "nll",
    "ECE": "ece",
    "selective %": "selective",
    "AUROC of confidence": "auroc_pool",
    "seconds": "seconds",
}
SHARES = ("worst", "unaided", "own", "naive", "labels", "informed", "agreement")
RECORD = (  # the columns of a record that a board is made of, and what names it
    *SAID,
    *DEFENSE,
    *("recovery_knows", "seed", "comparison_group", "fingerprint", "overrides", "chance"),
    *("defense_group", "theft_group"),
    "learned",
    *MEASURED,
    *(STOLEN, AGREEMENT, "seconds_queries", "seconds_knockoff"),
)
MEANING = (
    "worst: the strongest adversary that a thief can be, the mean over the seeds of the member with the highest mean; "
    "95 %: of a bootstrap over seeds that chooses it anew. knows nothing: the strongest that has nothing but the "
    "answers, neither images of the victim's kind nor the defense's code. own images: the best of those that train on "
    "their own images of the victim's kind, labeled by the API, and on nothing else. given clean: the best of "
    "those that are given the clean answers, a bound. honest answers: how many undefended answers make the naive thief "
    "as good as the worst."
)
FAILED = "!: a stolen model of this member learned nothing."


def texts(at: Any) -> dict[str, str]:
    """Return the cells of a board's row as texts, by column."""

    def number(found: Any, digits: int = 1, factor: float = 1) -> str:
        return "" if found is None or pd.isna(found) else f"{factor * found:,.{digits}f}"

    interval = "" if at.low is None or pd.isna(at.low) else f"{at.low:.1f} to {at.high:.1f}"
    percents = {name: number(at[name]) + mark(at, name) for name in SHARES}
    rest = {name: number(at.get(name), 2) for name in ("l1_mean", "l1_max", "nll", "auroc_pool")}
    return {
        **percents,
        **rest,
        "interval": interval,
        "worst_member": at.worst_member,
        "honest": number(at.honest, 0),
        "api": number(at.defended_accuracy, 1, 100),
        "lost": number(round(100 * (at.get("victim_accuracy", math.nan) - at.defended_accuracy), 1) + 0.0),
        "ece": number(at.get("ece"), 3),
        "selective": number(at.get("selective_accuracy"), 1, 100),
        "seconds": number(at.seconds, 0),
        "members": str(at.members) if at.members == at.most else f"{at.members} of {at.most}",
        "seeds": str(at.seeds),
    }


def mark(at: Any, column: str) -> str:
    """Return ``!`` if a stolen model of the member that a column tells of learned nothing."""
    member = {"naive": NAIVE, "labels": LABELS}.get(column) or at[f"{column}_member"]
    return "!" * (member in at.unlearned)


def marked(table: pd.DataFrame) -> list[str]:
    """Return what the mark means, if a board has one."""
    return [FAILED] if any(mark(at, name) for _, at in table.iterrows() for name in SHARES) else []


def label(at: Any) -> str:
    """Return a defense with its strength."""
    strength = "" if pd.isna(at.strength) or at.defense == "none" else f" {at.parameter} {at.strength:g}"
    return f"{at.defense}{strength}"


def lines(title: str, table: pd.DataFrame, width: int) -> list[str]:
    """Return a board for a terminal of so many characters."""
    rows = [texts(at) for _, at in table.iterrows()]
    ranks = {
        "agreement": 2,
        "unaided": 1,
        "own": 1,
        "honest": 3,
        "members": 4,
        "seeds": 5,
        "l1_mean": 1,
        "labels": 2,
        "informed": 1,
    }
    columns = [
        Column(head, [row[name] for row in rows], ranks.get(name, 0))
        for head, name in ADVERSARIES.items()
        if any(row[name] for row in rows)
    ]
    head, body = grid("defense", [label(at) for _, at in table.iterrows()], columns, width)
    notes = [text for each in (MEANING, *marked(table), *checks(table)) for text in fold(each, width)]
    return [*fold(f"The board: {title}", width), "", *head, *(text for each in body for text in each), "", *notes]


def markdown(title: str, table: pd.DataFrame) -> str:
    """Return a board in Markdown: what adversaries leave, what honest users pay, and the tests of the panel."""
    found = [f"### {title}", ""]
    for wanted in (ADVERSARIES, COSTS):
        found += [f"| defense | {' | '.join(wanted)} |", f"|{' --- |' * (1 + len(wanted))}"]
        for _, at in table.iterrows():
            cells = texts(at)
            row = [label(at), *(cells[name] for name in wanted.values())]
            found.append(f"| {' | '.join(map(in_a_cell, row))} |")
        found.append("")
    return "\n".join([*found, *(f"- {each}" for each in (*marked(table), *checks(table)))]).rstrip() + "\n"


def in_a_cell(text: str) -> str:
    """Return a text as a cell of a table in Markdown: a setting may hold bars and line ends."""
    return " ".join(text.replace("|", "\\|").split())


def draw(title: str, table: pd.DataFrame) -> Figure:
    """Draw a board: a line for each defense, its worst member bold; those given the clean answers are hollow.

    A diamond is the worst member that knows nothing but the answers.
    """
    figure = Shown(figsize=(9.0, 1.0 + 0.36 * len(table)), layout="constrained")
    axes = figure.subplots()
    for place, (_, at) in enumerate(table[::-1].iterrows()):
        others = [share for name, share in at.by_member.items() if name != at.worst_member]
        axes.plot(others, [place] * len(others), "|", color=INK, markersize=9, alpha=0.7, label="members of the panel")
        if at.informed == at.informed and at.informed is not None:
            axes.plot(
                [at.informed], [place], "o", markerfacecolor="none", color=HUES[1], label="given the clean answers"
            )
        if at.low is not None and at.low == at.low:
            axes.plot([at.low, at.high], [place, place], color=HUES[0], linewidth=1.6)
        axes.plot([at.worst], [place], "o", color=HUES[0], markersize=6, label="worst member")
        if at.unaided is not None and at.unaided == at.unaided:
            axes.plot([at.unaided], [place], "d", color=HUES[2], markersize=5, label="worst that knows nothing else")
        axes.annotate(
            fill(at.worst_member, WIDE),
            (1.01, place),
            xycoords=("axes fraction", "data"),
            fontsize=SMALL,
            va="center",
            parse_math=False,  # dollar signs are literal
        )
    names = [fill(f"{label(at)}  ({100 * at.defended_accuracy:.1f}\u00a0%)", WIDE) for _, at in table[::-1].iterrows()]
    axes.set_yticks(range(len(names)), names, fontsize=SMALL, parse_math=False)
    axes.set(xlabel="accuracy of the stolen model, % (left is better)", xlim=(0, 100))
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    known = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    return surround(figure, known, [title, "right of each line: its worst member; bars: 95 % interval over seeds"])


def curves(title: str, table: pd.DataFrame) -> Figure | None:
    """Draw a trade-off curve for each member of each defense with two strengths, thin, and the worst case in bold.

    Returns None if no defense has two strengths.
    """
    undefended = table[table.defense == "none"]
    several = [
        (str(name), rows)
        for (name, _), rows in table[table.defense != "none"].groupby(["defense", "parameter"], sort=False)
        if rows.strength.nunique() > 1
    ]
    if not several:
        return None
    across = min(ACROSS, len(several))
    figure, axes = sheet(math.ceil(len(several) / across), across)
    for each, (name, rows) in zip(axes.flat, several, strict=False):
        rows = rows.sort_values("strength")
        points = pd.concat([undefended, weak_to_strong(rows, rows.l1_mean)])
        at = 100 * points.defended_accuracy
        known = sorted({member for found in points.by_member for member in found})
        for member in known:
            share = [found.get(member, math.nan) for found in points.by_member]
            each.plot(at, share, color=INK, linewidth=0.6, alpha=0.6, label="members of the panel")
        each.plot(at, points.worst, "o-", color=HUES[0], linewidth=2.4, markersize=4, label="worst member")
        each.plot(at, points.naive.astype(float), "s--", color=HUES[1], linewidth=1.2, markersize=3, label="naive")
        for x, y, found in zip(at, points.worst, points.itertuples(), strict=True):
            text = "none" if found.defense == "none" else f"{found.strength:g}"
            each.annotate(text, (x, y), xytext=(0, 5), textcoords="offset points", fontsize=SMALL, ha="center")
        parameter = rows.parameter.iloc[0]
        each.set_title(f"{name}, by {parameter}", fontsize=SMALL + 1, parse_math=False)
        each.set(ylim=(-4, 104), xlabel="accuracy of the defended API, %", ylabel="stolen, %")
    for each in list(axes.flat)[len(several) :]:
        each.set_axis_off()
    known_marks = dict(zip(*reversed(axes.flat[0].get_legend_handles_labels()), strict=True))
    return surround(figure, known_marks, [title, "the worst case over the members of the panel, in bold"])


def write_all(records: pd.DataFrame, outputs: Path, least: int = LEAST) -> Iterator[Path]:
    """Write ``board.md``, and each theft's board as CSV and figures; yield their paths.

    ``board-records.csv`` has what the boards were made of, for ``mad-figures board --records``.

    Raises:
        MadError: if no theft was run with two members.
    """
    records = printable(records)
    found = boards(records, least)
    if not found:
        raise MadError("no theft has two adversaries: mad-run experiment=panel first")
    text = f"{MEANING}\n\n" + "\n".join(markdown(title, table) for title, table in found.items())
    yield write_alone(outputs, AREA, AREA / "board.md", text.encode())
    yield written(csv(each_member(records)), outputs, "board-members")
    short = shortened(records[[name for name in RECORD if name in records]])
    yield written(csv_of(short, float_format="%.15g"), outputs, "board-records")
    names = file_names(found)
    for title, table in found.items():
        name = names[title]
        yield written(csv(flat(table)), outputs, name)
        yield save(draw(title, table), outputs, AREA / name, AREA)
        drawn = curves(title, table)
        if drawn is not None:
            yield save(drawn, outputs, AREA / f"{name}-curves", AREA)


def file_names(titles: Iterable[str]) -> dict[str, str]:
    """Return the file name of each board, without extension, by its title: readable, and unique among them."""
    whole = {title: f"board-{re.sub(r'[^a-z0-9_]+', '-', title.replace(',', '').lower())}" for title in titles}
    several = Counter(name[:LONGEST] for name in whole.values())
    ends = {title: f"-{digest(title)[:DIGITS]}" if several[name[:LONGEST]] > 1 else "" for title, name in whole.items()}
    return {title: f"{name[: LONGEST - len(ends[title])]}{ends[title]}" for title, name in whole.items()}


def written(text: str, outputs: Path, name: str) -> Path:
    """Write a table, which is CSV already, below the outputs folder, and return its path."""
    return write_alone(outputs, AREA, AREA / f"{name}.csv", text.encode())


def flat(table: pd.DataFrame) -> pd.DataFrame:
    """Return a board whose cells are numbers and texts, for a CSV: without each member's mean."""
    return table.drop(columns=["by_member", "counted"]).assign(unlearned=table.unlearned.map("; ".join))


def shortened(records: pd.DataFrame) -> pd.DataFrame:
    """Return records with their measured numbers to six digits; settings stay whole, since they tell records apart."""
    names = {*MEASURED, STOLEN, AGREEMENT, "seconds_queries", "seconds_knockoff"} & {*records}
    shorter = {name: records[name].map(lambda each: None if pd.isna(each) else float(f"{each:.6g}")) for name in names}
    return records.assign(**shorter)


def printed(records: pd.DataFrame, least: int, width: int) -> Sequence[str]:
    """Return the lines of the boards of all thefts with ``least`` members; none if there are none."""
    found = boards(records, least)
    return [text for title, table in found.items() for text in ["", *lines(title, table, width)]]
