"""The store: records, networks and transfer sets are made once, by one process at a time, and then loaded."""

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

from mad import foreign
from mad.architectures import imagenet
from mad.errors import RAISED, MadError, check_name
from mad.schema import Record, fault, number_of
from mad.storage.files import (
    DamagedError,
    below,
    clear,
    file_name,
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
from mad.storage.record_file import misplaced, read_record, write_record
from mad.training import place
from mad.victim import Victim

FAILED = "failed"
TensorsAndNumbers = tuple[dict[str, Tensor], dict[str, Any]]
USES: ContextVar[set[str] | None] = ContextVar("uses", default=None)  # of the current cell, see used()


class Names(Protocol):
    """A set of names that processes may share."""

    def __contains__(self, name: object) -> bool:
        """Return whether a name is in the set."""

    def add(self, name: str) -> None:
        """Add a name to the set."""


class Store:
    """The outputs folder, with networks in ``victims/``, transfer sets in ``transfers/`` and records in ``runs/``.

    Each item has a folder that is named by its fingerprint.

    Args:
        outputs: the outputs folder.
        renewed: makes every item again, once: the fingerprints of the items that were already made again; see
            ``mad.cli.sweep_folder.Renewed``. None loads items that exist.
    """

    def __init__(self, outputs: str | Path, renewed: Names | None = None) -> None:
        self.outputs, self.renewed = Path(outputs), renewed

    def victim(self, victim: Victim, device: torch.device) -> tuple[nn.Module, float]:
        """Return the victim's network, in eval mode, and its training's seconds; a given network is not stored.

        If its training diverges, a MadError is raised and nothing is stored.
        """
        if victim.given is not None:
            return victim.ready(device, self.outputs), 0.0
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
        """Return a trained network, in eval mode on ``device``, and the seconds of its training; see ``kept``."""
        check_name("the name of what is kept", name)
        fingerprint = digest(describe(about))
        folder = Path("victims", name, fingerprint)
        weights, numbers_file = (below(self.outputs, folder / file) for file in ("weights.safetensors", "victim.json"))
        used(folder.relative_to("victims").as_posix())

        def read() -> tuple[nn.Module, float] | None:
            found = self._tensors(weights, numbers_file)
            if found is None:
                return None
            tensors, told = found
            with imagenet.left_out():
                model = build()
            try:
                model.load_state_dict(tensors)
                return place(model, device).eval(), float(told["seconds"])
            except (RuntimeError, KeyError, TypeError, ValueError) as error:
                raise DamagedError(weights, "it does not fit") from error

        def make() -> tuple[nn.Module, float]:
            start = time.perf_counter()
            model = build()
            model = (train(model) or model).eval()
            seconds = time.perf_counter() - start
            told = {"seconds": seconds, "recipe": describe(about)}
            self._write_tensors(weights, numbers_file, fingerprint, model.state_dict(), told)
            return place(model, device), seconds

        return self._keep_or_make(folder, read, make)[0]

    def transfer(
        self,
        name: str,
        about: Any,
        make: Callable[[], TensorsAndNumbers],
        *,
        force: bool = False,
    ) -> TensorsAndNumbers:
        """Return the tensors and the numbers of a transfer set; the API is queried once, then both are loaded.

        Args:
            name: the name of the victim.
            about: everything that determines the transfer set; see ``describe``.
            make: queries the API and returns tensors and numbers.
            force: query again even if the transfer set is stored.
        """
        fingerprint = digest(describe(about))
        folder = Path("transfers", name, fingerprint)
        tensors, numbers_file = (
            below(self.outputs, folder / file) for file in ("transfer.safetensors", "transfer.json")
        )
        used(folder.as_posix())

        def made() -> TensorsAndNumbers:
            found, told = make()
            self._write_tensors(tensors, numbers_file, fingerprint, found, told)
            return found, told

        return self._keep_or_make(folder, lambda: self._tensors(tensors, numbers_file), made, force)[0]

    def _tensors(self, file: Path, about: Path) -> TensorsAndNumbers | None:
        """Return the tensors of a file and the numbers_file in the JSON file ``about``; None if there are none.

        Raises:
            DamagedError: if either file was changed.
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
        """Write tensors to ``file``, and then the numbers ``told`` with fingerprint and checksum to ``about``."""
        content = save({key: value.cpu().contiguous().clone() for key, value in tensors.items()})
        write(file, content)
        sha256 = hashlib.sha256(content).hexdigest()
        write(about, seal({"fingerprint": fingerprint, "weights_sha256": sha256, **told}))

    def find(self, path: Path) -> Record | None:
        """Return the record at ``path``, relative to ``outputs``; None if it is absent, damaged or to be made again."""
        if self.outdated(path.parent):
            return None
        with contextlib.suppress(DamagedError):
            return read_record(below(self.outputs, path))
        return None

    def record(self, path: Path, make: Callable[[], Record], *, force: bool = False) -> tuple[Record, bool]:
        """Return the record at ``path``, relative to ``outputs``, and True; or make and store it, and return False.

        Args:
            path: ends with the record's fingerprint and a file name.
            make: makes the record, which includes its fingerprint.
            force: make it even if it is stored; the old record stays until then.

        Raises:
            MadError: if the new record could not be read back as it is; nothing is stored then.
        """
        full = below(self.outputs, path)

        def make_and_write() -> Record:
            uses = USES.set(set())
            try:
                record = {name: number_of(value) for name, value in make().items()}
                record["uses"] = " ".join(sorted(USES.get() or ()))
                record["series"] = " ".join(name for name, value in record.items() if isinstance(value, list))
            finally:
                USES.reset(uses)
            wrong = fault(record) or misplaced(record, full)
            if wrong:
                raise MadError(f"the record of {path.parent.name} was not kept: {wrong}")
            write_record(full, record)
            return record

        return self._keep_or_make(path.parent, lambda: read_record(full), make_and_write, force)

    def _keep_or_make(
        self, folder: Path, read: Callable[[], Any], make: Callable[[], Any], force: bool = False
    ) -> tuple[Any, bool]:
        """Return the result of ``read`` and True; or, if that is None or damaged, the result of ``make`` and False.

        ``make`` runs under the lock of the folder. Damaged files are set aside first.
        """
        if not force and not self.outdated(folder):
            with contextlib.suppress(DamagedError):
                found = read()
                if found is not None:
                    return found, True
        with locked(self.outputs, folder):
            try:  # another process may have made it while this one waited
                found = None if force or self.outdated(folder) else read()
                if found is not None:
                    return found, True
            except DamagedError as damage:
                set_aside(damage)
            there = below(self.outputs, folder)
            try:
                there.mkdir(parents=True, exist_ok=True)  # fail before the work if the folder cannot be written
            except OSError as error:
                raise unwritable(there, error) from error
            clear(there)
            try:
                made = make()
            except BaseException:
                with contextlib.suppress(OSError):  # the folder is not empty
                    there.rmdir()
                raise
            if self.renewed is not None:
                self.renewed.add(file_name(*folder.parts))
            return made, False

    def outdated(self, folder: Path) -> bool:
        """Return whether the content of a folder must still be made again; see ``renewed``."""
        return self.renewed is not None and file_name(*folder.parts) not in self.renewed

    @contextlib.contextmanager
    def noting_failure(self, path: Path) -> Iterator[None]:
        """Write a note with the error, for ``mad-status``, if the cell of a record fails; remove it if it succeeds."""
        note = Path(FAILED, f"{path.parent.name}.json")
        try:
            yield
        except RAISED as error:
            content = {"error": foreign.told(error), **whoami()}
            with contextlib.suppress(MadError):  # a failure to write the note must not hide the error
                write_alone(self.outputs, Path(FAILED), note, json.dumps(content).encode())
            raise
        with contextlib.suppress(OSError):
            (self.outputs / note).unlink(missing_ok=True)


def used(name: str) -> None:
    """Add a network or transfer set to the column ``uses`` of the current cell's record, so that pruning spares it."""
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
    """Return a trained network, in eval mode on ``device``; it is trained once, by one process, and then loaded.

    Args:
        store: where it is stored; None trains it again each time.
        name: the name of its folder below ``outputs/victims``; letters, digits and ``_ . + -``.
        about: everything that determines its weights: recipes, settings, data sets, seeds; see ``describe``.
        build: returns the untrained network.
        train: trains the network in place, or returns another with the same state dict keys.
        device: where the network is placed.
    """
    if store is not None:
        return store.network(name, about, build, train, device)[0]
    model = build()
    return place((train(model) or model).eval(), device)
