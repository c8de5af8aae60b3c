"""Hydra's callbacks before and after a sweep: the sweep's folder and list of cells; table, figures and failures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from mad.cli import grid, launchers, preview, sweep_folder
from mad.cli.command import Leave
from mad.cli.configs import outputs_of
from mad.cli.figures import finish
from mad.cli.messages import report
from mad.cli.plan import KEPT, PLAN, launched, plan
from mad.cli.task import tell
from mad.errors import RAISED, MadError
from mad.progress import err
from mad.storage.files import write


class Sweep(Callback):
    """Callback before a sweep (folder, list of cells, a note per job) and after it (table, figures, failures, exit).

    Hydra would turn an error in a callback into a warning, so the callback ends the process instead.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the list of cells that will be launched. It is used to find records and is never executed."""
        try:
            words = list(config.hydra.overrides.task)
            if preview.wanted(config, words):
                preview.sweep(config, words)
                raise Leave(0)
            folder = Path(config.hydra.sweep.dir)
            if folder.parts[:1] == ("~",):
                raise MadError(f"hydra.sweep.dir={folder}: write it without the ~")
            sweep_folder.begin(outputs_of(config), folder)
            launchers.go_on(config.hydra.launcher._target_)
            jobs = grid.jobs(config, list(config.hydra.overrides.task)) if grid.chosen(config) else []
            if jobs:
                lines = [json.dumps(dataclasses.asdict(cell), default=str) + "\n" for cell in plan(jobs)]
                write(folder / PLAN, "".join(lines).encode())
            first = launched(jobs)  # Hydra numbers the jobs that it launches from 0
            kept = [job for job in jobs if tuple(job) in KEPT]
            sweep_folder.plan(folder, [*first, *kept])  # a job that dies cannot write its own note
            for number, job in enumerate(kept, len(first)):
                self.keep(folder, number, job)
        except Leave:
            raise
        except RAISED as error:
            report(error)
            raise Leave(1) from error

    def keep(self, folder: Path, number: int, job: grid.Job) -> None:
        """Note that a job is done, and say so; nothing is launched for it."""
        place, records = KEPT[tuple(job)]
        for record in records:
            tell(record, "kept")
        sweep_folder.start(folder, number, {"overrides": job, "doubt": None})
        err.print(sweep_folder.over(folder, number, {"record": place.record}, made=False), soft_wrap=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read the notes of the sweep's jobs; write figures, print the table and the failures."""
        sweep_folder.end()
        every: list[Any] = []
        drawn = False
        try:
            every = sweep_folder.read(Path(config.hydra.sweep.dir))
            finish([Path(each["record"]) for each in every if "record" in each], outputs_of(config))
            drawn = True
        except RAISED as error:
            report(error)
        for doubt in sorted({each["doubt"] for each in every if each.get("doubt")}):
            err.print(doubt, soft_wrap=True)
        missing = [each for each in every if "record" not in each]
        left_out = [each for each in missing if "left_out" in each]
        if len(left_out) == len(every):  # then it is the victim or the pool
            left_out = []
        if left_out:
            sweep_folder.list_missing("left out", left_out, every)
        failed = [each for each in missing if each not in left_out]
        if failed:
            sweep_folder.list_missing("failed", failed, every)
            err.print(f"{len(failed)} of {len(every)} cells failed; the others are kept")
        if failed or not drawn:
            raise Leave(1)
