"""Trade-off curves: accuracy of the stolen model against the cost of the defense for honest users."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mad.errors import MadError
from mad.figures.drawing import INK, SMALL, Shown, circle, ideal, line, styles, surround
from mad.figures.groups import counted, figure_groups, file_name, points, whole
from mad.figures.labels import Label, place
from mad.storage.files import write_alone

STOLEN, DEFENDED, L1 = "stolen_accuracy", "defended_accuracy", "l1_mean"
UNCHANGED = 1e-6  # a mean L1 distance that rescaling in float32 may cause
WIDTH, HEIGHT, CURVE = 9.0, 3.3, 0.08  # inches, without title and legend: the more curves, the higher


def curves(group: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the points of each defense of a comparison group, from weak to strong, by the defense's label.

    Points are means and standard deviations over the seeds; accuracies are in percent.
    The index of each frame is the strength, and has the name of the strength parameter, such as epsilon. The columns
    are (value, "mean" | "std"), ("seed", "nunique") and ("learned", "min"). The first point of every curve is the
    undefended one, with strength 0. The others are sorted by rising strength, or by falling values if a larger value is
    a weaker defense (such as the classes that ``top_k`` keeps).
    """
    origin = points(group[group.defense == "none"].assign(strength=0.0))
    found = {}
    defended = group[group.defense != "none"]
    for (name, settings, parameter), rows in defended.groupby(["defense", "defense_settings", "strength_parameter"]):
        label = f"{name} ({settings})" if settings else str(name)
        label = f"{label} by {parameter}" if label in found else label  # random noise has two strength parameters
        own = points(rows)
        found[label] = pd.concat([origin, weak_to_strong(own, own[L1]["mean"])]).rename_axis(str(parameter))
    return found or ({"none": origin} if len(origin) else {})


def weak_to_strong(points: pd.DataFrame, distance: pd.Series) -> pd.DataFrame:
    """Return points of rising strength from the one that moves answers least, by their mean L1 distances."""
    return points[::-1] if distance.iloc[0] > distance.iloc[-1] + UNCHANGED else points


def moves(points: pd.DataFrame) -> bool:
    """Return whether a defense perturbs answers; for one that acts at training time, L1 does not measure its cost."""
    return bool(points[L1]["mean"].max() >= UNCHANGED)


