"""Paths and checksums of data files. Checksums enter fingerprints; paths do not."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from mad.errors import MadError

CHUNK = 1 << 20  # bytes


def place(path: str | Path, name: str = "a path") -> Path:
    """Return a path that a user gave for what ``name`` says, with ``~`` for the home folder.

    Raises:
        MadError: if it is no path, or if ``~NAME`` names no user.
    """
    if not isinstance(path, (str, Path)) or path == "":
        raise MadError(f"{name} must be a path, got {path!r}")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise MadError(f"{path}: there is no such home folder; write the path out") from error


def checksum_of(file: Path, kind: str = "sha256") -> str:
    """Return the checksum of a file; it is cached until the file's size, times or inode change.

    Raises:
        OSError: if it cannot be read.
    """
    return _checksum(str(file), kind, *stamp(file))


def stamp(file: Path) -> tuple[int, ...]:
    """Return the size, times and inode of a file, one of which is another once the file has changed.

    Raises:
        OSError: if it is not there.
    """
    found = file.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


@lru_cache(maxsize=1_000_000)
def _checksum(file: str, kind: str, *_stamp: int) -> str:
    checksum = hashlib.new(kind, usedforsecurity=False)
    with open(file, "rb") as source:
        while chunk := source.read(CHUNK):
            checksum.update(chunk)
    return checksum.hexdigest()
