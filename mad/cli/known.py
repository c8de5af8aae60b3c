"""Remembers which record belongs to a config, so that a kept cell needs neither torch nor its data.

A cell is remembered if its fingerprint follows from the config and this package only. One that depends on a plug-in or
on the contents of a file is not: both may change.
"""

from __future__ import annotations

import functools
import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from mad.cli import chained
from mad.cli.configs import outputs_of
from mad.errors import MadError
from mad.schema import Record
from mad.storage.files import below, write
from mad.storage.record_file import read_record

if TYPE_CHECKING:
    from mad.cell import Cell

FOLDER = Path(".known")  # below the outputs folder; it can be removed at any time
ELSEWHERE = ("outputs", "device", "threads", "grid", "hydra", "export", "plan")  # keys that change no fingerprint
OUTSIDE = ("contents", "content", "initial_sha256", "checksums")  # keys of a description that hold checksums of files


@dataclass(frozen=True)
class Known:
    """The records of a cell and of its undefended reference, relative to the outputs folder.

    Args:
        reference: path of the reference's record.
        record: path of the cell's record.
        label: the reference's label, for ``mad-status``.
    """

    reference: str
    record: str
    label: str


def find(config: DictConfig) -> tuple[Known, list[Record]] | None:
    """Return where the records of a config's cell are, and these, if they were remembered and are all whole; else None.

    The records are the reference's and the cell's, or the one that is both.
    """
    usual = config.force is False and config.device in ("auto", "cpu") and not config.grid
    usual = usual and not chained.named(config)  # the choices that it names may have changed
    if not usual or config.export is not None or not isinstance(config.threads, int) or config.threads < 1:
        return None
    with suppress(OSError, ValueError, TypeError, MadError):
        known = Known(**json.loads(below(outputs_of(config), file_of(config)).read_text()))
        paths = dict.fromkeys((known.reference, known.record))
        found = [read_record(below(outputs_of(config), Path(path))) for path in paths]
        whole = [record for record in found if record is not None]
        if len(whole) == len(paths):
            return known, whole
    return None


def remember(config: DictConfig, cell: Cell, label: str) -> None:
    """Remember a cell's records, if its fingerprint follows from the config and this package only."""
    from mad.storage.fingerprint import describe

    if chained.named(config):
        return
    if '"precision": "fast"' in json.dumps(plain(config)) or not self_contained(describe(cell)):
        return
    known = Known(cell.reference.path.as_posix(), cell.path.as_posix(), label)
    with suppress(MadError):  # a disk that is full costs the next command some seconds
        write(below(outputs_of(config), file_of(config)), json.dumps(asdict(known)).encode())


def self_contained(description: Any) -> bool:
    """Tell whether a description holds no source of a plug-in and no checksum of a file."""
    if isinstance(description, dict):
        outside = any(description.get(key) for key in OUTSIDE)
        return not outside and all(map(self_contained, description.values()))
    if isinstance(description, list):
        return all(map(self_contained, description))
    return not isinstance(description, str) or " source " not in description


def file_of(config: DictConfig) -> Path:
    """Return the file that remembers a config's cell, relative to the outputs folder."""
    text = json.dumps([plain(config), package()], sort_keys=True)
    return FOLDER / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def plain(config: DictConfig) -> dict[str, Any]:
    """Return the keys of a config that a fingerprint may depend on, resolved."""
    parts = {key: config._get_node(key) for key in config if key not in ELSEWHERE}
    return {
        str(key): OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else config[key]
        for key, node in parts.items()
    }


@functools.cache
def package() -> str:
    """Return a checksum of this package's files by name, size and time: after an edit nothing is remembered."""
    return checksum(Path(__file__).parents[1])


def checksum(place: Path) -> str:
    """Return a checksum of the names, sizes and times of the Python files below a folder."""
    files = {file.relative_to(place).as_posix(): file.stat() for file in place.rglob("*.py")}
    text = json.dumps([[name, found.st_size, found.st_mtime_ns] for name, found in sorted(files.items())])
    return hashlib.sha256(text.encode()).hexdigest()
