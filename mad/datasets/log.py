"""A log of answers: a table, CSV or Parquet, of images and of what an API answered about each."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from mad import simplex
from mad.datasets import pictures
from mad.datasets.base import Images
from mad.datasets.content import checksum_of, place
from mad.datasets.folder import Files, loaded
from mad.errors import MadError

if TYPE_CHECKING:
    from numpy import ndarray
    from pandas import DataFrame

READERS = {".csv": "CSV", ".parquet": "Parquet", ".pq": "Parquet"}
IMAGES = ("image", "img", "path", "file", "file_name")
POSTERIORS = ("answer", "answers", "posterior", "posteriors", "probabilities", "probs")
LABELS = ("label", "class", "prediction")
ROUNDED = 0.01  # how far a row's sum may be from 1 because the log was rounded; it is then rescaled
SHOWN = 12  # columns that an error lists


class Held(io.BytesIO):
    """The bytes of an image, which errors call by the name of their row."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.called = name

    def __str__(self) -> str:
        return self.called


class Log(Sequence[Any]):
    """A log; its items are the images as ``pictures.pixels`` takes them: paths, or files in memory.

    Args:
        path: the table.
        image: the name of its column of images: paths from the table's folder, bytes, or dicts with ``bytes`` and
            ``path``, as Hugging Face writes them. None for the first of ``IMAGES`` that it has.
        answer: the name of its column of answers, or what the names of K columns have before their number. None for
            the one that it has: ``POSTERIORS``, numbered columns, else ``LABELS``.

    Raises:
        MadError: if the table cannot be read, is empty, or lacks the columns.
    """

    def __init__(self, path: str, image: str | None = None, answer: str | None = None) -> None:
        self.path, self.file = path, place(path)
        frame = self._frame(image).rename(columns=str)
        if not len(frame):
            self.fail("is empty: it has no row")
        self.image = self._image_column(list(frame.columns), image)
        self.cells = list(frame[self.image])
        self.columns = self._answer_columns(frame.drop(columns=self.image), answer)
        self.values = self._values(frame[self.columns])

    def fail(self, why: str, cause: BaseException | None = None) -> NoReturn:
        """Raise MadError about this log."""
        raise MadError(f"attack.log={self.path} {why}") from cause

    def __len__(self) -> int:
        """Return N, the number of rows."""
        return len(self.cells)

    def __getitem__(self, row: Any) -> Any:
        """Return the image of a row: a path, or its bytes as a file.

        Raises:
            MadError: if the row holds neither.
        """
        found = self.cells[row]
        if isinstance(found, dict):
            found = found.get("path") if found.get("bytes") is None else found["bytes"]
        if isinstance(found, (bytes, bytearray)):
            return Held(bytes(found), f"the image of row {row}")
        if isinstance(found, (str, Path)) and str(found):
            return self.file.parent / found
        return self.fail(f"has no image in row {row} (from 0): column {self.image} must hold a path or bytes there")

    def _frame(self, image: str | None) -> DataFrame:
        """Return the table; a CSV's column of images is text, whatever it looks like."""
        import pandas as pd

        kind = READERS.get(self.file.suffix.lower())
        if kind is None:
            self.fail(f"must be a table that ends in {', '.join(READERS)}")
        if not self.file.is_file():
            self.fail("is not there: give a table, CSV or Parquet, of images and answers")
        try:
            if kind == "Parquet":
                return pd.read_parquet(self.file)
            column = self._image_column([str(name) for name in pd.read_csv(self.file, nrows=0).columns], image)
            return pd.read_csv(self.file, dtype={column: str}, low_memory=False)
        except MadError:
            raise
        except ImportError as error:
            self.fail(
                "is Parquet, which pandas reads with pyarrow: pip install 'mad[parquet]', or save it as CSV", error
            )
        except pd.errors.EmptyDataError as error:
            self.fail("is empty: it has no row", error)
        except Exception as error:  # whatever a damaged file raises
            self.fail(f"cannot be read as {kind} ({' '.join(str(error).split())[:150]})", error)

    def _image_column(self, columns: list[str], image: str | None) -> str:
        """Return the name of the column of images."""
        wanted = IMAGES if image is None else (image,)
        found = next((name for name in wanted if name in columns), None)
        if found is None:
            self.fail(f"has no column {' or '.join(wanted)} of images; set attack.image to one of {few(columns)}")
        return found

    def _answer_columns(self, frame: DataFrame, answer: str | None) -> list[str]:
        """Return the names of the columns of answers: one, or K in the order of their numbers."""
        columns = list(frame.columns)
        groups = numbered(columns)
        if answer is not None:
            wanted = str(answer)
            if wanted not in columns and wanted not in groups:
                self.fail(
                    f"has neither a column {wanted} nor columns {wanted}0, {wanted}1, ...; set attack.answer to one of "
                    f"{few([*columns, *groups])}"
                )
            return [wanted] if wanted in columns else groups[wanted]
        found = [[name] for name in POSTERIORS if name in columns] + list(groups.values())
        found = found or [[name] for name in LABELS if name in columns]
        if len(found) > 1:
            self.fail(f"has several answers: set attack.answer to one of {few([*columns, *groups])}")
        if not found:
            self.fail(
                f"has no answers: a column {POSTERIORS[0]} of lists, columns p0, p1, ... or a column {LABELS[0]}; set "
                f"attack.answer to one of {few(columns)}"
            )
        return found[0]

    def _values(self, frame: DataFrame) -> ndarray:
        """Return probabilities, float64 (N, K), or class numbers, float64 (N,); any of them may be NaN."""
        import numpy as np

        columns = list(frame.columns)
        try:
            if len(columns) > 1:
                return np.array(frame, dtype=np.float64)
            values = [json.loads(each) if isinstance(each, str) else each for each in frame[columns[0]]]
            widths = [len(each) if hasattr(each, "__len__") else 0 for each in values]
            other = next((row for row, width in enumerate(widths) if width != widths[0]), None)
            if other is None:
                return np.array(values, dtype=np.float64)
        except (ValueError, TypeError) as error:
            self.fail(
                f"holds in {few(columns)} what is neither a list of probabilities, like [0.9, 0.1], nor a number", error
            )
        self.fail(f"has {widths[other]} probabilities in row {other} (from 0), {widths[0]} in row 0")

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
        if lost.any():
            self.fail(f"has NaN, or nothing, in {few(self.columns)} of row {first(lost)} (from 0)")
        if values.dim() == 1:
            wrong = (values != values.round()) | (values < 0) | (values >= classes)
            if wrong.any():
                row = first(wrong)
                self.fail(f"has class {values[row]:g} in row {row} (from 0), {whose} has classes 0 to {classes - 1}")
            return torch.nn.functional.one_hot(values.long(), classes).float()
        if values.dim() != 2 or values.shape[1] != classes:
            self.fail(
                f"has {values.shape[1]} probabilities a row in {few(self.columns)}, {whose} has {classes} classes"
            )
        total = values.sum(dim=1)
        wrong = (values < 0).any(dim=1) | ~((total - 1).abs() <= ROUNDED)
        if wrong.any():
            row = first(wrong)
            self.fail(
                f"has no posterior in row {row} (from 0): probabilities from {values[row].min():g} that sum to "
                f"{total[row]:g}; expected at least 0, and a sum of 1"
            )
        off = (total - 1).abs() > simplex.TOLERANCE / 2
        return torch.where(off.unsqueeze(1), values / total.unsqueeze(1), values).float()

    def checksums(self) -> Iterator[str]:
        """Yield the checksum of the table and of the image of each row; files that have not changed are not read again.

        Raises:
            MadError: if a file cannot be read.
        """
        yield checksum_of(self.file)
        for row in range(len(self)):
            image = self[row]
            if isinstance(image, Held):
                yield hashlib.sha256(image.getbuffer()).hexdigest()
                continue
            try:
                yield checksum_of(image)
            except (OSError, ValueError) as error:
                self.fail(f"names {image} in row {row} (from 0), which cannot be read ({reason(error)})", error)

    @property
    def content(self) -> str:
        """What names the log in a fingerprint: 16 hexadecimal digits of the checksum of the table and its images."""
        return hashlib.sha256("\n".join(self.checksums()).encode()).hexdigest()[:16]

    def distinct(self, count: int) -> int:
        """Return how many of the images of the first rows are distinct."""
        return len(set(islice(self.checksums(), 1, count + 1)))

    def images(self, shape: tuple[int, int, int]) -> Images:
        """Return the images in a shape (C, H, W), uint8 (N, C, H, W); a stream if they are too large for the memory.

        Raises:
            MadError: if one cannot be read; of a stream only the headers are checked here.
        """
        try:
            for row in range(len(self)):
                pictures.check(self[row])
            return loaded(Files(self, shape))
        except MadError as error:
            self.fail(f"has an image that is none: {str(error).replace(' from the pool', ' from the log')}", error)


