"""Placement of labels beside points."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.transforms import Bbox

SIZE = 7.5  # points
REACH = (4.0, 9.0)  # points from a data point's center to its label
AROUND = [(-1, 1), (1, 1), (-1, -1), (1, -1), (-1, 0), (1, 0), (0, 1), (0, -1)]
MARKER = 3.0  # points from a marker's center to its edge
CROSSED = 2  # most lines that may cross a label


@dataclass(frozen=True)
class Label:
    """A label of a point of some axes, in data coordinates."""

    text: str
    x: float
    y: float
    color: str


def place(figure: Figure, axes: Axes, labels: Iterable[Label], curves: list[np.ndarray]) -> int:
    """Place each label so that it overlaps no label, marker or text and crosses the fewest lines, or leave it out.

    Args:
        figure: the figure, after its layout.
        axes: the axes of the points.
        labels: the labels, in order of placement.
        curves: the points (N, 2) of each line, in data coordinates; error bars are taken from the axes.

    Returns:
        The number of labels that were left out.
    """
    point = figure.dpi / 72
    curves = [axes.transData.transform(curve) for curve in curves if len(curve)]
    lines = [Path(curve) for curve in curves]
    taken = [around(x, y, MARKER * point) for curve in curves for x, y in curve]
    taken += [text.get_window_extent() for text in axes.texts]
    bars = [path for one in axes.collections for path in one.get_paths()]
    lines += [axes.transData.transform_path(path) for path in bars]
    left = 0
    for label in labels:
        at = axes.transData.transform((label.x, label.y))
        style: dict[str, Any] = {"fontsize": SIZE, "color": label.color, "ha": "center", "va": "center", "zorder": 7}
        style["parse_math"] = False
        text = axes.annotate(label.text, (label.x, label.y), xytext=(0, 0), textcoords="offset points", **style)
        text.set_path_effects([patheffects.withStroke(linewidth=1.5, foreground="white")])
        text.set_in_layout(False)
        extent = text.get_window_extent()
        size = np.array([extent.width, 0.75 * extent.height])  # digits have no descenders
        best, least = None, CROSSED + 1
        for reach, direction in itertools.product(REACH, AROUND):
            middle = at + np.array(direction) * (reach * point + size / 2)
            box = Bbox([middle - size / 2, middle + size / 2])
            if axes.bbox.count_contains([box.min, box.max]) == 2 and not box.count_overlaps(taken):
                crossed = sum(line.intersects_bbox(box, filled=False) for line in lines)
                if crossed < least:
                    best, least = box, crossed
            if least == 0:
                break
        if best is None:
            text.remove()
            left += 1
        else:
            text.set_position(tuple((np.add(best.min, best.max) / 2 - at) / point))
            taken.append(best)
    return left


def around(x: float, y: float, reach: float) -> Bbox:
    """Return the square around a point with half its side ``reach``."""
    return Bbox([(x - reach, y - reach), (x + reach, y + reach)])
