"""Figures 3, 4, 5 and 8: stolen accuracy on x, and the cost of the defense on y."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mad.figures.cells import Theft, curve, shown, undefended, under
from mad.figures.drawing import finish, ideal, line, sheet, style

ATTACKS = ("jbda", "jbself", "jbtop3", "knockoff")
DEFENSES = ("mad", "mad_argmax", "reverse_sigmoid", "random_noise", "dp_sgd")
ABLATION = ("mad", "mad_argmax", "mad_identity", "mad_random")
PARAMETERS = {"random_noise": "scale"}  # as published
AT_TRAINING = ("dp_sgd",)  # does not perturb answers, so its cost is not an L1 distance
STOLEN, DEFENDED, L1 = "stolen_accuracy", "defended_accuracy", "l1_mean"
THIEF, USERS, DISTANCE = "accuracy of the stolen model, %", "accuracy of the defended API, %", "mean L1 distance"
Series = tuple[str, pd.DataFrame, dict]


def fig3(thefts: list[Theft]) -> Figure | None:
    """Draw each attack under MAD, with one panel per victim and pool."""
    panels = []
    for theft in thefts:
        cells = {attack: theft.cells(attack) for attack in ATTACKS}
        found = {attack: curve(rows, "mad") for attack, rows in cells.items()}
        drawn = [attack for attack in ATTACKS if len(found[attack])]
        if drawn:
            series = [(attack, found[attack], style(attack)) for attack in drawn]
            panels.append((theft, series, [cells[attack] for attack in drawn]))
    if not panels:
        return None
    figure, axes = sheet(1, len(panels))
    for each, (theft, series, parts) in zip(axes[0], panels, strict=True):
        plane(each, series, DEFENDED, parts)
        each.set_title(shown(theft, *parts), fontsize=8)
        each.plot([0, 100], [0, 100], color="0.6", linewidth=0.8, linestyle=(0, (1, 2)), label="parity", zorder=1)
    strengths = sorted({at for _, series, _ in panels for _, points, _ in series for at in points.index if at})
    listed = ", ".join(f"{at:g}" for at in strengths)
    return finish(figure, axes.flat, f"Fig. 3: attacks against MAD\nfrom the circle on, epsilon = {listed}")


def fig4(thefts: list[Theft]) -> Figure | None:
    """Draw each defense against knockoff: L1 above, the API's accuracy below."""
    return two_rows(thefts, "Fig. 4: defenses against knockoff", ("none",))


def fig5(thefts: list[Theft]) -> Figure | None:
    """Draw figure 4 with two adversaries: one who trains on posteriors, and one who trains on top classes only."""
    known = [theft for theft in thefts if len(set(theft.cells(recovery="argmax").defense)) > 1]
    title = "Fig. 5: the adversary who keeps only the top class (hollow), beside the one who keeps posteriors"
    return two_rows(known, title, ("none", "argmax"))


def two_rows(thefts: list[Theft], title: str, recoveries: tuple[str, ...]) -> Figure | None:
    """Draw the defenses' curves, one column per victim and pool; curves of a recovery have hollow markers."""
    panels = []
    for theft in thefts:
        series, parts = [], []
        for recovery in recoveries:
            rows = theft.cells(recovery=recovery)
            names = [name for name in DEFENSES if len(curve(rows, name))]
            if len(recoveries) > 1:
                both = set(theft.cells(recovery=recoveries[-1]).defense)
                names = [name for name in names if name in both]
            for name in names:
                hollow = {"markerfacecolor": "white", "linewidth": 0.8} if recovery != "none" else {}
                label = name if recovery == "none" else f"{name}, {recovery}"
                series.append((label, curve(rows, name, PARAMETERS.get(name)), style(name) | hollow))
            parts += [rows] if names else []
        if series:
            panels.append((theft, series, parts))
    if not panels:
        return None
    figure, axes = sheet(2, len(panels))
    for (above, below), (theft, series, parts) in zip(axes.T, panels, strict=True):
        moving = [one for one in series if not one[0].startswith(AT_TRAINING)]
        plane(above, moving, L1, parts)
        plane(below, series, DEFENDED, parts)
        above.set_title(shown(theft, *parts), fontsize=8)
    return finish(figure, axes.flat, f"{title}\n{parameters_of(panels)}")


def fig8(thefts: list[Theft]) -> Figure | None:
    """Draw the ablations of MAD: L1 on the left, the API's accuracy on the right."""
    panels = []
    for theft in thefts:
        rows = theft.cells()
        series = [(name, curve(rows, name), style(name)) for name in ABLATION if len(curve(rows, name))]
        if any(name in ABLATION[2:] for name, _, _ in series):
            panels.append((theft, series, rows))
    if not panels:
        return None
    figure, axes = sheet(len(panels), 2)
    for (left, right), (theft, series, rows) in zip(axes, panels, strict=True):
        plane(left, series, L1, [rows])
        plane(right, series, DEFENDED, [rows])
        left.set_title(shown(theft, rows), fontsize=8)
    return finish(figure, axes.flat, "Fig. 8: ablation of MAD: no gradient (mad_identity), no choice (mad_random)")


def plane(axes: Axes, series: list[Series], y: str, parts: list[pd.DataFrame]) -> None:
    """Draw curves, each with a circle at its undefended point, and the point of an ideal defense."""
    rows = pd.concat(parts)
    for label, points, marks in series:
        line(axes, points, STOLEN, y, label, marks)
    ideal(axes, 100 * rows.chance.iloc[0], 0.0 if y == L1 else 100 * undefended(rows).defended_accuracy.mean())
    axes.set(xlim=(-4, 104), xlabel=THIEF, ylabel=DISTANCE if y == L1 else USERS)
    axes.set_ylim(*((-0.08, None) if y == L1 else (-4, 104)))


def parameters_of(panels: list[tuple[Theft, list[Series], list[pd.DataFrame]]]) -> str:
    """Return a text of each defense's strength parameter and its range, over all panels."""
    found: dict[str, list[float]] = {}
    for _, series, parts in panels:
        rows = pd.concat(parts)
        for label, points, _ in series:
            name = label.partition(",")[0]
            parameter = under(rows, name, PARAMETERS.get(name)).strength_parameter.iloc[0]
            found.setdefault(f"{name} by {parameter}", []).extend(at for at in points.index if at)
    return "; ".join(f"{name}, {min(turned):g} to {max(turned):g}" for name, turned in found.items())
