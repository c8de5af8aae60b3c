"""Where files lie, and what is in them: the names of data are the reader's, their content decides the numbers."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from mad.errors import MadError

CHUNK = 1 << 20  # bytes


def place(path: str | Path) -> Path:
    """Return a path that a user gave, with ``~`` for the home folder.

    Raises:
        MadError: if there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise MadError(f"{path}: there is no such home folder; write the path out") from error


def checksum_of(file: Path, kind: str = "sha256") -> str:
    """Return the checksum of a file, computed once in a process, and again where its size, time or inode changed.

    Raises:
        OSError: if it cannot be read.
    """
    found = file.stat()
    return _checksum(str(file), kind, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@lru_cache(maxsize=1_000_000)
def _checksum(file: str, kind: str, *stamp: int) -> str:
    checksum = hashlib.new(kind, usedforsecurity=False)
    with open(file, "rb") as source:
        while chunk := source.read(CHUNK):
            checksum.update(chunk)
    return checksum.hexdigest()
