"""How far an attack of hours has come, so that one that was stopped goes on where it was."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from mad.progress import err
from mad.storage.files import below, write

NAME = "checkpoint.pt"
SUM = 32  # bytes of the checksum that a checkpoint begins with


@dataclass(frozen=True)
class Checkpoint:
    """One file in the folder of the record that is being made; it is removed once the record is there.

    Args:
        outputs: the outputs folder.
        folder: of the record, relative to it.
    """

    outputs: Path
    folder: Path

    @property
    def file(self) -> Path:
        """Where it lies."""
        return below(self.outputs, self.folder / NAME)

    def save(self, **state: Any) -> None:
        """Keep tensors, state dicts, numbers and texts under names, in place of what was kept before."""
        content = io.BytesIO()
        torch.save(state, content)
        write(self.file, sha256(content.getvalue()).digest() + content.getvalue())

    def load(self) -> dict[str, Any] | None:
        """Return what was kept last, on the CPU; None if nothing was, or the file is damaged."""
        if not self.file.is_file():
            return None
        try:
            content = self.file.read_bytes()
            if sha256(content[SUM:]).digest() != content[:SUM]:
                raise ValueError("its checksum does not hold")
            found = torch.load(io.BytesIO(content[SUM:]), map_location="cpu", weights_only=True)  # runs no code
        except Exception as error:  # whatever a damaged file raises
            err.print(f"{self.file} is damaged ({type(error).__name__}): the attack begins again", soft_wrap=True)
            return None
        return found if isinstance(found, dict) else None

    def clear(self) -> None:
        """Remove it."""
        with contextlib.suppress(OSError):
            self.file.unlink(missing_ok=True)
