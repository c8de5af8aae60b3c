"""What happens around a sweep: its folder and the list of its cells before it; table, figures and failures after it."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from mad.cli import grid, launchers, sweep_folder
from mad.cli.configs import outputs_of
from mad.cli.figures import finish
from mad.cli.messages import report
from mad.cli.plan import PLAN, plan
from mad.errors import MadError
from mad.progress import err
from mad.storage.files import write


class Sweep(Callback):
    """Before a sweep: its folder, the list of its cells, a note a job. After it: table, figures, failures, exit code.

    What it raised would become a warning of Hydra's, so it ends the process instead.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Write what is going to be launched; records are found by it, and nothing in it is ever run."""
        try:
            folder = Path(config.hydra.sweep.dir)
            if folder.parts[:1] == ("~",):
                raise MadError(f"hydra.sweep.dir={folder}: write it without the ~")
            sweep_folder.begin(outputs_of(config), folder)
            launchers.go_on(config.hydra.launcher._target_)
            jobs = grid.jobs(config, list(config.hydra.overrides.task)) if grid.chosen(config) else []
            if jobs:
                lines = (json.dumps(dataclasses.asdict(cell), default=str) + "\n" for cell in plan(jobs))
                write(folder / PLAN, "".join(lines).encode())
            sweep_folder.plan(folder, jobs)  # a job that dies can leave no note of its own
        except Exception as error:
            report(error)
            sys.exit(1)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read the notes that the sweep's jobs left."""
        sweep_folder.end()
        every: list[Any] = []
        drawn = False
        try:
            every = sweep_folder.read(Path(config.hydra.sweep.dir))
            finish([Path(each["record"]) for each in every if "record" in each], outputs_of(config))
            drawn = True
        except Exception as error:
            report(error)
        for doubt in sorted({each["doubt"] for each in every if each.get("doubt")}):
            err.print(doubt, soft_wrap=True)
        failed = [each for each in every if "record" not in each]
        if failed:
            sweep_folder.list_failures(failed, every)
            err.print(f"{len(failed)} of {len(every)} cells failed; the others are kept")
        if failed or not drawn:
            sys.exit(1)
