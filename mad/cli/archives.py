"""Archives of published data sets: download, resume, check and unpack them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from mad.errors import MadError
from mad.progress import err

CHUNK = 1 << 20  # bytes
SECONDS = 60  # without data, after which the download fails
PAST_THE_END = 416  # the HTTP status if the whole file was already received


@dataclass(frozen=True)
class Archive:
    """An archive with a whole data set.

    Args:
        url: its address.
        md5: its published checksum.
        below: the folder, relative to the root, that it is unpacked into.
    """

    url: str
    md5: str
    below: str = "."

    def fetch(self, name: str, root: Path) -> None:
        """Download the archive, unless it exists, and unpack it.

        Raises:
            MadError: if it cannot be downloaded or unpacked.
        """
        file = root / Path(self.url).name
        if not file.is_file():
            self._download(file, f"put that file at {file} yourself, and run mad-data {name} --root {root} again")
        if checksum(file) != self.md5:
            raise MadError(f"{file} is damaged: its MD5 should be {self.md5}; remove it and try again")
        err.print(f"unpacking {file}", soft_wrap=True)
        # The filter keeps a tar archive from writing outside the folder; a zip archive cannot.
        safe: dict[str, Any] = {} if file.suffix == ".zip" else {"filter": "data"}
        shutil.unpack_archive(file, root / self.below, **safe)

    def _download(self, file: Path, remedy: str) -> None:
        """Download the archive; resume after an earlier attempt that was interrupted."""
        part = file.with_name(f"{file.name}.part")
        held = part.stat().st_size if part.exists() else 0
        request = Request(self.url, headers={"User-Agent": "mad", **({"Range": f"bytes={held}-"} if held else {})})
        try:
            with urlopen(request, timeout=SECONDS) as answer:
                held = held if answer.status == 206 else 0  # other servers send the whole file
                total = None if answer.length is None else held + answer.length
                with part.open("ab" if held else "wb") as sink, received(file.name, held, total) as advance:
                    while chunk := answer.read(CHUNK):
                        sink.write(chunk)
                        advance(len(chunk))
        except (OSError, HTTPException) as error:
            if not (held and isinstance(error, HTTPError) and error.code == PAST_THE_END):
                reason = getattr(error, "reason", error)
                raise MadError(f"{self.url} cannot be had ({reason}); try again, or {remedy}") from error
            total = held
        if total is not None and part.stat().st_size < total:
            raise MadError(f"{self.url} broke off at {part.stat().st_size} of {total} bytes; try again to go on")
        if checksum(part) != self.md5:
            part.unlink()
            raise MadError(f"{self.url} is not the file that was published: its MD5 should be {self.md5}; {remedy}")
        part.rename(file)


ARCHIVES = {
    "cifar10": Archive("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
    "cifar100": Archive("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
    "cub200": Archive(
        "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz", "97eceeb196236b17998738112f37df78"
    ),
    "caltech256": Archive(
        "https://data.caltech.edu/records/nyy15-4j048/files/256_ObjectCategories.tar",
        "67b4f42ca05d46448c6bb8ecd2220f6d",
        below="caltech256",
    ),
    "tiny_imagenet": Archive("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"),
}


@contextmanager
def received(task: str, held: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar of a download in bytes; yields a function that takes the number of new bytes."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err, disable=not err.is_terminal) as bars:
        yield partial(bars.advance, bars.add_task(task, completed=held, total=total))


def checksum(file: Path) -> str:
    """Return the MD5 of a file."""
    from torchvision.datasets.utils import calculate_md5  # a slow import

    err.print(f"checking {file}", soft_wrap=True)
    return calculate_md5(file)