@lru_cache(maxsize=2)
def _opened(path: str, image: str | None, answer: str | None, *stamp: int) -> Log:
    return Log(path, image, answer)


def opened(path: str, image: str | None = None, answer: str | None = None) -> Log:
    """Return a log; see ``Log``. The cells of one process share it until its file changes."""
    try:
        found = os.stat(place(path))
        stamp = (found.st_size, found.st_mtime_ns, found.st_ino)
    except (OSError, ValueError):
        stamp = (0, 0, 0)
    return _opened(path, image, answer, *stamp)


def numbered(columns: Sequence[str]) -> dict[str, list[str]]:
    """Return the columns whose names end in 0 to K - 1, in that order, by what stands before the number."""
    found: dict[str, dict[int, str]] = {}
    for name in columns:
        if match := re.fullmatch(r"(.*?)[_. -]?(\d{1,6})", name):
            found.setdefault(match[1], {})[int(match[2])] = name
    whole = {prefix: each for prefix, each in found.items() if len(each) > 1 and set(each) == set(range(len(each)))}
    return {prefix: [each[number] for number in range(len(each))] for prefix, each in whole.items()}


def first(wrong: Tensor) -> int:
    """Return the first row of a mask (N,) that is set."""
    return int(wrong.int().argmax())


def few(names: Sequence[str]) -> str:
    """Return names as text, the first and how many more."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def reason(error: BaseException) -> str:
    """Return why a file cannot be read."""
    return str(getattr(error, "strerror", None) or error)
