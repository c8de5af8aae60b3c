"""What is finished is kept; what is not is made, by one process at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from mad.architectures import imagenet
from mad.errors import MadError, word
from mad.files import DamagedError, Record, below, clear, locked, seal, set_aside, unseal, whoami, write, write_alone
from mad.fingerprint import describe, digest
from mad.training import place
from mad.victim import Victim

FAILED = "failed"
TEXT, NUMBER = str, (int, float)
COLUMNS: dict[str, Any] = {  # what is read again from a record, and is therefore checked
    **dict.fromkeys(("victim", "architecture", "pool", "defense", "dial", "attack", "recovery"), TEXT),
    **dict.fromkeys(("scene", "fingerprint"), TEXT),
    **dict.fromkeys(("seed", "budget", "chance"), NUMBER),
    **dict.fromkeys(("victim_accuracy", "defended_accuracy", "stolen_accuracy"), NUMBER),
    **dict.fromkeys(("epsilon", "strength"), (int, float, type(None))),
    **dict.fromkeys(("agreement", "l1_mean", "seconds_victim", "seconds_queries", "seconds_knockoff"), NUMBER),
}
USES: ContextVar[set[str] | None] = ContextVar("uses", default=None)  # the networks that the cell being made asked for


class Store:
    """The outputs folder: ``victims/`` and ``runs/``, each thing in a folder that its fingerprint names."""

    def __init__(self, outputs: str | Path) -> None:
        self.outputs = Path(outputs)

    def victim(self, victim: Victim, device: torch.device) -> tuple[nn.Module, float]:
        """Return the trained victim, in eval mode on ``device``, and the seconds its training took.

        Raises:
            MadError: if its training diverged; nothing is kept then.
        """
        name = digest(describe(victim))
        folder = Path("victims", victim.name, name)
        weights, facts = (below(self.outputs, folder / file) for file in ("weights.safetensors", "victim.json"))
        uses = USES.get()
        if uses is not None:
            uses.add(folder.relative_to("victims").as_posix())

        def read() -> tuple[nn.Module, float] | None:
            found = unseal(facts)
            if found is None:
                return None
            content = weights.read_bytes() if weights.exists() else b""
            if hashlib.sha256(content).hexdigest() != found.get("weights_sha256"):
                raise DamagedError(weights if weights.exists() else facts, "the weights' checksum does not hold")
            with imagenet.left_out():
                model = victim.untrained(seed=victim.seed, purpose="victim")
            try:
                model.load_state_dict(load(content))
                return place(model, device).eval(), float(found["seconds"])
            except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
                raise DamagedError(weights, "it does not fit") from error

        def make() -> tuple[nn.Module, float]:
            start = time.perf_counter()
            model = victim.train(device)
            seconds = time.perf_counter() - start
            tensors = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
            content = save(tensors)
            write(weights, content)
            about = {
                "fingerprint": name,
                "weights_sha256": hashlib.sha256(content).hexdigest(),
                "seconds": seconds,
                "recipe": describe(victim),
            }
            write(facts, seal(about))
            return model, seconds

        return self._keep_or_make(folder, read, make)[0]

    def find(self, path: Path) -> Record | None:
        """Return the record kept below ``outputs`` at ``path``, if there is one and it is whole."""
        with contextlib.suppress(DamagedError):
            return read_record(below(self.outputs, path))
        return None

    def record(self, path: Path, make: Callable[[], Record], *, force: bool = False) -> tuple[Record, bool]:
        """Return the record kept below ``outputs`` at ``path``, or make and keep it; and whether it was kept.

        Args:
            path: ends with the record's fingerprint and a file name.
            make: makes the record, which names its fingerprint.
            force: make it in any case; the old one stays until then.
        """
        full = below(self.outputs, path)

        def make_and_write() -> Record:
            uses = USES.set(set())
            try:
                record = make()
                record["uses"] = " ".join(sorted(USES.get() or ()))
            finally:
                USES.reset(uses)
            write(full, seal(record))
            return record

        return self._keep_or_make(path.parent, lambda: read_record(full), make_and_write, force)

    def _keep_or_make(
        self, folder: Path, read: Callable[[], Any], make: Callable[[], Any], force: bool = False
    ) -> tuple[Any, bool]:
        """Return what ``read`` finds, or what ``make`` makes, and whether it was kept."""
        if not force:
            with contextlib.suppress(DamagedError):
                found = read()
                if found is not None:
                    return found, True
        with locked(self.outputs, folder):
            try:
                found = None if force else read()  # another process may have made it while this one waited
                if found is not None:
                    return found, True
            except DamagedError as damage:
                set_aside(damage)
            clear(below(self.outputs, folder))
            return make(), False

    @contextlib.contextmanager
    def noting_failure(self, path: Path) -> Iterator[None]:
        """Leave a note, for ``mad-status``, of why the cell of a record could not be made; remove it once it can."""
        note = Path(FAILED, f"{path.parent.name}.json")
        try:
            yield
        except Exception as error:
            kind = "" if isinstance(error, MadError) else f"{type(error).__name__}: "
            content = {"error": kind + " ".join(str(error).split())[:300], **whoami()}
            with contextlib.suppress(MadError):  # the note is worth less than the error
                write_alone(self.outputs, Path(FAILED), note, json.dumps(content).encode())
            raise
        with contextlib.suppress(OSError):
            (self.outputs / note).unlink(missing_ok=True)


def read_record(path: Path) -> Record | None:
    """Return the record at ``runs/victim/defense/attack/fingerprint/record.json``, or None if there is none.

    Raises:
        DamagedError: if it is not as it was written, lies in another's folder, or holds more than plain values.
    """
    record = unseal(path)
    if record is None:
        return None
    belongs = dict(zip(("victim", "defense", "attack"), path.parts[-5:-2], strict=True))
    if any(record.get(key) != part for key, part in belongs.items()):
        raise DamagedError(path, "it is another's")
    if not all(plain(key) and plain(value) for key, value in record.items()):
        raise DamagedError(path, "it holds more than plain values")
    if not all(isinstance(record.get(key), kinds) for key, kinds in COLUMNS.items()):
        raise DamagedError(path, "it is no record of this version")
    try:
        for key in ("pool", "scene", "recovery"):  # the other names are those of its folders
            word(key, record[key])
    except MadError as error:
        raise DamagedError(path, str(error)) from error
    return record


def plain(value: Any) -> bool:
    """Tell whether a value is a number, one line of text, or none."""
    return value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and value.isprintable())
