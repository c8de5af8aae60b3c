"""Where Hydra looks for plug-ins: the sweeper of ``conf/hydra/sweeper/grid.yaml``."""

from __future__ import annotations

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override

from mad.cli.grid import Job, jobs
from mad.cli.plan import launched


class GridSweeper(BasicSweeper):
    """Hydra's own sweeper, over ``mad.cli.grid.jobs``."""

    def split_arguments(  # type: ignore[override]  # static there, where the config is not asked
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[Job]]:
        """Return the jobs, in batches."""
        assert self.config is not None  # Hydra's sweep sees to it
        every = launched(jobs(self.config, list(self.config.hydra.overrides.task)))
        return list(self.split_overrides_to_chunks(every, max_batch_size)) if every else []
