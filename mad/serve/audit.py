"""The audit log: who asked what and when, one JSON object a line, in files that are rotated. No image, no key."""

from __future__ import annotations

import json
import logging
import os
from datetime import datetime, timezone
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from mad.errors import MadError


class Lines(RotatingFileHandler):
    """A rotating file that says so when it cannot be written, and is begun anew where it was moved or removed."""

    def emit(self, record: logging.LogRecord) -> None:  # logging's name
        """Write a line to the file that is at the path now: another server, or logrotate, may have moved this one."""
        stream = self.stream
        if stream is not None and not there(self.baseFilename, stream.fileno()):
            self.stream = None
            stream.close()
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # logging's name
        """Raise what happened."""
        raise


def there(path: str, descriptor: int) -> bool:
    """Return whether an open file still lies at a path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


class Audit:
    """Writes the lines of an audit log. Thread-safe.

    Args:
        file: the log; None writes nothing.
        size: bytes of a file before it is closed, and renamed to ``FILE.1``.
        kept: how many of these are kept.

    Raises:
        MadError: if the file cannot be written.
    """

    def __init__(self, file: Path | None, size: int, kept: int) -> None:
        self._lines: Lines | None = None
        if file is not None:
            try:
                self._lines = Lines(file, maxBytes=size, backupCount=kept, encoding="utf-8")
            except OSError as error:
                raise MadError(f"audit={file} cannot be written ({error.strerror}): name another file") from error
            self._lines.setFormatter(logging.Formatter("%(message)s"))

    def write(self, **what: Any) -> None:
        """Write a line; ``time`` is added, in UTC.

        Raises:
            OSError: if it cannot be written.
        """
        if self._lines is None:
            return
        line = json.dumps({"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), **what})
        self._lines.handle(logging.makeLogRecord({"msg": line}))

    def close(self) -> None:
        """Close the file."""
        if self._lines is not None:
            self._lines.close()
