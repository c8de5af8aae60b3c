"""Tables of images: CSV and Parquet files, and Hugging Face's folders of data sets; what they list of classes."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mad.datasets import base, listing, separated
from mad.datasets.content import stamp
from mad.datasets.listing import PARTS, Listing, ordered, sides
from mad.datasets.pictures import Encoded, Source
from mad.errors import MadError

IMAGES = ("image", "img", "images", "file", "filename", "file_name", "filepath", "file_path", "path", "image_path")
LABELS = ("label", "labels", "class", "target", "category", "class_name", "label_name", "y")
SPLIT = "split"
PARQUET = (".parquet", ".pq")
SAVED = ("dataset_dict.json", "state.json")  # what Hugging Face's save_to_disk leaves
KINDS = "a CSV or Parquet file, or a folder of Hugging Face datasets"
NEEDED = "pip install 'mad[datasets]'"
T = TypeVar("T")


class Table(NamedTuple):
    """A table whose columns are read when they are asked for."""

    name: str  # what errors call it
    columns: list[str]
    rows: int
    read: Callable[[str], Any]  # a column's values, by its name; with a length, and by row
    pictures: list[str]  # the columns that are images by their type
    classes: dict[str, list[str]]  # columns of numbers that stand for classes, and the names of these
    part: str | None = None  # what the whole table is for; see ``listing.PARTS``


class Column(Sequence[Source]):
    """The images of some rows of tables, read when they are asked for.

    Args:
        tables: the name of each table, and its column of images: bytes, paths, or dicts of ``bytes`` and ``path``.
        rows: the table and the row of each image.
        place: the folder to which paths are relative.
    """

    def __init__(self, tables: list[tuple[str, Any]], rows: list[tuple[int, int]], place: Path) -> None:
        self.tables, self.rows, self.place = tables, rows, place

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def __getitem__(self, number: Any) -> Any:
        """Return an image; MadError if the cell holds nothing, or something else."""
        table, row = self.rows[number]
        name, values = self.tables[table]
        return source(values[row], at(name, row), self.place)


def source(value: Any, where: str, place: Path) -> Source:
    """Return an image from a cell of a table: bytes, a path, or a dict of ``bytes`` and ``path``.

    Args:
        value: the cell.
        where: the table and the row, for errors.
        place: the folder to which paths are relative.

    Raises:
        MadError: if the cell holds none of these, or a path at which no file is.
    """
    value = plain(value)
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return Encoded(value, where)
    if not isinstance(value, str) or not value.strip():
        given = "nothing" if value is None or value != value or not value else f"a {type(value).__name__}"
        raise MadError(f"{where}: expected an image as bytes or the path of its file, got {given}; mend or remove it")
    file = place / value
    if os.path.isfile(file):
        return file
    raise MadError(f"{where}: the image {value[:200]!r} is not there ({str(file)[:300]}); mend the path or remove it")


def at(name: str, row: int) -> str:
    """Return how errors call a row of a table."""
    return f"{name}, row {row} (from 0)"


def is_table(path: Path) -> bool:
    """Return whether a path names a table that ``opened`` reads; also of a name that no file can have."""
    if os.path.isfile(path):
        return path.suffix.lower() in (*separated.SEPARATORS, *PARQUET)
    return any(os.path.isfile(path / name) for name in SAVED)


def kept(read: Callable[..., T]) -> Callable[..., T]:
    """Make a function of a table's path and settings read a table again only if it has changed.

    Whatever it raises becomes a MadError that names the table.
    """

    @lru_cache(maxsize=16)
    def cached(_stamps: tuple[tuple[int, ...], ...], path: Path, *how: Any) -> T:
        return read(path, *how)

    def again(path: Path, *how: Any) -> T:
        try:
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            return cached(tuple(map(stamp, files)), path, *how)
        except MadError:
            raise
        except ImportError as error:
            raise MadError(f"{path} needs {error.name or 'datasets'} to be read: {NEEDED}") from error
        except Exception as error:  # damaged files make the libraries raise many kinds of errors
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise MadError(f"{path} cannot be read as a table of images ({why}); write it anew") from error

    return again


@kept
def of_table(path: Path, image: str | None, label: str | None, who: str) -> Listing:
    """Return what a table lists.

    Args:
        path: a CSV or Parquet file, or a folder that Hugging Face's ``save_to_disk`` made.
        image: the column of images; None to find it by its type or by a usual name.
        label: the column of classes; None to find it alike. If there is none, the images have no classes.
        who: the data set or pool, for lines on stderr.

    Raises:
        MadError: if it cannot be read, or if a row lacks its image, class or part.
    """
    group = "pool" if who.startswith("pool") else "victim.dataset"  # where the command line has its keys
    tables = opened(path)
    words = {part for table in tables for part in parts_of(table) if part}
    train, test = sides(words, f"{who}, {path}") if words else (None, None)
    tables = [table for table in tables if table.part in (None, train, test)]
    parts = [part for table in tables for part in parts_of(table)]
    rows = [(number, row) for number, table in enumerate(tables) for row in range(table.rows)]
    taken = [number for number, part in enumerate(parts) if part in (train, test)]
    if not taken:
        raise MadError(f"{path} lists no image for training")
    images = images_of(path, tables, image, f"{group}.image_column", [rows[number] for number in taken])
    testing = [parts[number] == test for number in taken] if test else None
    key = f"{group}.label_column"
    named = [chosen(table, label, LABELS, list(table.classes), key) for table in tables]
    if None in named:
        bare = tables[named.index(None)]
        which = columns(bare.columns, key)
        return Listing(images, None, [], testing, f"{bare.name} has no column of classes that is known; {which}")
    labels = [each for table, name in zip(tables, named, strict=True) for each in classes_of(table, str(name))]
    labels = [labels[number] for number in taken]
    known = [each for table, name in zip(tables, named, strict=True) for each in table.classes.get(str(name), [])]
    return Listing(images, labels, list(dict.fromkeys(known)) or ordered(labels), testing)


def opened(path: Path) -> list[Table]:
    """Return the tables of a file or folder; only a folder has several, its parts."""
    if path.is_dir():
        return saved(path)
    return [parquet(path) if path.suffix.lower() in PARQUET else csv(path)]


def images_of(
    path: Path, tables: list[Table], given: str | None, key: str, rows: list[tuple[int, int]]
) -> Sequence[Source]:
    """Return the images of some rows, at least one, of the tables of a path; see ``Column``.

    Raises:
        MadError: if a table lacks the given column, or one that is known; or if a row's path leads to no file.
    """
    held = []
    for table in tables:
        name = chosen(table, given, IMAGES, table.pictures, key)
        if name is None:
            raise MadError(f"{table.name} has no column of images that is known; {columns(table.columns, key)}")
        held.append((table.name, table.read(name)))
    images = Column(held, rows, path if path.is_dir() else path.parent)
    return list(images) if isinstance(images[0], Path) else images  # each path is found to be there


def columns(names: list[str], key: str) -> str:
    """Return the columns that a key chooses from, for errors."""
    return f"set {key} to one of {', '.join(names)[:300]}" if names else "it has no other column"


def chosen(table: Table, given: str | None, usual: Sequence[str], typed: list[str], key: str) -> str | None:
    """Return a column of a table: the one that is given, the only one of its type, or one of a usual name, or None.

    Raises:
        MadError: if the given one is not there.
    """
    if given is not None:
        if given not in table.columns:
            raise MadError(f"{table.name} has no column {given!r}; {columns(table.columns, key)}")
        return given
    if len(typed) == 1:
        return typed[0]
    return next((name for want in usual for name in table.columns if name.strip().lower() == want), None)


def parts_of(table: Table) -> list[str | None]:
    """Return the part that each row of a table is for; None where nothing says so."""
    name = next((name for name in table.columns if name.strip().lower() == SPLIT), None)
    if table.part is not None or name is None:
        return [table.part] * table.rows
    words = [str(plain(value)).strip().lower() for value in table.read(name)]
    wrong = next((row for row, word in enumerate(words) if word not in PARTS), None)
    if wrong is not None:
        raise MadError(f"{at(table.name, wrong)}: {name} must be one of {', '.join(PARTS)}, got {words[wrong]!r}")
    return [PARTS[word] for word in words]


def classes_of(table: Table, column: str) -> list[str]:
    """Return the name of the class of each row of a table.

    Raises:
        MadError: if a row has no class, or a number that stands for none.
    """
    names, values = table.classes.get(column), list(map(plain, table.read(column)))
    missing = [value is None or value != value or (isinstance(value, str) and not value.strip()) for value in values]
    numbers = list(map(listing.undecimal, values))  # a column with gaps has floats, and so has a CSV made of it
    decimals = all(none or number is not None for none, number in zip(missing, numbers, strict=True))
    found = []
    for row, value in enumerate(values):
        if missing[row]:
            raise MadError(f"{at(table.name, row)}: no class in column {column}; fill it in, or remove the row")
        if names is not None and not (isinstance(value, int) and 0 <= value < len(names)):
            raise MadError(f"{at(table.name, row)}: {column} is {value!r}, which is none of its {len(names)} classes")
        if not isinstance(value, (str, int)) and not decimals:
            raise MadError(f"{at(table.name, row)}: {column} must be text or a whole number, got {value!r}")
        found.append(names[int(value)] if names is not None else str(numbers[row] if decimals else value).strip())
    return found


def plain(value: Any) -> Any:
    """Return a cell of a table as Python's own type."""
    return value.as_py() if hasattr(value, "as_py") else value


