"""The cells of a sweep, as ``mad-run`` lists them before it and ``mad-status`` asks about them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra

from mad.cli import grid, messages

if TYPE_CHECKING:
    from mad.cell import Cell

PLAN = "cells.jsonl"  # in a sweep's folder


@dataclasses.dataclass(frozen=True)
class Planned:
    """A cell of a sweep: what was asked for, and where its record is to lie or why it cannot be made."""

    label: str
    record: Path | None = None
    error: str | None = None


def plan(jobs: list[grid.Job]) -> list[Planned]:
    """Return the cells of a sweep's jobs, each after its undefended reference, every one once."""
    from mad.cli.compose import cell_of  # imports torch

    found: dict[Any, Planned] = {}
    for job in jobs:
        label = " ".join(word for word in job if not word.startswith(("hydra.", "hydra/", "grid=")))
        try:
            cell = cell_of(hydra.compose("config", overrides=job))
            both = (cell.reference.path, reference_label(cell)), (cell.path, label)  # names read a user's own data
        except Exception as error:
            found[label] = Planned(label, error=messages.one_line(error))
            continue
        for path, name in both:
            found.setdefault(path, Planned(name, path))
    return list(found.values())


def reference_label(cell: Cell) -> str:
    """Return how the undefended reference of a cell is called."""
    named = f"victim={cell.victim.name} pool={cell.pool_name} attack={cell.attack.name}"
    return f"undefended reference: {named} seed={cell.seed}"
