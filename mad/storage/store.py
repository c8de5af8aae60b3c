"""What is finished is kept; what is not is made, by one process at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Container, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from mad.architectures import imagenet
from mad.errors import MadError, check_name
from mad.storage.files import (
    SEAL,
    DamagedError,
    Record,
    below,
    clear,
    locked,
    seal,
    set_aside,
    unseal,
    unwritable,
    whoami,
    write,
    write_alone,
)
from mad.storage.fingerprint import describe, digest
from mad.training import place
from mad.victim import Victim

FAILED = "failed"
TEXT, NUMBER = str, (int, float)
COLUMNS: dict[str, Any] = {  # what is read again from a record, and is therefore checked
    **dict.fromkeys(("victim", "architecture", "pool", "defense", "strength_parameter", "attack", "recovery"), TEXT),
    **dict.fromkeys(("comparison_group", "fingerprint"), TEXT),
    **dict.fromkeys(("seed", "budget", "chance"), NUMBER),
    **dict.fromkeys(("victim_accuracy", "defended_accuracy", "stolen_accuracy"), NUMBER),
    **dict.fromkeys(("epsilon", "strength"), (int, float, type(None))),
    **dict.fromkeys(("agreement", "l1_mean", "seconds_victim", "seconds_queries", "seconds_knockoff"), NUMBER),
}
LARGEST = 2**1024  # of whole numbers: what a float can hold, and any reader of JSON
USES: ContextVar[set[str] | None] = ContextVar("uses", default=None)  # the networks that the cell being made asked for


class Names(Protocol):
    """A set of names that several processes may share."""

    def __contains__(self, name: object) -> bool:
        """Tell whether a name is in it."""

    def add(self, name: str) -> None:
        """Put a name into it."""


class Store:
    """The outputs folder: ``victims/`` and ``runs/``, each thing in a folder that its fingerprint names.

    Args:
        outputs: the folder.
        renewed: the fingerprints of what was made again, where everything asked for is to be made again, once; see
            ``mad.cli.sweep_folder.Renewed``. None keeps what is finished.
    """

    def __init__(self, outputs: str | Path, renewed: Names | None = None) -> None:
        self.outputs, self.renewed = Path(outputs), renewed

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
        """Return the record kept below ``outputs`` at ``path``, if there is one that is whole and may stay."""
        if self._outdated(path.parent):
            return None
        with contextlib.suppress(DamagedError):
            return read_record(below(self.outputs, path))
        return None

    def record(self, path: Path, make: Callable[[], Record], *, force: bool = False) -> tuple[Record, bool]:
        """Return the record kept below ``outputs`` at ``path``, or make and keep it; and whether it was kept.

        Args:
            path: ends with the record's fingerprint and a file name.
            make: makes the record, which names its fingerprint.
            force: make it in any case; the old one stays until then.

        Raises:
            MadError: if it could not be read again as it is; nothing is kept then.
        """
        full = below(self.outputs, path)

        def make_and_write() -> Record:
            uses = USES.set(set())
            try:
                record = {name: number_of(value) for name, value in make().items()}
                record["uses"] = " ".join(sorted(USES.get() or ()))
            finally:
                USES.reset(uses)
            wrong = fault(record) or misplaced(record, full)
            if wrong:
                raise MadError(f"the record of {path.parent.name} was not kept: {wrong}")
            write(full, seal(record))
            return record

        return self._keep_or_make(path.parent, lambda: read_record(full), make_and_write, force)

    def _keep_or_make(
        self, folder: Path, read: Callable[[], Any], make: Callable[[], Any], force: bool = False
    ) -> tuple[Any, bool]:
        """Return what ``read`` finds, or what ``make`` makes, and whether it was kept."""
        if not force and not self._outdated(folder):
            with contextlib.suppress(DamagedError):
                found = read()
                if found is not None:
                    return found, True
        with locked(self.outputs, folder):
            try:  # another process may have made it, or made it again, while this one waited
                found = None if force or self._outdated(folder) else read()
                if found is not None:
                    return found, True
            except DamagedError as damage:
                set_aside(damage)
            there = below(self.outputs, folder)
            try:
                there.mkdir(parents=True, exist_ok=True)  # what cannot be written must not be made first
            except OSError as error:
                raise unwritable(there, error) from error
            clear(there)
            try:
                made = make()
            except BaseException:
                with contextlib.suppress(OSError):  # it holds something
                    there.rmdir()
                raise
            if self.renewed is not None:
                self.renewed.add(folder.name)
            return made, False

    def _outdated(self, folder: Path) -> bool:
        """Tell whether what a folder holds is to be made again, and has not been yet."""
        return self.renewed is not None and folder.name not in self.renewed

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


def check(columns: Mapping[str, Any], whose: str, taken: Container[str] = ()) -> None:
    """Refuse columns that no record can hold, or whose names others have, before more is trained for them.

    Raises:
        MadError: if there are such.
    """
    twice = [name for name in columns if name in taken]
    wrong = f"{twice[0]} is a column of every record" if twice else fault(columns)
    if wrong:
        raise MadError(f"{whose} cannot be recorded: {wrong}")


def read_record(path: Path) -> Record | None:
    """Return the record at ``runs/victim/defense/attack/fingerprint/record.json``, or None if there is none.

    Raises:
        DamagedError: if it is not as it was written, lies in another's folder, or holds more than plain values.
    """
    record = unseal(path)
    wrong = None if record is None else fault(record) or misplaced(record, path)
    if wrong:
        raise DamagedError(path, wrong)
    return record


def fault(columns: Mapping[Any, Any]) -> str | None:
    """Say which columns no record can hold, if there are such: the one rule for what is written and what is read.

    Any text and any finite number come back as they were: JSON escapes what it must.
    """
    for name, value in ((name, number_of(value)) for name, value in columns.items()):
        if not isinstance(name, str) or not name.isprintable() or name == SEAL:
            return f"{name!r} cannot be a column"
        if isinstance(value, float) and not math.isfinite(value):
            return f"{name} is NaN or infinite ({value}): check the victim and the trainer"
        if isinstance(value, int) and abs(value) >= LARGEST:
            return f"{name} has too many digits"
        if not isinstance(value, (bool, int, float, str, type(None))):
            return f"{name} is {type(value).__name__}, no number and no text"
    return None


def number_of(value: Any) -> Any:
    """Return the number that a tensor or array without dimensions holds; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def misplaced(record: Record, path: Path) -> str | None:
    """Say what keeps a record from being read as that of the place it lies in."""
    belongs = dict(zip(("victim", "defense", "attack", "fingerprint"), path.parts[-5:-1], strict=True))
    if any(record.get(key) != part for key, part in belongs.items()):
        return "it is another's"
    wrong = [key for key, kinds in COLUMNS.items() if not isinstance(record.get(key), kinds)]
    if wrong:
        return f"no record of this version: {wrong[0]} is {record.get(wrong[0])!r}"
    try:
        for key in ("pool", "comparison_group", "recovery"):  # the other names are those of its folders
            check_name(key, record[key])
    except MadError as error:
        return str(error)
    return None
