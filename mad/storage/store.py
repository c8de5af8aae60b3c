"""What is finished is kept; what is not is made, by one process at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from mad.architectures import imagenet
from mad.errors import MadError, check_name
from mad.schema import Record, fault, number_of
from mad.storage.files import (
    DamagedError,
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
from mad.storage.record_file import SERIES, misplaced, read_record
from mad.training import place
from mad.victim import Victim

FAILED = "failed"
USES: ContextVar[set[str] | None] = ContextVar("uses", default=None)  # what the cell being made asked for


class Names(Protocol):
    """A set of names that several processes may share."""

    def __contains__(self, name: object) -> bool:
        """Tell whether a name is in it."""

    def add(self, name: str) -> None:
        """Put a name into it."""


class Store:
    """The outputs folder: ``victims/``, ``transfers/``, ``runs/``; each thing in a folder that its fingerprint names.

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
        return self.network(
            victim.name,
            victim,
            lambda: victim.untrained(seed=victim.seed, purpose="victim"),
            lambda model: victim.fit(model, device),
            device,
        )

    def network(
        self,
        name: str,
        about: Any,
        build: Callable[[], nn.Module],
        train: Callable[[nn.Module], nn.Module | None],
        device: torch.device,
    ) -> tuple[nn.Module, float]:
        """Return a trained network, in eval mode on ``device``, and the seconds its training took; see ``kept``."""
        check_name("the name of what is kept", name)
        fingerprint = digest(describe(about))
        folder = Path("victims", name, fingerprint)
        weights, facts = (below(self.outputs, folder / file) for file in ("weights.safetensors", "victim.json"))
        used(folder.relative_to("victims").as_posix())

        def untrained() -> nn.Module:
            with imagenet.left_out():
                return build()

        def read() -> tuple[nn.Module, float] | None:
            found = self._tensors(weights, facts)
            if found is None:
                return None
            tensors, about = found
            model = untrained()
            try:
                model.load_state_dict(tensors)
                return place(model, device).eval(), float(about["seconds"])
            except (RuntimeError, KeyError, TypeError, ValueError) as error:
                raise DamagedError(weights, "it does not fit") from error

        def make() -> tuple[nn.Module, float]:
            start = time.perf_counter()
            model = build()
            model = (train(model) or model).eval()
            seconds = time.perf_counter() - start
            told = {"seconds": seconds, "recipe": describe(about)}
            self._write_tensors(weights, facts, fingerprint, model.state_dict(), told)
            return place(model, device), seconds

        return self._keep_or_make(folder, read, make)[0]

    def transfer(
        self,
        name: str,
        about: Any,
        make: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]],
        *,
        force: bool = False,
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and the numbers of a transfer set: asked for once, and then read.

        Args:
            name: of the victim.
            about: all that determines them; see ``describe``.
            make: asks.
            force: ask again.
        """
        fingerprint = digest(describe(about))
        folder = Path("transfers", name, fingerprint)
        tensors, facts = (below(self.outputs, folder / file) for file in ("transfer.safetensors", "transfer.json"))
        used(folder.as_posix())

        def made() -> tuple[dict[str, Tensor], dict[str, Any]]:
            found, told = make()
            self._write_tensors(tensors, facts, fingerprint, found, told)
            return found, told

        return self._keep_or_make(folder, lambda: self._tensors(tensors, facts), made, force)[0]

    def _tensors(self, file: Path, about: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors of a file and what is said of them, or None if there are none.

        Raises:
            DamagedError: if a bit of either is not as it was written.
        """
        found = unseal(about)
        if found is None:
            return None
        content = file.read_bytes() if file.exists() else b""
        if hashlib.sha256(content).hexdigest() != found.get("weights_sha256"):
            raise DamagedError(file if file.exists() else about, "its checksum does not hold")
        try:
            return load(content), found
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DamagedError(file, "it does not fit") from error

    def _write_tensors(
        self, file: Path, about: Path, fingerprint: str, tensors: Mapping[str, Tensor], told: dict[str, Any]
    ) -> None:
        """Write tensors, and then what is said of them, under the name that their folder has."""
        content = save({key: value.cpu().contiguous() for key, value in tensors.items()})
        write(file, content)
        sha256 = hashlib.sha256(content).hexdigest()
        write(about, seal({"fingerprint": fingerprint, "weights_sha256": sha256, **told}))

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
                series = {name: value for name, value in record.items() if isinstance(value, list)}
                record["series"] = " ".join(series)
            finally:
                USES.reset(uses)
            wrong = fault(record) or misplaced(record, full)
            if wrong:
                raise MadError(f"the record of {path.parent.name} was not kept: {wrong}")
            if series:
                write(full.with_name(SERIES), seal({"fingerprint": path.parent.name, **series}))
            write(full, seal({name: value for name, value in record.items() if name not in series}))
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


def used(name: str) -> None:
    """Note what the cell that is being made was made with: pruning leaves it where it is."""
    uses = USES.get()
    if uses is not None:
        uses.add(name)


def kept(
    store: Store | None,
    name: str,
    about: Any,
    build: Callable[[], nn.Module],
    train: Callable[[nn.Module], nn.Module | None],
    device: torch.device,
) -> nn.Module:
    """Return a trained network, in eval mode on ``device``: trained once, by one process at a time, and then loaded.

    Args:
        store: where it is kept; None trains it anew.
        name: names its folder below ``outputs/victims``; letters, digits and ``_ . + -``.
        about: all that determines its weights: recipes, settings, data sets, seeds; see ``describe``.
        build: returns the network as it is before any training.
        train: trains it in place; or returns another, of the same parts.
        device: where it is used.
    """
    if store is not None:
        return store.network(name, about, build, train, device)[0]
    model = build()
    return place((train(model) or model).eval(), device)
