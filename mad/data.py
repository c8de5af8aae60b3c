"""``mad-data``: fetch a data set, check that it is whole, or say which file to put where."""

from __future__ import annotations

import argparse
import os
import pkgutil
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock
from omegaconf import OmegaConf
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from mad import cli
from mad.errors import MadError
from mad.progress import err, out

CHUNK = 1 << 20  # bytes
SECONDS = 60  # without a byte, after which a server is taken to be gone
PAST_THE_END = 416  # what a server says to who has the whole file already


@dataclass(frozen=True)
class Archive:
    """A file that holds a data set whole.

    Args:
        url: where it is published.
        md5: of the file, as published.
        below: the folder below the root that it is unpacked in.
    """

    url: str
    md5: str
    below: str = "."

    def fetch(self, name: str, root: Path) -> None:
        """Download the file, unless it is there, and unpack it.

        Raises:
            MadError: if it can be had neither way.
        """
        file = root / Path(self.url).name
        if not file.is_file():
            self._download(file, f"put that file at {file} yourself, and run mad-data {name} --root {root} again")
        if checksum(file) != self.md5:
            raise MadError(f"{file} is damaged: its MD5 should be {self.md5}; remove it and try again")
        err.print(f"unpacking {file}", soft_wrap=True)
        # What an archive may not do, write elsewhere, a zip never can.
        safe: dict[str, Any] = {} if file.suffix == ".zip" else {"filter": "data"}
        shutil.unpack_archive(file, root / self.below, **safe)

    def _download(self, file: Path, remedy: str) -> None:
        """Download, from where an earlier attempt stopped."""
        part = file.with_name(f"{file.name}.part")
        held = part.stat().st_size if part.exists() else 0
        request = Request(self.url, headers={"User-Agent": "mad", **({"Range": f"bytes={held}-"} if held else {})})
        try:
            with urlopen(request, timeout=SECONDS) as answer:
                held = held if answer.status == 206 else 0  # a server may send the whole file nevertheless
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
IMAGENET = ("ILSVRC2012_img_train.tar", "1d675b47d978889d74fa0da5fadfb00e")  # only given to who registers


@contextmanager
def received(task: str, held: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar over the bytes of a download; yields a function of how many came."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err, disable=not err.is_terminal) as bars:
        yield partial(bars.advance, bars.add_task(task, completed=held, total=total))


def checksum(file: Path) -> str:
    """Return the MD5 of a file."""
    from torchvision.datasets.utils import calculate_md5  # a slow import

    err.print(f"checking {file}", soft_wrap=True)
    return calculate_md5(file)


def unpack_imagenet(place: Path, root: Path) -> None:
    """Unpack ImageNet's training images, a folder a class.

    Raises:
        MadError: if its archive is not there: nobody may download it who has not registered.
    """
    name, md5 = IMAGENET
    file = place / name
    if not file.is_file():
        raise MadError(
            f"imagenet must be fetched by hand: register at https://image-net.org, put {name} (138 GB) at {file}, and "
            f"run mad-data imagenet --root {root} again; or put its images at {place}/train/, one folder a class"
        )
    if checksum(file) != md5:
        raise MadError(f"{file} is damaged: its MD5 should be {md5}; fetch it again")
    with tarfile.open(file) as outer:
        for number, member in enumerate(outer, 1):  # each is itself an archive: of one class
            err.print(f"unpacking {member.name} ({number} of 1000)", soft_wrap=True)
            with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                inner.extractall(place / "train" / Path(member.name).stem, filter="data")


def described(name: str, root: Path) -> Any:
    """Return the data set that ``conf/dataset/NAME.yaml`` describes."""
    file = cli.config_dir() / "dataset" / f"{name}.yaml"
    node = OmegaConf.merge({"data_root": str(root)}, OmegaConf.load(file))
    fields: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    del fields["data_root"]
    return pkgutil.resolve_name(fields.pop("_target_"))(**fields)


def whole(dataset: Any, *parts: str) -> bool:
    """Whether the named splits are there; nothing is downloaded."""
    from torchvision import datasets

    try:
        if hasattr(dataset, "loader"):  # ours would download what is missing, and could not go on with it later
            getattr(datasets, dataset.loader)(dataset.root, download=False)
        else:
            for part in parts:
                getattr(dataset, part)()
    except (MadError, RuntimeError):
        return False
    return True


def fetch(name: str, root: Path) -> None:
    """Make a data set be whole below a root, and print what is in it.

    Raises:
        MadError: if it can not.
    """
    dataset, parts = described(name, root), ["train", "test"]
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{name}.lock"):
        if name == "imagenet":
            parts = parts if whole(dataset, "test") else parts[:1]  # a pool needs no more
            if not whole(dataset, "train"):
                unpack_imagenet(dataset.place, root)
        elif name in ARCHIVES and not whole(dataset, *parts):
            ARCHIVES[name].fetch(name, root)
        for part in parts:
            images = getattr(dataset, part)().images
            out.print(f"{name} {part}: {len(images):,} images {tuple(images.shape[1:])}, {dataset.classes} classes")


def main() -> None:
    """Enter ``mad-data``: any error is one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="mad-data",
        description="Fetch a data set and check it, or say which file to put where. What is there is not fetched "
        "again, and a download that broke off goes on.",
    )
    names = sorted(file.stem for file in (cli.config_dir() / "dataset").glob("*.yaml"))
    parser.add_argument("name", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--root", type=Path, default=Path(os.environ.get("MAD_DATA", "data")), help="default: $MAD_DATA, else data"
    )
    arguments = parser.parse_args()
    try:
        fetch(arguments.name, arguments.root.expanduser())
    except KeyboardInterrupt:
        err.print("stopped; give the same command again to go on")
        sys.exit(130)
    except MadError as error:
        cli.report(error)
        sys.exit(1)
    except (OSError, tarfile.TarError) as error:
        cli.report(MadError(f"{error}; give --root a folder you may write, with room"))
        sys.exit(1)
