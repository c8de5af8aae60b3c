"""The board: each defense by what its strongest adversary leaves, as table and figure.

A member of the panel is an adversary: an attack, a recovery and a way to train the knockoff. The worst member of a
defense is the one with the highest mean accuracy over the seeds that all members share. Its number is that mean, not
the highest of all runs, which luck would raise; its interval is of a bootstrap over seeds that chooses the worst anew.
Members that are given what no thief has are shown beside the worst, and are never it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mad.errors import MadError
from mad.figures.drawing import HUES, INK, SMALL, Shown, surround
from mad.figures.groups import KNOCKOFF, said, value
from mad.figures.tradeoff import save
from mad.storage.files import write_alone

THEFT = ["victim", "architecture", "victim_epochs", "pool", "budget"]  # what the rows of one board share
DEFENSE = ["defense", "defense_settings", "strength_parameter", "strength"]
CLEAN = "the victim's clean answers"  # knowledge that no thief has
DRAWS, SURE = 1000, 0.95
STOLEN, AGREEMENT = "stolen_accuracy", "agreement"
COSTS = ("defended_accuracy", "l1_mean", "l1_max", "nll", "ece", "auroc_pool", "selective_accuracy")
LEAST = 2  # members, for a board


def boards(records: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the board of each theft (victim, pool, budget) that several members were run on, by its title."""
    empty = {name: "" for name in (*THEFT, *DEFENSE) if name != "strength"}
    lacking = {name: "" for name in empty if name not in records}  # of older records
    rows = records.assign(member=members(records), **lacking).fillna(empty)
    found = {}
    for keys, theft in rows.groupby(THEFT, dropna=False):
        if theft.member.nunique() >= LEAST:
            victim, architecture, epochs, pool, budget = keys
            epochs = f", {epochs:g} epochs" if epochs != "" else ""
            title = f"{victim} ({architecture}{epochs}) stolen with {budget:,} queries from {pool}"
            found[title] = board(theft)
    return found


def members(records: pd.DataFrame) -> pd.Series:
    """Return the name of each record's member: what tells it from the plainest one of its theft."""
    usual = records[(records.attack == "knockoff") & (records.recovery == "none")]
    names = {}
    for group, own in records.groupby("comparison_group"):
        row = own.iloc[0]
        plain = usual[(usual[["victim", "pool", "budget"]] == row[["victim", "pool", "budget"]]).all(axis=1)]
        parts = [row.attack, row.get("attack_settings"), row.recovery, row.get("recovery_settings")]
        words = [str(each) for each in parts if each and not pd.isna(each) and each not in ("knockoff", "none")]
        trained = said(row, [name for name in KNOCKOFF if name in plain and differs(row, plain[name].dropna(), name)])
        names[group] = " ".join([*words, *filter(None, [trained])]) or "naive"
    return records.comparison_group.map(names)


def differs(row: pd.Series, usual: pd.Series, name: str) -> bool:
    """Return whether a record's value in a column is another than most of the usual ones; not if either is missing."""
    found = value(row, name)
    if name == "knockoff_settings":
        return found is not None  # empty is usual
    return found is not None and len(usual) > 0 and found != usual.mode()[0]


