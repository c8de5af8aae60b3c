"""The list of a sweep's cells, which ``mad-run`` writes before the sweep and ``mad-status`` reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from mad.cli import grid, known, messages
from mad.errors import RAISED
from mad.schema import Record

if TYPE_CHECKING:
    from mad.cell import Cell

KEPT: dict[
    tuple[str, ...], tuple[known.Known, list[Record]]
] = {}  # of the sweep that this process launches: its jobs that are done
PLAN = "cells.jsonl"  # in a sweep's folder


@dataclasses.dataclass(frozen=True)
class Planned:
    """A cell of a sweep: its label, and the path of its record or the reason why it cannot be run, or is left out."""

    label: str
    record: Path | None = None
    error: str | None = None
    left_out: bool = False


def plan(jobs: list[grid.Job]) -> list[Planned]:
    """Return the cells of a sweep's jobs without duplicates, each after its undefended reference."""
    found: dict[Any, Planned] = {}
    KEPT.clear()
    for job in jobs:
        label = " ".join(word for word in job if not word.startswith(("hydra.", "hydra/", "grid=")))
        try:
            config = hydra.compose("config", overrides=job)
            kept = known.find(config)
            if kept is not None:
                KEPT[tuple(job)] = kept
            both = reference_and_cell(config, kept[0] if kept else None, label)
        except RAISED as error:
            found[label] = Planned(label, error=messages.one_line(error), left_out=grid.leaves_out(error, job))
            continue
        for path, name in both:
            found.setdefault(path, Planned(name, path))
    return list(found.values())


def reference_and_cell(
    config: DictConfig, kept: known.Known | None, label: str
) -> tuple[tuple[Path, str], tuple[Path, str]]:
    """Return the paths and labels of the records of a config's undefended reference and of its cell."""
    if kept is not None:
        return (Path(kept.reference), kept.label), (Path(kept.record), label)
    from mad.cli.compose import cell_of  # imports torch, and may read a user's own data

    cell = cell_of(config)
    return (cell.reference.path, reference_label(cell)), (cell.path, label)


def launched(jobs: list[grid.Job]) -> list[grid.Job]:
    """Return the jobs of a sweep that are not done, as ``plan`` found them."""
    return [job for job in jobs if tuple(job) not in KEPT]


def reference_label(cell: Cell) -> str:
    """Return the label of a cell's undefended reference."""
    named = f"victim={cell.victim.name} pool={cell.pool_name} attack={cell.attack.name}"
    return f"undefended reference: {named} seed={cell.seed}"
