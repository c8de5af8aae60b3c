"""Checkpoints of a long attack, so that one that was interrupted can resume."""

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
    """A checkpoint file in the folder of a record; it is removed once the record is written.

    Args:
        outputs: the outputs folder.
        folder: the folder of the record, relative to ``outputs``.
    """

    outputs: Path
    folder: Path

    @property
    def file(self) -> Path:
        """The path of the checkpoint file; MadError if it leads out of the outputs folder."""
        return below(self.outputs, self.folder / NAME)

    def save(self, **state: Any) -> None:
        """Save named tensors, state dicts, numbers and strings; replaces the last checkpoint."""
        content = io.BytesIO()
        torch.save(state, content)
        write(self.file, sha256(content.getbuffer()).digest() + content.getbuffer())

    def load(self) -> dict[str, Any] | None:
        """Return the last checkpoint, with tensors on the CPU; None if there is none or its file is damaged."""
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
        """Remove the checkpoint, if there is one."""
        with contextlib.suppress(OSError):
            self.file.unlink(missing_ok=True)