def board(theft: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each defense and strength of a theft, the one that leaves its worst member least first.

    Columns: ``defense`` with its settings, ``parameter``, ``strength``, ``members``; ``seeds``; ``worst`` (percent),
    ``low`` and ``high`` of its 95 % interval, ``worst_member``; ``agreement``, the highest mean agreement of any
    member; ``naive``, ``labels`` and the best member that is given the clean answers (``informed``,
    ``informed_member``), empty where they were not run; and the API's costs, means over the seeds.
    """
    found = [row(cells) for _, cells in theft.groupby(DEFENSE, dropna=False)]
    return pd.DataFrame(found).sort_values("worst", ignore_index=True)


def row(cells: pd.DataFrame) -> dict[str, Any]:
    """Return the row of one defense at one strength."""
    knows = cells.get("recovery_knows", pd.Series("", index=cells.index)).fillna("")
    given = knows.str.contains(CLEAN, regex=False)
    scores = 100 * means(cells[~given], STOLEN)
    told = worst(scores)
    informed = (100 * means(cells[given], STOLEN)).mean()
    first = cells.iloc[0]
    said_so = f"{first.defense} ({first.defense_settings})" if first.defense_settings else str(first.defense)
    each = scores.mean()
    return {
        "defense": said_so,
        "parameter": first.strength_parameter,
        "strength": first.strength,
        "members": scores.shape[1],
        "seeds": len(scores),
        **told,
        "agreement": 100 * means(cells[~given], AGREEMENT).mean().max(),
        "naive": each.get("naive"),
        "labels": each.get("argmax"),
        "informed": informed.max() if len(informed) else None,
        "informed_member": informed.idxmax() if len(informed) else "",
        **{name: cells.groupby("seed")[name].first().mean() for name in COSTS if name in cells},
        "by_member": {name: float(share) for name, share in [*each.items(), *informed.items()]},
    }


def means(cells: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return a column's values, seeds by members, for the seeds that all members share."""
    table = cells.pivot_table(index="seed", columns="member", values=column, aggfunc="mean")
    whole = table.dropna()
    return whole if len(whole) else table.mean().to_frame().T


def worst(scores: pd.DataFrame) -> dict[str, Any]:
    """Return the worst member of scores (seeds by members), its mean, and the 95 % interval of a bootstrap over seeds.

    Each draw of seeds chooses its own worst member. One seed has no interval.
    """
    mean = scores.mean()
    found: dict[str, Any] = {"worst": mean.max(), "low": None, "high": None, "worst_member": mean.idxmax()}
    if len(scores) > 1:
        draws = np.random.default_rng(0).integers(len(scores), size=(DRAWS, len(scores)))
        most = scores.to_numpy()[draws].mean(axis=1).max(axis=1)
        found["low"], found["high"] = np.quantile(most, [(1 - SURE) / 2, (1 + SURE) / 2])
    return found


def draw(title: str, table: pd.DataFrame) -> Figure:
    """Draw a board: a line for each defense, its worst member bold; those given the clean answers are hollow."""
    figure = Shown(figsize=(9.0, 1.0 + 0.28 * len(table)), layout="constrained")
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
        axes.annotate(at.worst_member, (1.01, place), xycoords=("axes fraction", "data"), fontsize=SMALL, va="center")
    names = [label(at) for _, at in table[::-1].iterrows()]
    axes.set_yticks(range(len(names)), names, fontsize=SMALL)
    axes.set(xlabel="accuracy of the stolen model, % (left is better)", xlim=(0, 100))
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    known = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    return surround(figure, known, [title, "right of each line: its worst member; bars: 95 % interval over seeds"])


def label(at: pd.Series) -> str:
    """Return a defense with its strength and what it costs."""
    strength = "" if pd.isna(at.strength) or at.defense == "none" else f" {at.strength:g}"
    return f"{at.defense}{strength}  ({100 * at.defended_accuracy:.1f} %)"


def markdown(title: str, table: pd.DataFrame) -> str:
    """Return a board as a table in Markdown, with its title."""
    head = [
        "defense",
        "strength",
        "members",
        "seeds",
        "worst %",
        "95 %",
        "worst member",
        "naive",
        "labels",
        "given clean",
        "API %",
        "L1",
    ]
    lines = [f"### {title}", "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for _, at in table.iterrows():
        interval = "" if at.low is None or pd.isna(at.low) else f"{at.low:.1f} to {at.high:.1f}"
        cells = [
            at.defense,
            "" if pd.isna(at.strength) else f"{at.parameter} {at.strength:g}",
            str(at.members),
            str(at.seeds),
            f"{at.worst:.1f}",
            interval,
            at.worst_member,
            *("" if each is None or pd.isna(each) else f"{each:.1f}" for each in (at.naive, at.labels, at.informed)),
            f"{100 * at.defended_accuracy:.1f}",
            f"{at.l1_mean:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_all(records: pd.DataFrame, outputs: Path) -> list[Path]:
    """Write ``board.md``, a CSV and a figure of each theft's board; return their paths.

    Raises:
        MadError: if no theft was run with two members.
    """
    found = boards(records)
    if not found:
        raise MadError("no theft has two adversaries: mad-run experiment=panel first")
    area, written = Path("figures"), []
    text = "\n".join(markdown(title, table) for title, table in found.items())
    written.append(write_alone(outputs, area, area / "board.md", text.encode()))
    for number, (title, table) in enumerate(found.items()):
        stem = area / f"board-{number}"
        content = table.drop(columns="by_member").to_csv(index=False, float_format="%.4f").encode()
        written += [write_alone(outputs, area, stem.with_suffix(".csv"), content)]
        written.append(save(draw(title, table), outputs, stem, area))
    return written
