"""All defenses of a theft in one figure and one table, with the Pareto front: what no other defense beats at once.

A defense at a strength is on the front if no other costs honest users as little and leaves the thief as little.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mad.errors import MadError
from mad.figures.drawing import Shown, styles, surround
from mad.figures.groups import counted, csv, figure_groups, file_name, points, whole
from mad.figures.labels import Label, place
from mad.figures.tradeoff import UNCHANGED, each, landmarks, save
from mad.limits import at_most, under
from mad.storage.files import write_alone

WIDTH, HEIGHT, CURVE = 9.0, 4.2, 0.05  # inches, without title and legend
DEAREST = 12.0  # points of accuracy: what costs more is in the table only
LEAST = 2  # defenses, for a figure
COST, STOLEN, L1 = "cost", "stolen", "l1_mean"


def table(group: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each defense, setting and strength of a comparison group, by rising cost.

    Columns: ``defense`` with its settings, ``parameter``, ``strength``, ``seeds``; ``cost`` (points of the victim's
    accuracy that the API lost), ``l1_mean`` (mean L1 distance on the test split), ``stolen`` (accuracy of the stolen
    model, percent), each a mean over the seeds with its deviation in ``..._deviation``; ``learned``; and ``front``.
    """
    found = []
    keys = ["defense", "defense_settings", "strength_parameter"]
    spent = group.assign(cost=group.victim_accuracy - group.defended_accuracy)
    for (name, settings, parameter), rows in spent.fillna({"defense_settings": ""}).groupby(keys):
        costs = 100 * rows.groupby("strength", dropna=False).cost.agg(["mean", "std"])
        for strength, at in points(rows).iterrows():
            cost = costs.loc[[strength]] if strength in costs.index else costs[costs.index.isna()]
            found.append(
                {
                    "defense": f"{name} ({settings})" if settings else str(name),
                    "parameter": parameter,
                    "strength": strength,
                    "seeds": int(at["seed", "nunique"]),
                    COST: cost["mean"].iloc[0],
                    f"{COST}_deviation": cost["std"].iloc[0],
                    L1: at[L1, "mean"],
                    STOLEN: at["stolen_accuracy", "mean"],
                    f"{STOLEN}_deviation": at["stolen_accuracy", "std"],
                    "learned": bool(at["learned", "min"]),
                }
            )
    rows = pd.DataFrame(found)
    return rows.assign(front=front(rows, COST)).sort_values([COST, STOLEN], ignore_index=True)


def front(rows: pd.DataFrame, cost: str) -> list[bool]:
    """Return for each row of ``table`` whether no other row is as good in ``cost`` and ``stolen`` and better in one.

    A row whose stolen model learned nothing is no measure of the defense, and neither on the front nor compared with.
    """
    told = rows[rows.learned]
    pairs = list(zip(told[cost], told[STOLEN], strict=True))
    beaten = [any(at_most(c, x) and at_most(s, y) and (under(c, x) or under(s, y)) for c, s in pairs) for x, y in pairs]
    best = set(told.index[[not each for each in beaten]])
    return [index in best for index in rows.index]


def draw(group: pd.DataFrame) -> Figure:
    """Draw what each defense of a comparison group leaves the thief, against accuracy lost and against mean L1."""
    rows = table(group)
    drawn = rows[at_most(rows[COST], DEAREST)]
    names = [name for name in drawn.defense.unique() if name != "none"]
    marks = styles(names)
    figure = Shown(figsize=(WIDTH, HEIGHT + CURVE * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    still = [name for name in names if drawn[drawn.defense == name][L1].max() < UNCHANGED]
    panels = []
    for axes, x, every in ((left, COST, rows), (right, L1, rows[~rows.defense.isin(still)])):
        shown, best = every[at_most(every[COST], DEAREST)], every[front(every, x)]  # of what is not drawn, too
        best = best[best.index.isin(shown.index)].sort_values(x)
        panels.append((axes, x, shown, best))
        landmarks(axes, group, L1, 0.0)
        for name in shown.defense[shown.defense != "none"].unique():
            own = shown[shown.defense == name].sort_values("strength")
            style: dict[str, Any] = {**marks[name], "markersize": 5, "linewidth": 0.9, "alpha": 0.85}
            bars = own[f"{STOLEN}_deviation"].fillna(0)
            axes.errorbar(own[x], own[STOLEN], yerr=bars, capsize=2, elinewidth=0.7, label=name, **style)
        axes.step(best[x], best[STOLEN], where="post", color="black", linewidth=2.4, alpha=0.35, label="Pareto front")
    left.set(
        xlabel="points of accuracy that the API loses (left is better)",
        ylabel="accuracy of the stolen model, %\n(down is better)",
        ylim=(-4, 104),
    )
    right.set(xlabel="mean L1 distance of answers, test images (left is better)")
    handles, labels = left.get_legend_handles_labels()
    surround(figure, dict(zip(labels, handles, strict=True)), said(group, rows, still))
    for axes, x, shown, best in panels:
        label(figure, axes, shown, best, x, marks)
    return figure


def label(
    figure: Figure, axes: Axes, rows: pd.DataFrame, best: pd.DataFrame, x: str, marks: dict[str, dict[str, Any]]
) -> None:
    """Write the defense and its strength beside the points of the front, ``best``, as far as there is room.

    The settings are in the legend, of the same color.
    """
    texts = []
    for _, at in best[best.defense != "none"].iterrows():
        name = at.defense.partition(" (")[0]
        text = name if pd.isna(at.strength) else f"{name} {at.strength:g}"
        texts.append(Label(text, at[x], at[STOLEN], marks[at.defense]["color"]))
    place(figure, axes, texts, [rows[[x, STOLEN]].to_numpy()])


def said(group: pd.DataFrame, rows: pd.DataFrame, still: list[str]) -> list[str]:
    """Return the lines of the title: the theft, the seeds, and what is not drawn."""
    parts = [counted(rows.seeds.tolist()), "bars: one standard deviation"]
    if dear := int((~at_most(rows[COST], DEAREST)).sum()):
        parts.append(f"{dear} of the points, above {DEAREST:g}, in the table only")
    if still:
        parts.append(f"no answer is moved by {', '.join(still)}: not on the right")
    return [whole(group.iloc[0]), "; ".join(parts)]


def write_all(records: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw each comparison group of at least two defenses to PNG and PDF, and write its table; return the PNGs.

    Raises:
        MadError: if there is no such group.
    """

    def written(group: pd.DataFrame) -> Path:
        area, stem = Path(folder.name), Path(folder.name) / file_name(group.iloc[0], "pareto")
        content = csv(table(group)).encode()
        write_alone(folder.parent, area, stem.with_name(f"{stem.name}.csv"), content)
        return save(draw(group), folder.parent, stem, area)

    groups = [rows for _, rows in records.groupby(figure_groups(records)) if rows.defense.nunique() > LEAST]
    if not groups:
        raise MadError(
            "no theft with two defenses beside the undefended one: mad-run -m defense=mad,random_noise first"
        )
    return each({f"the Pareto figure of {whole(rows.iloc[0])}": partial(written, rows) for rows in groups})
