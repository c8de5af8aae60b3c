"""``mad-status --prune``: what no record refers to is shown, then removed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from mad import records
from mad.errors import MadError
from mad.files import LOCKS, holder
from mad.progress import out


def prune(outputs: Path, yes: bool) -> None:
    """Show what no record refers to, and remove it once that is confirmed."""
    busy = [found for file in sorted((outputs / LOCKS).glob("*.lock")) if (found := holder(file))]
    if busy:
        raise MadError(f"process {busy[0]['pid']} on {busy[0]['host']} is at work in {outputs}: prune when it is done")
    paths = list(unneeded(outputs))
    for path in paths:
        out.print(f"{path}  {size(path) / 2**20:.1f} MiB", soft_wrap=True, markup=False)
    if not paths:
        out.print("nothing to prune")
        return
    if not yes and not (sys.stdin.isatty() and input(f"remove these {len(paths)}? [y/N] ").strip().lower() == "y"):
        out.print("nothing was removed" + ("" if sys.stdin.isatty() else "; --yes removes without asking"))
        return
    for path in paths:
        remove(path)
    out.print(f"removed {len(paths)}")


def unneeded(outputs: Path) -> Iterator[Path]:
    """Yield networks that no record used, damaged files, and what dead processes left."""
    table = records.read(outputs)
    used = {name for uses in ([] if table.empty else table.uses) for name in str(uses).split()}
    for folder in sorted((outputs / "victims").glob("*/*")):
        if folder.relative_to(outputs / "victims").as_posix() not in used:
            yield folder
        else:
            yield from waste(folder)
    for folder in (outputs, *sorted((outputs / "runs").glob("*/*/*/*")), outputs / "figures"):
        yield from waste(folder)
    yield from sorted((outputs / LOCKS).glob("*.lock"))


def waste(folder: Path) -> Iterator[Path]:
    """Yield the damaged and the half-written files of a folder."""
    yield from sorted((*folder.glob("*.damaged"), *folder.glob(".*.tmp")))


def size(path: Path) -> int:
    """Return the bytes of a file, or of the files in a folder; a link has none."""
    if path.is_symlink():
        return 0
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, and the folders above it that are empty then."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    for above in list(path.parents)[:2]:
        if above.name in ("victims", "runs", LOCKS) or any(above.iterdir()):
            return
        above.rmdir()
