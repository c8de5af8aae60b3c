"""What a defense costs the thief, against what it costs honest users."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mad.errors import MadError, word
from mad.files import file_name, write_alone

# Told apart by marker and dash as well as by hue, so that they survive a grey printer (Okabe and Ito's palette).
STYLES = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#009E73", "^", "-."),
    ("#CC79A7", "D", ":"),
    ("#56B4E9", "v", "-"),
    ("#E69F00", "P", "--"),
)
VALUES = ["victim_accuracy", "defended_accuracy", "l1_mean", "stolen_accuracy"]
INK = "#444444"
UNCHANGED = 1e-6  # a mean L1 distance that rescaling in float32 leaves


def curves(scene: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return, for each defense of a scene, its points from weak to strong, in percent, mean and deviation over seeds.

    Each frame is indexed by the strength (epsilon, or what else the defense is turned by) and has columns
    (value, "mean" | "std"). The undefended point is every curve's first: a strength of 0. The others rise, or fall
    where a larger number disturbs less (the classes that ``top_k`` keeps).
    """
    percent = scene.copy()
    accuracies = [value for value in VALUES if value != "l1_mean"]
    percent[accuracies] = percent[accuracies] * 100
    origin = percent[percent.defense == "none"]
    found = {}
    defended = percent[percent.defense != "none"]
    for (name, settings, dial), rows in defended.groupby(["defense", "defense_settings", "dial"]):
        label = f"{name} ({settings})" if settings else str(name)
        label = f"{label} by {dial}" if label in found else label  # random noise is turned in two ways
        points = pd.concat([origin, rows]).groupby("strength", dropna=False)[VALUES].agg(["mean", "std"])
        own = points[points.index != 0]
        distance = own["l1_mean"]["mean"]
        if len(own) and distance.iloc[0] > distance.iloc[-1] + UNCHANGED:
            points = pd.concat([points[points.index == 0], own[::-1]])
        found[label] = points
    if not found and len(origin):
        found["none"] = origin.groupby("strength")[VALUES].agg(["mean", "std"])
    return found


def draw(scene: pd.DataFrame) -> Figure:
    """Draw one scene: stolen accuracy against defended accuracy, and against the mean L1 on the test split."""
    victim, chance = 100 * scene.victim_accuracy.mean(), 100 * scene.chance.iloc[0]
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    found = curves(scene)
    for axes, x, best in ((left, "defended_accuracy", victim), (right, "l1_mean", 0.0)):
        for (label, points), style in zip(found.items(), itertools.cycle(STYLES)):
            if x == "l1_mean" and label != "none" and points[x]["mean"].max() < UNCHANGED:
                continue  # a defense that acts at training time moves no answer: L1 is no measure of its cost
            line(axes, points, x, label, style)
        landmarks(axes, scene, x, (best, chance))
    right.annotate(
        "chance",
        (1, chance),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        fontsize=8,
        color=INK,
        xytext=(0, 2),
        textcoords="offset points",
    )
    lowest = 100 * scene.defended_accuracy.min()
    margin = max(0.6, 0.1 * (victim - lowest))
    left.set(
        xlabel="accuracy of the defended API, % (right is better)",
        ylabel="accuracy of the stolen model, %\n(down is better)",
        xlim=(lowest - margin, victim + margin),
    )
    right.set(
        xlabel="mean L1 distance of answers, test images (left is better)",
        xlim=(-0.05, max(0.25, 1.12 * scene.l1_mean.max())),
    )
    left.set_ylim(0, 104)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(title(scene), fontsize=10)
    return figure


def landmarks(axes: Axes, scene: pd.DataFrame, x: str, ideal: tuple[float, float]) -> None:
    """Mark chance level, the ideal corner and the undefended point."""
    axes.axhline(ideal[1], color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.plot(
        *([value] for value in ideal),
        marker="*",
        markersize=15,
        color="#F0E442",
        markeredgecolor="black",
        zorder=5,
        linestyle="none",
        label="ideal: no cost, chance for the thief",
    )
    origin = scene[scene.defense == "none"]
    if len(origin):
        at = 100 * origin[x].mean() if x != "l1_mean" else 0.0
        axes.plot(
            [at],
            [100 * origin.stolen_accuracy.mean()],
            marker="o",
            markersize=9,
            color="white",
            markeredgecolor="black",
            zorder=4,
            linestyle="none",
            label="undefended",
        )
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def line(axes: Axes, points: pd.DataFrame, x: str, label: str, style: tuple[str, str, str]) -> None:
    """Draw one defense's curve, each point but the undefended one labelled with its strength."""
    color, marker, dashes = style
    xs, ys = points[x]["mean"], points["stolen_accuracy"]["mean"]
    spread = {"xerr": points[x]["std"], "yerr": points["stolen_accuracy"]["std"]}
    known = {name: std.fillna(0) for name, std in spread.items() if std.notna().any()}
    axes.errorbar(
        xs,
        ys,
        **known,
        color=color,
        marker=marker,
        linestyle=dashes,
        markersize=5,
        linewidth=1.4,
        capsize=2,
        label=label,
    )
    for place, (strength, at_x, at_y) in enumerate(zip(points.index, xs, ys, strict=True)):
        if strength and not pd.isna(strength):
            # On the right points crowd toward epsilon 1: every other label goes below.
            below = x == "l1_mean" and place % 2 == 0
            axes.annotate(
                f"{strength:g}",
                (at_x, at_y),
                xytext=(-5, -4) if below else (-4, 4) if x != "l1_mean" else (4, 4),
                textcoords="offset points",
                fontsize=7.5,
                color=color,
                ha="right" if below or x != "l1_mean" else "left",
                va="top" if below else "bottom",
            )


def title(scene: pd.DataFrame) -> str:
    """Return one line that says what was stolen, how, and over how many seeds."""
    first: Any = scene.iloc[0]
    seeds = scene.seed.nunique()
    dials = ", ".join(dict.fromkeys(scene[scene.defense != "none"].dial)) or "epsilon"
    recovery = "" if first.recovery == "none" else f", {first.recovery} of the answers"
    return (
        f"victim {first.victim} ({first.architecture}) - attack {first.attack} with {first.budget:,} queries "
        f"from {first['pool']}{recovery} - {seeds} seed{'s' * (seeds > 1)}, points labelled with {dials}"
    )


def write_all(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw every scene of the records to PNG and PDF; return the PNGs."""

    def written(name: str, scene: pd.DataFrame) -> Path:
        area = Path(folder.name)
        return save(draw(scene), folder.parent, area / stem(scene.iloc[0], name), area)

    scenes = table.groupby("scene")
    return each({f"the trade-off of scene {name}": partial(written, str(name), rows) for name, rows in scenes})


def stem(first: Any, scene: str) -> str:
    """Return the name of a scene's figure, without its ending."""
    names = [first.victim, first["pool"], first.attack, *([] if first.recovery == "none" else [first.recovery])]
    for name in names:
        word("the name of a figure", name)
    return file_name("tradeoff", *names, str(first.budget), scene[:6])


def each(jobs: Mapping[str, Callable[[], Path | None]]) -> list[Path]:
    """Do each of some jobs by itself; return what they wrote.

    Raises:
        MadError: once all others are done, if some could not be.
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
