"""The common parts of all commands: flags, one-line errors, and output streams that may be closed or full."""

from __future__ import annotations

import argparse
import errno
import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from mad.cli.messages import report
from mad.errors import RAISED, MadError
from mad.progress import err

STOPPED = "stopped; what is finished is kept: give the same command again to go on"
GONE = (errno.EPIPE, errno.EBADF, errno.EIO)  # the reader of the output has closed it
OBJECTS = 50_000  # between two collections of garbage; at 700, they take up to a tenth of the time of a short run


class Leave(SystemExit):
    """The end of a command, with its exit code; any other ``SystemExit`` is a plug-in's, and an error."""


class Stream:
    """Standard output or error; text that cannot be written is dropped, and the work goes on.

    ``lost`` is the error in that case. Files are more important than messages.
    """

    def __init__(self, stream: Any) -> None:
        self.stream, self.lost = stream, 0
        with suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # for characters that the encoding lacks

    def write(self, text: str) -> int:
        """Write text; drop it if the stream is closed or full."""
        with self._losing():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream; ignore that it is closed or full."""
        with self._losing():
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.lost = self.lost or error.errno or errno.EIO
            with suppress(OSError, ValueError, AttributeError):  # so that Python can flush it at exit
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self.stream.fileno())
                os.close(null)


def guard() -> None:
    """Protect this process from closed output streams and a notebook's matplotlib backend; collect garbage rarely."""
    gc.set_threshold(OBJECTS)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:  # otherwise the next opened file would become standard output
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)
            if null != number:
                os.close(null)
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, mode)  # noqa: SIM115  # for as long as the process lives
        setattr(sys, name, stream if mode == "r" or isinstance(stream, Stream) else Stream(stream))
    os.environ["MPLBACKEND"] = "agg"  # a notebook's backend may be missing; figures are files


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Return a command's entry point: an error becomes one line and exit code 1; closed streams are ignored."""

    @functools.wraps(main)
    def entry() -> None:
        before = sys.stdin, sys.stdout, sys.stderr
        guard()
        code: Any = 0
        try:
            main()
        except KeyboardInterrupt:
            err.print(STOPPED)
            code = 130
        except Leave as end:
            code = end.code
        except RAISED as error:
            report(error)
            code = 1
        sys.stdout.flush()
        lost = getattr(sys.stdout, "lost", 0)
        if lost and lost not in GONE:
            report(MadError(f"standard output cannot be written ({os.strerror(lost)}); the files are there"))
            code = code or 1
        sys.stdin, sys.stdout, sys.stderr = before
        if code:
            sys.exit(code)

    return entry


class Parser(argparse.ArgumentParser):
    """A parser of a command's flags, whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Raise MadError for a command line that is not valid."""
        raise MadError(f"{message}; {self.prog} --help says what it takes")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End the command, such as after ``--help``."""
        if message:
            self._print_message(message, sys.stderr)
        raise Leave(status)
