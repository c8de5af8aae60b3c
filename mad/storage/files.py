"""Atomic writes, checksummed JSON files, and locks between processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from mad.errors import MadError
from mad.progress import err
from mad.schema import SEAL, Record

LOCKS = ".locks"
LONGEST = 200  # bytes of a file's name: systems take 255, and temporary files have longer names


class DamagedError(MadError):
    """A file's content is not what was written; ``path`` is the file, ``why`` the reason."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} is damaged ({why})")
        self.path, self.why = path, why


class UnwritableError(MadError):
    """A path that cannot be written; ``path`` is the path, ``error`` the system's error, and ``remedy`` what to do."""

    def __init__(self, path: Path, error: OSError, remedy: str) -> None:
        room = "make room, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        super().__init__(f"cannot write {path} ({error.strerror}); {room}{remedy}")
        self.path, self.error, self.remedy = path, error, remedy

    def __reduce__(self) -> tuple[type[UnwritableError], tuple[Path, OSError, str]]:  # from a process of its own
        return UnwritableError, (self.path, self.error, self.remedy)


def unwritable(path: Path, error: OSError) -> UnwritableError:
    """Return the one-line error for a path that cannot be written."""
    return UnwritableError(path, error, "set outputs= to a folder you may write")


@contextlib.contextmanager
def advising(remedy: str) -> Iterator[None]:
    """Say what helps where the block cannot write: commands have other keys and flags than ``outputs=``."""
    try:
        yield
    except UnwritableError as error:
        raise UnwritableError(error.path, error.error, remedy) from error


def check_writable(path: Path) -> None:
    """Check, before some work, that a file can be written after it; its folder is made.

    Raises:
        MadError: if it cannot.
    """
    if path.is_dir():
        raise unwritable(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    beside = beside_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.open("xb").close()
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def beside_of(path: Path) -> Path:
    """Return the path of a temporary file in the same folder."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def write(path: Path, content: bytes) -> None:
    """Write a file atomically: to a temporary file in the same folder, which is then renamed.

    Raises:
        MadError: if it cannot be written.
    """
    beside = beside_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("xb") as file:  # x: does not follow a link of that name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """Flush a folder to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clear(folder: Path, name: str = "*") -> None:
    """Remove the temporary files that killed processes left in a folder, of files that match ``name``.

    The caller must hold the lock of these files.
    """
    for left in folder.glob(f".{name}.*.tmp"):
        with contextlib.suppress(OSError):
            left.unlink()


def seal(content: Record) -> bytes:
    """Return an object as JSON whose last key is the checksum of all others.

    Raises:
        ValueError: if a number is NaN or infinite, which JSON cannot hold, or has thousands of digits.
    """
    text = json.dumps(content, indent=2, allow_nan=False)
    return json.dumps({**content, SEAL: hashlib.sha256(text.encode()).hexdigest()}, indent=2).encode()


def unseal(path: Path) -> Record | None:
    """Return the object that ``seal`` wrote to a file, without its checksum; None if there is no file.

    Raises:
        DamagedError: if the checksum does not match, or if the fingerprint is not the name of the file's folder.
        MadError: if the file cannot be read.
    """
    try:
        content = path.read_bytes()
        found = json.loads(content)
        found.pop(SEAL)
        if seal(found) != content:
            raise DamagedError(path, "its checksum does not hold")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise MadError(f"cannot read {path} ({error.strerror}); check its permissions") from error
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(path, "it is not what was written") from error
    if found.get("fingerprint") != path.parent.name:
        raise DamagedError(path, "it is another's")
    return found


def set_aside(damage: DamagedError) -> None:
    """Rename a damaged file to ``*.damaged``, so that it is not read again; the caller must hold its lock."""
    aside = damage.path.with_name(damage.path.name + ".damaged")
    err.print(f"{damage}: set aside as {aside.name} and made again", soft_wrap=True, markup=False)
    try:
        damage.path.replace(aside)
    except OSError as error:
        raise unwritable(aside, error) from error


def below(outputs: Path, path: Path) -> Path:
    """Return the full path of a path that is relative to the outputs folder.

    Raises:
        MadError: if a link or a ``..`` in it leads out of the outputs folder.
    """
    full = outputs / path
    try:
        inside = full.resolve().is_relative_to(outputs.resolve())
    except OSError as error:
        if error.errno != errno.ELOOP:  # a name too long, a folder that may not be entered
            raise unwritable(full, error) from error
        inside = False
    except (RuntimeError, ValueError):  # a loop of links, a NUL
        inside = False
    if not inside or ".." in path.parts:
        raise MadError(f"{full} leads out of {outputs}: remove the link, or choose another name")
    return full


def folders(outputs: Path, pattern: str) -> Iterator[Path]:
    """Yield the folders that match a glob pattern; skip those that a link leads out of the outputs folder."""
    for folder in [outputs] if pattern == "." else sorted(outputs.glob(pattern)):
        with contextlib.suppress(MadError):
            yield below(outputs, folder.relative_to(outputs))


def lock_file(path: Path) -> Path:
    """Return the lock file of a path; both are relative to the outputs folder."""
    return Path(LOCKS, file_name(*path.parts) + ".lock")


def file_name(*parts: str) -> str:
    """Return parts joined to a file name without an extension; a name that is too long is cut and ends in a hash."""
    whole = "-".join(parts)
    content = whole.encode(errors="surrogateescape")
    if len(content) <= LONGEST:
        return whole
    return f"{content[: LONGEST - 17].decode(errors='ignore')}-{hashlib.sha256(content).hexdigest()[:16]}"


@contextlib.contextmanager
def locked(outputs: Path, path: Path) -> Iterator[None]:
    """Hold the lock of a path that is relative to the outputs folder.

    The lock file names its holder (see ``whoami``). The lock of a process that dies is released.

    Raises:
        MadError: if the lock cannot be made.
    """
    file = below(outputs, lock_file(path))
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(file))
        except OSError as error:
            raise unwritable(outputs / path, error) from error
        yield


