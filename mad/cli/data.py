"""``mad-data``: fetch a data set, check that it is whole, or say which file to put where."""

from __future__ import annotations

import errno
import os
import pkgutil
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mad.cli.archives import ARCHIVES, checksum
from mad.cli.command import Parser, command
from mad.cli.configs import config_dir, home
from mad.errors import MadError, near
from mad.progress import err, out
from mad.storage.files import held

IMAGENET = ("ILSVRC2012_img_train.tar", "1d675b47d978889d74fa0da5fadfb00e")  # only for registered users


def unpack_imagenet(place: Path, root: Path) -> None:
    """Unpack ImageNet's training images, one folder per class.

    Raises:
        MadError: if the archive is missing; only registered users may download it.
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
        for number, member in enumerate(outer, 1):  # each is itself an archive of one class
            err.print(f"unpacking {member.name} ({number} of 1000)", soft_wrap=True)
            with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                inner.extractall(place / "train" / Path(member.name).stem, filter="data")


def described(name: str, root: Path) -> Any:
    """Return the data set that ``conf/dataset/NAME.yaml`` describes."""
    file = config_dir() / "dataset" / f"{name}.yaml"
    node = OmegaConf.merge({"data_root": str(root)}, OmegaConf.load(file))
    fields: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    del fields["data_root"]
    return pkgutil.resolve_name(fields.pop("_target_"))(**fields)


def whole(dataset: Any, *parts: str) -> bool:
    """Return whether the named splits are complete; nothing is downloaded."""
    from torchvision import datasets

    try:
        if hasattr(dataset, "loader"):  # Vision would download missing files, and could not resume
            getattr(datasets, dataset.loader)(dataset.root, download=False)
        else:
            for part in parts:
                getattr(dataset, part)()
    except (MadError, RuntimeError):
        return False
    return True


def fetch(name: str, root: Path) -> None:
    """Download the missing parts of a data set below a root, check it, and print its contents.

    Raises:
        MadError: if the data set cannot be completed.
    """
    from mad.datasets import checked  # a slow import

    dataset, parts = described(name, root), ["train", "test"]
    root.mkdir(parents=True, exist_ok=True)
    with turn(root / f".{name}.lock"):
        if hasattr(dataset, "mend"):
            dataset.mend()
        if name == "imagenet":
            if not whole(dataset, "train"):
                unpack_imagenet(dataset.place, root)
            if not whole(dataset, "test"):  # a pool needs only the training split
                parts.remove("test")
                val = dataset.place / "val"
                err.print(f"imagenet test: not whole; a victim needs {val}/, one folder a class", soft_wrap=True)
        elif name in ARCHIVES and not whole(dataset, *parts):
            ARCHIVES[name].fetch(name, root)
        for part in parts:
            try:
                images = checked.split(dataset, part).images
            except MadError as error:
                if not hasattr(dataset, "folder"):
                    raise
                again = f"move {dataset.place} away and"  # the command cannot do more
                raise MadError(str(error).replace("; run", f"; {again} run")) from error
            out.print(f"{name} {part}: {len(images):,} images {tuple(images.shape[1:])}, {dataset.classes} classes")


@contextmanager
def turn(file: Path) -> Iterator[None]:
    """Hold the lock of a file; without it where nothing can be written: what is there can be checked all the same."""
    with ExitStack() as stack:
        try:
            stack.enter_context(held(file))
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
        yield


@command
def main() -> None:
    """Enter ``mad-data``: any error is one line and exit code 1."""
    parser = Parser(
        prog="mad-data",
        description="Fetch a data set and check it, or say which file to put where. What is there is not fetched "
        "again, and a download that broke off goes on.",
    )
    # Your own images are where you have them.
    names = sorted(file.stem for file in (config_dir() / "dataset").glob("*.yaml") if file.stem != "own")
    parser.add_argument("name", metavar="NAME", help=", ".join(names))
    parser.add_argument("--root", default=os.environ.get("MAD_DATA", "data"), help="default: $MAD_DATA, else data")
    arguments = parser.parse_args()
    if arguments.name not in names:
        raise MadError(
            f"unknown data set {arguments.name!r}: choose from {', '.join(names)}{near(arguments.name, names)}"
        )
    try:
        fetch(arguments.name, Path(home("--root", arguments.root)))
    except (OSError, tarfile.TarError) as error:
        what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        raise MadError(f"{what}; give --root a folder you may write, with room") from error
