"""A log of answers: a table of images, and of what an API answered about each."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mad import simplex
from mad.datasets import tables
from mad.datasets.base import Images
from mad.datasets.content import place
from mad.datasets.folder import Files, loaded, say_frames
from mad.datasets.listing import Listing
from mad.datasets.tables import Table, at, chosen, columns
from mad.errors import MadError

if TYPE_CHECKING:
    from numpy import ndarray

POSTERIORS = ("answer", "answers", "posterior", "posteriors", "probabilities", "probs")
LABELS = ("label", "class", "prediction")
KEY = "attack.answer"


class Log:
    """A log of N answers.

    Args:
        path: a table; see ``tables.opened``.
        image: the name of its column of images; None to find it by its type or by a usual name.
        answer: the name of its column of answers, or what the names of K columns have before their number. None for
            the one that it has: ``POSTERIORS``, numbered columns, else ``LABELS``.

    Raises:
        MadError: if the table is empty, or lacks a column or an image.
    """

    def __init__(self, path: Path, image: str | None, answer: str | None) -> None:
        table, *others = tables.opened(path)
        self.name = f"attack.log={path}"
        if others:
            raise MadError(f"{self.name} has several parts: give one, such as {table.name}")
        if not table.rows:
            raise MadError(f"{self.name} is empty: it has no row")
        table, rows = table._replace(name=self.name), [(0, row) for row in range(table.rows)]
        self.listing = Listing(tables.images_of(path, [table], image, "attack.image", rows), None, [], None)
        self.columns = answers_of(table, answer, chosen(table, image, tables.IMAGES, table.pictures, "attack.image"))
        self.values = self._values([table.read(name) for name in self.columns])

    def __len__(self) -> int:
        """Return N, the number of rows."""
        return len(self.values)

    def _values(self, held: list[Any]) -> ndarray:
        """Return probabilities, float64 (N, K), or class numbers, float64 (N,); any of them may be NaN."""
        import numpy as np

        try:
            found = [numbers(column) for column in held]
            if len(found) > 1:
                return np.array(found, dtype=np.float64).T
            widths = [len(each) if hasattr(each, "__len__") else 0 for each in found[0]]
            other = next((row for row, width in enumerate(widths) if width != widths[0]), None)
            if other is None:
                return np.array(found[0], dtype=np.float64)
        except (ValueError, TypeError) as error:
            what = "what is neither a list of probabilities, like [0.9, 0.1], nor a number"
            raise MadError(f"{self.name} holds in {shown(self.columns)} {what}") from error
        raise MadError(f"{at(self.name, other)}: {widths[other]} probabilities, row 0 has {widths[0]}")

    def posteriors(self, classes: int, whose: str) -> Tensor:
        """Return the answers, float32 (N, K); class numbers become one-hot. Rows that were rounded are rescaled.

        Args:
            classes: the number of classes K.
            whose: names the victim, for errors.

        Raises:
            MadError: if they have another K, are no posteriors, or are no classes of the victim.
        """
        values = torch.from_numpy(self.values)
        lost = values.isnan() if values.dim() == 1 else values.isnan().any(dim=1)
        self._refuse(lost, lambda row: f"NaN, or nothing, in {shown(self._lost(row))}")
        if values.dim() == 1:
            wrong = (values != values.round()) | (values < 0) | (values >= classes)
            self._refuse(wrong, lambda row: f"class {values[row]:g}, {whose} has classes 0 to {classes - 1}")
            return torch.nn.functional.one_hot(values.long(), classes).float()
        if values.dim() != 2 or values.shape[1] != classes:
            width = f"{values.shape[1]} probabilities a row in {shown(self.columns)}"
            raise MadError(f"{self.name} has {width}, {whose} has {classes} classes")
        total = values.sum(dim=1)
        what = "probabilities from {:g} that sum to {:g}; expected at least 0, and a sum of 1"
        wrong = (values < 0).any(dim=1) | ~simplex.nearly_one(values)
        self._refuse(wrong, lambda row: what.format(values[row].min(), total[row]))
        off = (total - 1).abs() > simplex.TOLERANCE / 2
        return torch.where(off.unsqueeze(1), values / total.unsqueeze(1), values).float()

    def _lost(self, row: int) -> list[str]:
        """Return the columns that hold NaN in a row: of one column of lists, that column."""
        held = self.values[row]
        several = len(self.columns) > 1
        return (
            [name for name, each in zip(self.columns, held, strict=True) if each != each] if several else self.columns
        )

    def _refuse(self, wrong: Tensor, what: Callable[[int], str]) -> None:
        """Raise MadError about the first row of a mask (N,) that is set, if one is."""
        if wrong.any():
            row = int(wrong.int().argmax())
            raise MadError(f"{at(self.name, row)}: {what(row)}")

    @property
    def content(self) -> str:
        """What names the log in a fingerprint, 16 hexadecimal digits: images and answers, in whatever form they are."""
        told = [self.listing.checksums(), list(self.values.shape), sha256(self.values.tobytes()).hexdigest()]
        return sha256(json.dumps(told).encode()).hexdigest()[:16]

    def distinct(self, count: int) -> int:
        """Return how many of the images of the first rows are distinct."""
        return len(set(self.listing.checksums()[:count]))

    def images(self, shape: tuple[int, int, int]) -> Images:
        """Return the images in a shape (C, H, W), uint8 (N, C, H, W); a stream if they are too large for the memory.

        Raises:
            MadError: if one cannot be read; of a stream only the headers are checked here.
        """
        say_frames(self.name, self.listing.images, self.listing.headers())
        return loaded(Files(self.listing.images, shape))


read = tables.kept(Log)


def opened(path: str, image: str | None = None, answer: str | None = None) -> Log:
    """Return a log; see ``Log``. The cells of one process share it until its file changes."""
    if not os.path.lexists(place(path)):
        raise MadError(f"attack.log={path[:300]} is not there: give {tables.KINDS}")
    if not tables.is_table(place(path)):
        raise MadError(f"attack.log must be {tables.KINDS}, got {path[:300]!r}; set attack.log=FILE")
    return read(place(path), image, answer)


def answers_of(table: Table, given: str | None, image: str | None = None) -> list[str]:
    """Return the names of the columns of answers: one, or K in the order of their numbers; never that of ``image``."""
    every = {**numbered(table.columns), **{name: [name] for name in table.columns}}
    others = [name for name in every if name != image]
    if given is not None and given not in every and (gaps := misnumbered(table.columns).get(given)):
        raise MadError(f"{table.name} has {gaps}")
    name = chosen(table._replace(columns=list(every)), given, (), [], KEY)
    if name is not None:
        return every[name]
    found = [each for name, each in every.items() if len(each) > 1 or name.lower() in POSTERIORS]
    found = found or [each for name, each in every.items() if name.lower() in LABELS]
    if len(found) > 1:
        raise MadError(f"{table.name} has several answers: {columns(others, KEY)}")
    if not found:
        wrong = next(iter(misnumbered(table.columns).values()), None)
        usual = f"a column {POSTERIORS[0]} of lists, columns p0, p1, ... or a column {LABELS[0]}"
        raise MadError(f"{table.name} has no answers: {usual}; {wrong or columns(others, KEY)}")
    return found[0]


def numbers(column: Any) -> Any:
    """Return a column's cells as numbers or lists of these; text is read as such, and an empty one is NaN."""
    found = column.to_pandas().to_numpy() if hasattr(column, "to_pandas") else column
    return [number(each) for each in found] if isinstance(found, list) or found.dtype.kind == "O" else found