@contextlib.contextmanager
def held(file: Path) -> Iterator[None]:
    """Hold the lock of a file; the file exists only while the lock is held or waited for."""
    descriptor = acquire(file)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink()  # before it is released: a waiting process sees that it is gone and makes a new one
        os.close(descriptor)


def acquire(file: Path) -> int:
    """Wait for the lock of a file; return the open file descriptor that holds it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), file.stat()):
                    with contextlib.suppress(OSError):  # on a full disk the lock works, but does not name its holder
                        os.ftruncate(descriptor, 0)
                        os.write(descriptor, json.dumps(whoami()).encode())
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def write_alone(outputs: Path, area: Path, path: Path, content: bytes) -> Path:
    """Write a file while holding a lock; return its full path. Also removes temporary files in its folder.

    Args:
        outputs: the outputs folder.
        area: the path whose lock is held, relative to ``outputs``.
        path: the file, relative to ``outputs``.
        content: its bytes.
    """
    full = below(outputs, path)
    with locked(outputs, area):
        clear(full.parent)
        write(full, content)
    return full


def whoami() -> Record:
    """Return the names ``host``, ``pid`` and ``since`` (Unix time in seconds) of this process."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}


def holder(file: Path) -> Record | None:
    """Return the holder of a lock, as ``whoami`` describes it; None if it is free.

    A holder that did not write its name has host ``?`` and pid 0.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except OSError:
        try:
            found = json.loads(os.read(descriptor, 4096))
            return {key: kind(found[key]) for key, kind in (("host", str), ("pid", int), ("since", float))}
        except (ValueError, KeyError, TypeError, OverflowError):
            return {"host": "?", "pid": 0, "since": 0.0}
    finally:
        os.close(descriptor)
