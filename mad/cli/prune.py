"""``mad-status --prune``: list files that no record refers to, and remove them."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from mad.cli.sweep_folder import HIDDEN
from mad.errors import MadError
from mad.progress import out
from mad.storage import records
from mad.storage.checkpoint import NAME as CHECKPOINT
from mad.storage.files import LOCKS, folders, holder


def prune(outputs: Path, yes: bool) -> None:
    """Print the files that no record refers to, and remove them after a confirmation.

    What is used by the time of the confirmation stays.
    """
    idle(outputs)
    paths = list(unneeded(outputs))
    for path in paths:
        out.print(f"{path}  {size(path) / 2**20:.1f} MiB", soft_wrap=True, markup=False)
    if not paths:
        out.print("nothing to prune")
        return
    if not yes and not (sys.stdin.isatty() and input(f"remove these {len(paths)}? [y/N] ").strip().lower() == "y"):
        out.print("nothing was removed" + ("" if sys.stdin.isatty() else "; --yes removes without asking"))
        return
    idle(outputs)
    still = set(unneeded(outputs))
    removed = [path for path in paths if path in still]
    for path in removed:
        remove(path)
    kept = len(paths) - len(removed)
    out.print(f"removed {len(removed)}" + (f"; {kept} are used by now, and stay" if kept else ""))


def idle(outputs: Path) -> None:
    """Raise MadError if a process is at work in a folder of outputs."""
    busy = [found for file in sorted((outputs / LOCKS).glob("*.lock")) if (found := holder(file))]
    if busy:
        raise MadError(f"process {busy[0]['pid']} on {busy[0]['host']} is at work in {outputs}: prune when it is done")


def unneeded(outputs: Path) -> Iterator[Path]:
    """Yield networks and transfer sets that no record used, damaged files, and files left by killed processes."""
    table = records.read(outputs)
    used = {name for uses in ([] if table.empty else table.uses) for name in str(uses).split()}
    for folder in folders(outputs, "victims/*/*"):
        if folder.relative_to(outputs / "victims").as_posix() not in used:
            yield folder
        else:
            yield from waste(folder)
    for folder in folders(outputs, "transfers/*/*"):
        if folder.relative_to(outputs).as_posix() not in used:
            yield folder
        else:
            yield from waste(folder)
    for pattern in (".", "runs/*/*/*/*", "figures", "failed", "sweeps/*"):
        for folder in folders(outputs, pattern):
            yield from waste(folder)
    for folder in folders(outputs, LOCKS):
        yield from sorted(folder.glob("*.lock"))


def waste(folder: Path) -> Iterator[Path]:
    """Yield the damaged and temporary files of a folder, and the hidden files of a killed sweep in its folder."""
    done = (CHECKPOINT,) if (folder / "record.json").is_file() else ()
    yield from sorted(file for pattern in ("*.damaged", *HIDDEN, *done) for file in folder.glob(pattern))


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; 0 for a link."""
    if path.is_symlink():
        return 0
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder; also its parent folder if that is then empty."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    shutil.rmtree(path)
    with contextlib.suppress(OSError):  # the parent folder is not empty
        path.parent.rmdir()
