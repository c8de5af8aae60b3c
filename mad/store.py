"""What is finished is kept; what is not is made, by one process at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load, save
from torch import nn

from mad.errors import MadError
from mad.fingerprint import describe, digest
from mad.progress import err
from mad.training import place
from mad.victim import Victim

Record = dict[str, Any]


def write(path: Path, content: bytes) -> None:
    """Write a file so that it is either whole or absent: beside its place, then renamed into it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise MadError(f"cannot write {path} ({error.strerror}); set outputs= to a folder you may write") from error


def read_json(path: Path) -> Record | None:
    """Return a JSON object, or None if there is none; a damaged file is set aside with a line that says so."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise MadError(f"cannot read {path} ({error.strerror}); check its permissions") from error
    except ValueError:
        found = None
    if not isinstance(found, dict):
        set_aside(path)
        return None
    return found


def set_aside(path: Path) -> None:
    """Rename a damaged file, so that it can be looked at and is never read again."""
    err.print(f"{path} is damaged: set aside as {path.name}.damaged and made again")
    with contextlib.suppress(FileNotFoundError):  # another process may have been faster
        path.replace(path.with_name(path.name + ".damaged"))


def keep_or_make(path: Path, read: Callable[[], Any], make: Callable[[], Any]) -> tuple[Any, bool]:
    """Return what ``read`` finds, or what ``make`` makes, and whether it was kept. A dead process holds no lock."""
    found = read()
    if found is not None:
        return found, True
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.parent / f".{path.name}.lock")
        with lock:
            found = read()  # another process may have made it while this one waited
            return (found, True) if found is not None else (make(), False)
    except OSError as error:
        raise MadError(
            f"cannot write below {path.parent} ({error.strerror}); set outputs= to a folder you may write"
        ) from error


class Store:
    """The outputs folder: ``victims/`` and ``runs/``, each thing in a folder that its fingerprint names."""

    def __init__(self, outputs: str | Path) -> None:
        self.outputs = Path(outputs)

    def victim(self, victim: Victim, device: torch.device) -> tuple[nn.Module, float]:
        """Return the trained victim, in eval mode on ``device``, and the seconds its training took."""
        name = digest(describe(victim))
        folder = self.outputs / "victims" / victim.name / name
        weights, facts = folder / "weights.safetensors", folder / "victim.json"

        def read() -> tuple[nn.Module, float] | None:
            found = read_json(facts)
            if found is None:
                return None
            content = weights.read_bytes() if weights.exists() else b""
            if hashlib.sha256(content).hexdigest() != found.get("sha256"):
                set_aside(facts)
                return None
            model = victim.untrained(seed=victim.seed, purpose="victim")
            model.load_state_dict(load(content))
            return place(model, device).eval(), found["seconds"]

        def make() -> tuple[nn.Module, float]:
            start = time.perf_counter()
            model = victim.train(device)
            seconds = time.perf_counter() - start
            content = save({key: value.cpu().contiguous() for key, value in model.state_dict().items()})
            write(weights, content)
            about = {
                "fingerprint": name,
                "sha256": hashlib.sha256(content).hexdigest(),
                "seconds": seconds,
                "recipe": describe(victim),
            }
            write(facts, json.dumps(about, indent=2).encode())
            return model, seconds

        return keep_or_make(folder, read, make)[0]

    def find(self, path: Path) -> Record | None:
        """Return the record kept below ``outputs`` at ``path``, if there is one."""
        return read_json(self.outputs / path)

    def record(self, path: Path, make: Callable[[], Record]) -> tuple[Record, bool]:
        """Return the record kept below ``outputs`` at ``path``, or make and keep it; and whether it was kept."""
        full = self.outputs / path

        def make_and_write() -> Record:
            record = make()
            write(full, json.dumps(record, indent=2).encode())
            return record

        return keep_or_make(full, lambda: self.find(path), make_and_write)