def draw(group: pd.DataFrame) -> Figure:
    """Draw a comparison group: stolen accuracy against defended accuracy, and against the mean L1 on the test split."""
    found, number = curves(group), seeds(group)
    marks = styles(found)
    moving = {label: each for label, each in found.items() if label == "none" or moves(each)}
    figure = Shown(figsize=(WIDTH, HEIGHT + CURVE * len(found)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    victim = 100 * group.groupby("seed").victim_accuracy.mean().mean()  # each seed once, however often it was run
    panels = ((left, DEFENDED, found, victim), (right, L1, moving, 0.0))
    for axes, x, drawn, best in panels:
        landmarks(axes, group, x, best)
        for label, each in drawn.items():
            line(axes, each, x, STOLEN, label, {**marks[label], "markersize": 5, "linewidth": 1.4}, "deviation")
    left.set(
        xlabel="accuracy of the defended API, % (right is better)",
        ylabel="accuracy of the stolen model, %\n(down is better)",
        ylim=(-4, 104),
    )
    right.set(xlabel="mean L1 distance of answers, test images (left is better)")
    widen(left, 1.2)
    widen(right, 0.25)
    handles, labels = left.get_legend_handles_labels()
    said = {label: f"{label}, {each}" for label, each in number.items()} if len(set(number.values())) > 1 else {}
    known = {said.get(label, label): handle for label, handle in zip(labels, handles, strict=True)}
    surround(figure, known, title(group).splitlines())
    for axes, x, drawn, _ in panels:
        ways = [pd.concat([each[x]["mean"], each[STOLEN]["mean"]], axis=1).to_numpy() for each in drawn.values()]
        place(figure, axes, strengths(drawn, x, marks), ways)
    return figure


def landmarks(axes: Axes, group: pd.DataFrame, x: str, best: float) -> None:
    """Mark chance level, the ideal corner and the undefended point, all below the curves."""
    chance = 100 * group.chance.iloc[0]
    axes.axhline(chance, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    if x == L1:
        above: dict[str, Any] = {"xytext": (0, 2), "textcoords": "offset points", "ha": "right", "va": "bottom"}
        where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "fontsize": SMALL, "color": INK}
        axes.annotate("chance", (1, chance), **where, **above)
    ideal(axes, best, chance)
    origin = group[group.defense == "none"]
    if len(origin):
        circle(axes, 0.0 if x == L1 else 100 * origin[x].mean(), 100 * origin.stolen_accuracy.mean())
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def widen(axes: Axes, least: float) -> None:
    """Set the x axis to the drawn points and bars with a margin, at least ``least`` long."""
    axes.margins(x=0.08)
    low, high = axes.get_xlim()
    more = max(0.0, least - (high - low)) / 2
    axes.set_xlim(low - more, high + more)


def strengths(found: dict[str, pd.DataFrame], x: str, marks: dict[str, dict[str, Any]]) -> list[Label]:
    """Return the labels of points with their strengths, the strongest first."""
    ranked = []
    for label, each in found.items():
        at = zip(each.index.astype(float), each[x]["mean"], each[STOLEN]["mean"], strict=True)
        for rank, (strength, at_x, at_y) in enumerate(reversed(list(at))):
            if strength and not np.isnan(strength):
                ranked.append((rank, Label(f"{strength:g}", at_x, at_y, marks[label]["color"])))
    return [text for _, text in sorted(ranked, key=lambda each: each[0])]


def seeds(group: pd.DataFrame) -> dict[str, str]:
    """Return the numbers of seeds of the points of each curve, and of the point ``undefended``."""
    number = {}
    origin = group[group.defense == "none"]
    if len(origin):
        number["undefended"] = counted([origin.seed.nunique()])
    for label, each in curves(group).items():
        if label != "none":
            number[label] = counted(each["seed"]["nunique"].iloc[len(number.keys() & {"undefended"}) :].tolist())
    return number


def title(group: pd.DataFrame) -> str:
    """Return the lines of the title: what was stolen and how, and what bars and labels mean."""
    number = set(seeds(group).values())
    over = "the seeds, as many as the legend says; a single seed has none" if len(number) > 1 else min(number)
    said = ["one seed, no bars" if number == {"1 seed"} else f"bars: one standard deviation over {over}"]
    parameters = group[group.defense != "none"].dropna(subset="strength").groupby("defense").strength_parameter.unique()
    usual = parameters.explode().mode()
    if len(usual):
        others = {name: " or ".join(each) for name, each in parameters.items() if list(each) != [usual[0]]}
        listed = ", ".join(f"{name}: {each}" for name, each in others.items())
        said.append(f"beside points, where there is room: {usual[0]}{f' ({listed})' if listed else ''}")
    still = [label for label, each in curves(group).items() if label != "none" and not moves(each)]
    if still:
        said.append(f"no answer is moved by {', '.join(still)}: not on the right")
    return f"{whole(group.iloc[0])}\n{'; '.join(said)}"


def write_all(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw every comparison group of the records to PNG and PDF; return the PNGs."""

    def written(group: pd.DataFrame) -> Path:
        area = Path(folder.name)
        return save(draw(group), folder.parent, area / file_name(group.iloc[0]), area)

    groups = table.groupby(figure_groups(table))
    return each({f"the trade-off of comparison group {name}": partial(written, rows) for name, rows in groups})


def each(jobs: Mapping[str, Callable[[], Path | None]]) -> list[Path]:
    """Run all jobs, also if some fail; return the paths that they wrote.

    Raises:
        MadError: after all jobs, if some failed.
    """
    written, broken = [], []
    for name, job in jobs.items():
        try:
            written.append(job())
        except Exception as error:
            kind = "" if isinstance(error, MadError) else f"{type(error).__name__}: "
            broken.append(f"{name} ({kind}{error})")
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise MadError(f"not drawn, while all else is kept: {'; '.join(broken[:3])}{more}")
    return [path for path in written if path is not None]


def save(figure: Figure, outputs: Path, stem: Path, area: Path) -> Path:
    """Write a figure below the outputs folder as PNG and PDF, under the lock of its area; return the PNG."""
    for ending in ("pdf", "png"):
        content = io.BytesIO()
        figure.savefig(content, format=ending, dpi=200)
        path = write_alone(outputs, area, stem.with_name(f"{stem.name}.{ending}"), content.getvalue())
    return path
