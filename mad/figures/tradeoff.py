"""What a defense costs the thief, against what it costs honest users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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


def curves(scene: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return, for each defense of a scene, its points by rising epsilon, in percent, mean and deviation over seeds.

    Each frame is indexed by epsilon and has columns (value, "mean" | "std"). The undefended point is every curve's
    first: a budget of 0 is no defense.
    """
    percent = scene.copy()
    accuracies = [value for value in VALUES if value != "l1_mean"]
    percent[accuracies] = percent[accuracies] * 100
    origin = percent[percent.defense == "none"]
    found = {}
    for (name, settings), rows in percent[percent.defense != "none"].groupby(["defense", "defense_settings"]):
        label = f"{name} ({settings})" if settings else str(name)
        found[label] = pd.concat([origin, rows]).groupby("epsilon", dropna=False)[VALUES].agg(["mean", "std"])
    if not found and len(origin):
        found["none"] = origin.groupby("epsilon")[VALUES].agg(["mean", "std"])
    return found


def draw(scene: pd.DataFrame) -> Figure:
    """Draw one scene: stolen accuracy against defended accuracy, and against the mean L1 on the test split."""
    first = scene.iloc[0]
    victim, chance = 100 * scene.victim_accuracy.mean(), 100 * first.chance
    figure = Figure(figsize=(9.0, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for (label, points), style in zip(curves(scene).items(), STYLES * 9, strict=False):
        line(left, points, "defended_accuracy", label, style)
        line(right, points, "l1_mean", label, style)
    for axes, best in ((left, victim), (right, 0.0)):
        axes.axhline(chance, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.plot([best], [chance], marker="*", markersize=15, color="#F0E442", markeredgecolor="black", zorder=5,
                  linestyle="none", clip_on=False, label="ideal: no cost, chance for the thief")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    right.annotate("chance", (1, chance), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8,
                   color=INK, xytext=(0, 2), textcoords="offset points")
    lowest = 100 * scene.defended_accuracy.min()
    margin = max(0.6, 0.06 * (victim - lowest))
    left.set(xlabel="accuracy of the defended API, %  (right is better)",
             ylabel="accuracy of the stolen model, %\n(down is better)", xlim=(lowest - margin, victim + margin))
    right.set(xlabel="mean L1 distance of the answers on test images  (left is better)", xlim=(-0.03, None))
    left.set_ylim(0, 103)
    stars = left.get_legend_handles_labels()
    figure.legend(*stars, loc="outside lower center", ncols=min(3, len(stars[1])), frameon=False, fontsize=9)
    figure.suptitle(title(scene), fontsize=10)
    return figure


def line(axes: Axes, points: pd.DataFrame, x: str, label: str, style: tuple[str, str, str]) -> None:
    """Draw one defense's curve, each point labelled with its epsilon."""
    color, marker, dashes = style
    xs, ys = points[x]["mean"], points["stolen_accuracy"]["mean"]
    axes.errorbar(xs, ys, xerr=points[x]["std"].fillna(0), yerr=points["stolen_accuracy"]["std"].fillna(0),
                  color=color, marker=marker, linestyle=dashes, markersize=5, linewidth=1.4, capsize=2, label=label)
    for place, (epsilon, at_x, at_y) in enumerate(zip(points.index, xs, ys, strict=True)):
        text = "undefended" if epsilon == 0 else "" if pd.isna(epsilon) else f"ε={epsilon:g}"
        below = place % 2 and x == "defended_accuracy"
        axes.annotate(text, (at_x, at_y), xytext=(-6, -4 if below else 3), textcoords="offset points", fontsize=7,
                      color=color if epsilon else INK, ha="right", va="top" if below else "bottom")


def title(scene: pd.DataFrame) -> str:
    """Return one line that says what was stolen, how, and over how many seeds."""
    first: Any = scene.iloc[0]
    seeds = scene.seed.nunique()
    recovery = "" if first.recovery == "none" else f", {first.recovery} of the answers"
    return (
        f"victim {first.victim} ({first.architecture}) - attack {first.attack} with {first.budget:,} queries "
        f"from {first['pool']}{recovery} - {seeds} seed{'s' * (seeds > 1)}"
    )


def write_all(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw every scene of the records to PNG and PDF; return the PNGs."""
    written = []
    for name, scene in table.groupby("scene"):
        first = scene.iloc[0]
        stem = f"tradeoff-{first.victim}-{first['pool']}-{first.attack}-{first.budget}-{str(name)[:6]}"
        folder.mkdir(parents=True, exist_ok=True)
        figure = draw(scene)
        for ending in ("pdf", "png"):
            figure.savefig(folder / f"{stem}.{ending}", dpi=200)
        written.append(folder / f"{stem}.png")
    return written