def csv(path: Path) -> Table:
    """Open a CSV file, or a TSV file, whose first line names its columns."""
    frame = separated.read(path)
    return Table(str(path), list(frame.columns), len(frame), lambda name: frame[name].tolist(), [], {})


def parquet(path: Path) -> Table:
    """Open a Parquet file; what Hugging Face notes in it of the names of classes is used."""
    import pyarrow as pa
    from pyarrow import parquet

    held = parquet.ParquetFile(path)
    schema = held.schema_arrow
    noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    classes = {name: each["names"] for name, each in noted.items() if isinstance(each, dict) and each.get("names")}
    kinds = ["binary", "large_binary", "struct<bytes: binary, path: string>"]
    pictures = [field.name for field in schema if str(field.type) in kinds]

    def read(name: str) -> Any:
        """Return a column; above ``base.IN_MEMORY`` bytes it lies in a file in TMPDIR, which has no name."""
        groups = [held.metadata.row_group(number) for number in range(held.num_row_groups)]
        if sum(group.total_byte_size for group in groups) <= base.IN_MEMORY:
            return held.read(columns=[name]).column(0)
        with tempfile.NamedTemporaryFile(prefix="mad-") as file:
            with pa.ipc.new_file(file, pa.schema([schema.field(name)])) as writer:
                for batch in held.iter_batches(columns=[name], batch_size=1000):
                    writer.write_batch(batch)
            file.flush()
            return pa.ipc.open_file(pa.memory_map(file.name)).read_all().column(0)

    return Table(str(path), schema.names, held.metadata.num_rows, read, pictures, classes)


def saved(path: Path) -> list[Table]:
    """Open a folder that Hugging Face's ``save_to_disk`` made: a table for each of its parts."""
    from datasets import ClassLabel, Dataset, Image, load_from_disk

    held = load_from_disk(str(path))
    tables = []
    for part, each in ({None: held} if isinstance(held, Dataset) else held).items():
        features = each.features
        pictures = [name for name, feature in features.items() if isinstance(feature, Image)]
        classes = {name: feature.names for name, feature in features.items() if isinstance(feature, ClassLabel)}
        values = each.with_format("arrow")[:]  # mapped from the files, not read
        name = f"{path}/{part}" if part else str(path)
        tables.append(Table(name, each.column_names, len(each), values.column, pictures, classes, part))
    return tables
