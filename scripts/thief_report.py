"""The lines of ``thief.py`` as a table (Markdown, on stdout) and as a figure.

    python scripts/thief_report.py docs/bench/thief.jsonl --figure docs/thief.png

One panel and one table a theft: the stolen accuracy, in percent, after so many steps; the mean over the seeds, and the
95 % interval of the mean (Student's t).
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t

from mad.cli.command import Parser, command
from mad.errors import MadError
from mad.figures.drawing import marks

AWAY = ("outputs", "data_root", "defense")


def read(files: list[Path]) -> pd.DataFrame:
    """Return a row a seed, arm and mark: theft, defense, arm, seed, steps and scores."""
    rows = []
    for line in (json.loads(text) for file in files for text in file.read_text().splitlines()):
        words = dict(word.split("=", 1) for word in line["of"].split())
        theft = " ".join(f"{key}={value}" for key, value in words.items() if key.split(".")[0] not in AWAY)
        defense = f"{words['defense']} {words.get('defense.epsilon', '')}".strip()
        recipe, _, last = line["arm"].rpartition("-")
        about = {"theft": theft, "defense": defense, "recipe": recipe, "last": int(last), "seed": line["seed"]}
        rows += [{**about, **point} for point in line["curve"]]
    return pd.DataFrame(rows)


def interval(values: pd.Series) -> float:
    """Return half the width of the 95 % interval of a mean; NaN for fewer than three values."""
    return float(t.ppf(0.975, len(values) - 1) * values.sem()) if len(values) > 2 else math.nan


def table(rows: pd.DataFrame) -> str:
    """Return a theft's table: a row a recipe and length, a column a mark."""
    marks = [100, 200, 400, 800, 1600, 2400]
    head = ["API", "recipe", "of steps", *(f"after {mark}" for mark in marks), "at the end", "seeds", "held-out loss"]
    lines = [head, ["---"] * len(head)]
    for (defense, recipe, last), some in rows.groupby(["defense", "recipe", "last"]):
        cells = []
        end = some.groupby("seed").steps.transform("max")
        for mark in marks:
            near = some[((some.steps - mark).abs() <= 0.25 * mark) & (some.steps < 0.97 * end)]
            cells.append(f"{100 * near.stolen.mean():.1f}" if len(near) else "")
        final = some[some.steps == end]
        said = f"{100 * final.stolen.mean():.1f}"
        said += f" ± {100 * interval(final.stolen):.1f}" if len(final) > 2 else ""
        lines.append(
            [str(defense), str(recipe), str(last), *cells, said, str(len(final)), f"{final.held_loss.mean():.3f}"]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw a theft's curves: a color a recipe, dashed where nothing is defended."""
    recipes = sorted(rows.groupby(["recipe", "last"]).groups)
    for (defense, recipe, last), some in rows.groupby(["defense", "recipe", "last"]):
        style = {**marks(recipes.index((recipe, last))), "linestyle": "--" if defense == "none" else "-"}
        found = some.groupby("steps").stolen.agg(["mean", interval]) * 100
        label = f"{recipe}, {last} steps" + (", undefended" if defense == "none" else "")
        axes.errorbar(
            found.index,
            found["mean"],
            yerr=found["interval"],
            **style | {"markersize": 4},
            capsize=2,
            linewidth=1.2,
            label=label,
        )
    axes.set(xscale="log", xlabel="training steps of 128 images", ylim=(0, 100))
    axes.set_xticks([100, 200, 400, 800, 1600, 3200], ["100", "200", "400", "800", "1600", "3200"])
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


@command
def main() -> None:
    """Print the tables and draw the figure."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    rows = read(arguments.files)
    if rows.empty:
        raise MadError(f"there is no line in {', '.join(map(str, arguments.files))}")
    thefts = [(str(name), some) for name, some in rows.groupby("theft")]
    for name, some in thefts:
        print(f"\n`{name}`\n\n{table(some)}")
    if arguments.figure:
        rows_of_panels = -(-len(thefts) // 2)
        figure = Figure(figsize=(8.4, 3.4 * rows_of_panels + 0.8), layout="constrained")
        axes = figure.subplots(rows_of_panels, 2, squeeze=False).flat
        known = {}
        for each, (name, some) in zip(axes, thefts, strict=False):
            draw(each, some)
            words = dict(word.split("=", 1) for word in name.split())
            pool, budget = words.get("pool", "its usual pool"), words.get("attack.budget", "all")
            each.set_title(f"{words['victim']} stolen with {pool}, {budget} queries", fontsize=9)
            each.set_ylabel("accuracy of the stolen model, %")
            known.update(dict(zip(*reversed(each.get_legend_handles_labels()), strict=True)))
        figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        figure.suptitle(
            "Defended (solid) and undefended (dashed) thefts; bars: 95 % interval of the mean, from three seeds on",
            fontsize=9,
        )
        figure.savefig(arguments.figure, dpi=150)


if __name__ == "__main__":
    main()
