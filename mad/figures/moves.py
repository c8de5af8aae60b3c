"""Figures of an adversary's counter-moves (figure 9) and of the query budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mad.figures.cells import RECIPE, Theft, shown, undefended, under
from mad.figures.drawing import BARS, INK, cross, finish, marks, sheet, spread, style
from mad.figures.groups import learned

DEFENSES = ("mad", "mad_argmax")
EPSILON = 0.95
HOLLOW = {"color": "black", "marker": "o", "markerfacecolor": "white", "linestyle": "-"}  # undefended


def moves(theft: Theft) -> dict[str, pd.DataFrame]:
    """Return the comparison group of each counter-move that has records; ``none`` is the paper's knockoff.

    If all of them share seeds, only records of those seeds are used, since seeds differ more than moves do.
    """
    plain, rows = theft.plain, theft.same_victim[theft.same_victim.attack == "knockoff"]
    if plain.empty:
        return {}
    usual = plain.iloc[0]
    found = {"none": plain, "argmax": theft.cells(recovery="argmax")}
    for other in sorted(set(rows.knockoff_architecture) - {usual.architecture}):
        found[f"arch: {other}"] = theft.cells(knockoff_architecture=other)
    for settings, name in named(set(rows.attack_settings) - {""}).items():
        found[name] = theft.cells(attack_settings=settings)
    for other in sorted(set(rows.knockoff_optimizer) - {usual.knockoff_optimizer}):
        found[f"opt: {other}"] = theft.cells(knockoff_optimizer=other)
    kept = {name: rows[(rows.defense == "none") | (rows.epsilon == EPSILON)] for name, rows in found.items()}
    known = {name: rows for name, rows in kept.items() if rows.defense.isin(DEFENSES).any()}
    shared = set.intersection(*(set(rows.seed) for rows in known.values())) if known else set()
    return {name: rows[rows.seed.isin(shared)] for name, rows in known.items()} if shared else known


def named(settings: Iterable[str]) -> dict[str, str]:
    """Return the name of each counter-move by settings of the attack.

    Several queries an image are the paper's ``nquery``, with ``+aug`` if their answers are of changed copies; all else,
    and all of these if several would have one name, is named by its settings.
    """
    short = {}
    for text in sorted(settings):
        keys = {word.partition("=")[0] for word in text.split()}
        told = "nquery" + ("+aug" if "augment" in keys else "")
        short[text] = told if "queries_per_image" in keys and keys <= {"queries_per_image", "augment"} else text
    several = Counter(short.values())
    return {text: name if several[name] == 1 else text for text, name in short.items()}


def fig9(thefts: list[Theft]) -> Figure | None:
    """Draw the stolen accuracy of each counter-move without a defense, under MAD and under MAD-argmax."""
    known = [(theft, moves(theft)) for theft in thefts]
    known = [(theft, found) for theft, found in known if len(found) > 1]
    if not known:
        return None
    figure, axes = sheet(1, len(known), heights=3.2)
    for each, (theft, found) in zip(axes[0], known, strict=True):
        for offset, defense in zip((-0.2, 0, 0.2), ("none", *DEFENSES), strict=True):
            got = {}
            for place, rows in enumerate(found.values()):
                cells = undefended(rows) if defense == "none" else under(rows, defense)
                if len(cells):
                    got[place + offset] = stolen(cells, "strength").iloc[0]
            label = "undefended" if defense == "none" else f"{defense}, epsilon {EPSILON:g}"
            own = HOLLOW if defense == "none" else style(defense)
            line(each, pd.DataFrame(got).T, label, own | {"linestyle": "none"})
        chance = 100 * theft.rows.chance.iloc[0]
        each.axhline(chance, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), label="chance")
        each.set_xticks(range(len(found)), list(found), rotation=45, ha="right", parse_math=False)
        each.set(xlim=(-0.5, len(found) - 0.5), ylim=(-4, 104), ylabel="accuracy of the stolen model, %")
        each.set_title(shown(theft, *found.values()), fontsize=8)
    return finish(figure, axes.flat, "Fig. 9: an adversary's counter-moves")


def stolen(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """Return mean, minimum and maximum of the stolen accuracy in percent, and whether all stolen models learned."""
    found = 100 * rows.groupby(by).stolen_accuracy.agg(["mean", "min", "max"])
    return found.assign(learned=learned(rows).groupby(rows[by]).min().astype(float))


def line(axes: Axes, found: pd.DataFrame, label: str, own: dict[str, Any]) -> None:
    """Draw the accuracies that ``stolen`` returns, at the x positions in their index."""
    if len(found):
        bars = spread(found, "range")
        axes.errorbar(found.index, found["mean"], yerr=bars, **own | {"markersize": 5}, **BARS, label=label)
        cross(axes, found.index.to_series(), found["mean"], found["learned"])


def by_budget(theft: Theft) -> pd.DataFrame:
    """Return the records of the paper's knockoff at every budget, under MAD and without a defense."""
    plain = theft.plain
    if plain.empty:
        return plain
    recipe = ["knockoff_architecture", "knockoff_optimizer", *RECIPE]
    same = ["attack", "attack_settings", "recovery", *recipe]
    every = theft.same_victim
    rows = every[(every[same] == plain[same].iloc[0]).all(axis=1)]
    rows = pd.concat([undefended(rows), under(rows, "mad")])
    swept = rows.groupby(["defense", "strength"]).budget.transform("nunique") > 1
    return rows[swept].drop_duplicates(["defense", "strength", "budget", "seed"])


def budget(thefts: list[Theft]) -> Figure | None:
    """Draw the stolen model's accuracy against the query budget."""
    known = [(theft, by_budget(theft)) for theft in thefts]
    known = [(theft, rows) for theft, rows in known if len(rows)]
    if not known:
        return None
    figure, axes = sheet(1, len(known))
    for each, (theft, rows) in zip(axes[0], known, strict=True):
        for place, at in enumerate(sorted(set(rows.strength))):
            found, own = stolen(rows[rows.strength == at], "budget"), marks(place - 1) if at else HOLLOW
            line(each, found, f"mad, epsilon {at:g}" if at else "undefended", own | {"linewidth": 1.2})
        each.set_xscale("log")
        each.set_xticks(sorted(set(rows.budget)), [f"{at:,}" for at in sorted(set(rows.budget))], rotation=45)
        each.minorticks_off()
        each.set(ylim=(-4, 104), xlabel="queries", ylabel="accuracy of the stolen model, %")
        largest = rows[rows.budget == rows.budget.max()]
        each.set_title(shown(theft, largest).replace("\n", "\nup to "), fontsize=8)
    return finish(figure, axes.flat, "Queries that a theft takes")