def number(cell: Any) -> Any:
    """Return a cell of text as a number or a list of these; another one as it is."""
    if not isinstance(cell, str):
        return cell
    return json.loads(cell) if cell.lstrip().startswith("[") else float(cell.strip() or "nan")


def numbered(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the columns whose names end in 0 to K - 1, in that order, by what stands before the number."""
    found = by_number(names)
    whole = {prefix: each for prefix, each in found.items() if len(each) > 1 and set(each) == set(range(len(each)))}
    return {prefix: [each[number] for number in range(len(each))] for prefix, each in whole.items()}


def misnumbered(names: Sequence[str]) -> dict[str, str]:
    """Return what is wrong with columns whose names end in other numbers, by what stands before the number."""
    found = {}
    for prefix, each in by_number(names).items():
        if len(each) > 1 and set(each) != set(range(len(each))):
            first, last = each[min(each)], each[max(each)]
            stem = first.rstrip("0123456789")
            found[prefix] = f"{len(each)} columns from {first} to {last}: name them {stem}0 to {stem}{len(each) - 1}"
    return found


def by_number(names: Sequence[str]) -> dict[str, dict[int, str]]:
    """Return the columns whose names end in a number, by that number, by what stands before it.

    That is without the sign before the number, as in p_0, unless there is one column with and one without: then these
    are two kinds.
    """
    ended = [match for name in names if (match := re.fullmatch(r"(.*?)([_. -]?)(\d{1,6})", name))]
    count = Counter((match[1], int(match[3])) for match in ended)
    twice = {stem for (stem, _), times in count.items() if times > 1}
    found: dict[str, dict[int, str]] = {}
    for match in ended:
        stem = match[1] + match[2] * (match[1] in twice)
        found.setdefault(stem, {})[int(match[3])] = match[0]
    return found


def shown(names: list[str]) -> str:
    """Return names of columns for errors, as far as there is room."""
    return ", ".join(names)[:300]
