"""CSV and TSV files as data frames of text, with each cell under the name that stands above it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mad.errors import MadError

if TYPE_CHECKING:
    from pandas import DataFrame

SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read(path: Path) -> DataFrame:
    """Return the rows of a file whose first line names its columns; a separator at the end of a row adds no cell.

    Raises:
        MadError: if its columns are separated otherwise, or if rows have more cells than the first line.
    """
    import pandas as pd

    sep = SEPARATORS[path.suffix.lower()]
    # As text: 007 stays 007. Only an empty cell is missing: NA may be a class.
    reading: Any = partial(pd.read_csv, path, sep=sep, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    frame: DataFrame = reading()
    named = list(frame.columns)
    if len(named) == 1 and ({*",;\t|"} - {sep}) & {*named[0]}:
        raise MadError(f"{path} has one column, {named[0][:100]!r}: separate its columns by {sep!r}")
    if not len(frame) or isinstance(frame.index, pd.RangeIndex):
        return frame
    # Of rows with more cells than the first line, pandas takes the first cells for an index: all others move along.
    more = range(frame.index.nlevels)
    frame = reading(header=0, names=[*named, *more], index_col=False)
    if any(frame[each].str.strip().ne("").any() for each in more):
        cells = f"{len(named) + len(more)} cells, its first line names {len(named)} columns"
        raise MadError(f"{path}: a row has {cells}: name each column, or put what has {sep!r} in it in quotes")
    return frame[named]
