"""The launchers of a sweep. Hydra's launchers stop at the first job that dies; here the other jobs go on.

The note of a job that dies says that it has not finished, and the list of failures at the sweep's end names it.
"""

from __future__ import annotations

import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from mad.cli import configs
from mad.cli.sweep_folder import tell
from mad.environment import SLOT

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # without one of them there is no GPU, and no need of torch
REPLACED = "A worker stopped while some jobs were given"  # loky of a process that grew; it starts another
IDLE_SECONDS = 60.0  # after which a worker whose sweep was killed ends
OVER = JobReturn(status=JobStatus.COMPLETED)  # enough for Hydra; the cell's note has the result


def go_on(target: str) -> None:
    """Make the launcher of this class wait for all of its jobs, also if some fail."""
    with suppress(ImportError):  # Hydra's own error says what to install
        if ".hydra_joblib_launcher." in target:
            from hydra_plugins.hydra_joblib_launcher import _core as joblib_core

            joblib_core.Parallel = Pool
        elif ".hydra_submitit_launcher." in target:
            outlive_submitit()
        elif ".hydra_ray_launcher." in target:
            from hydra_plugins.hydra_ray_launcher import _core as ray_core

            ray_core.ray = SimpleNamespace(get=outlive_ray)


def jobs(device: Any) -> int:
    """Return how many cells this machine runs at once: one per GPU, or one per core if there is no GPU."""
    from joblib import cpu_count

    if device == "auto" and any(Path(each).exists() for each in DRIVERS):
        import torch

        if torch.cuda.is_available():
            return int(torch.cuda.device_count())
    return int(cpu_count()) if device in ("auto", "cpu") else 1


def begin() -> None:
    """Set up a worker: the parent handles Ctrl-C, and Hydra's warning was heard there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.filterwarnings("ignore", message=configs.SCHEMA)


class Pool:
    """Replaces joblib's pool: each process has a pool of its own, so that a killed process loses one job only."""

    def __init__(self, n_jobs: int, **_: Any) -> None:
        from joblib import effective_n_jobs

        warnings.filterwarnings("ignore", message=REPLACED)
        self.slots = effective_n_jobs(n_jobs)
        self.pools: dict[int, Any] = {}

    def __call__(self, calls: Iterable[Call]) -> list[JobReturn]:
        """Run the calls in order, each as soon as a process is free; Ctrl-C ends the running ones."""
        listed = list(calls)
        count, queue = len(listed), iter(listed)
        with ThreadPoolExecutor(self.slots) as threads:
            try:
                served = [threads.submit(self._serve, slot, queue) for slot in range(min(self.slots, count))]
                wait(served)
            finally:
                listed.clear()
                for pool in list(self.pools.values()):
                    pool.shutdown(kill_workers=True)
        for each in served:
            each.result()
        return [OVER] * count

    def _serve(self, slot: int, queue: Iterator[Call]) -> None:
        from joblib.externals.loky.process_executor import BrokenProcessPool, ProcessPoolExecutor

        pool = None
        for function, positional, named in queue:
            if pool is None:
                environment = {SLOT: str(slot)}
                pool = ProcessPoolExecutor(1, timeout=IDLE_SECONDS, env=environment, initializer=begin)
                self.pools[slot] = pool
            try:
                pool.submit(function, *positional, **named).result()
            except BrokenProcessPool:
                pool = None


def outlive_ray(job: Any) -> JobReturn:
    """Wait for a Ray task; a task whose worker died counts as finished."""
    import ray

    with suppress(ray.exceptions.RayError):
        ray.get(job)
    return OVER


def outlive_submitit() -> None:
    """Make submitit's launcher wait for its jobs with ``Submitted`` and query their state with ``squeue``."""
    import submitit
    from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

    class Queue(SlurmInfoWatcher):
        """Finds running jobs with ``squeue``; submitit's ``sacct`` needs accounting, which some clusters lack."""

        def update(self) -> None:
            command = ["squeue", "--me", "--array", "--noheader", "--format=%i"]
            listed = subprocess.run(command, capture_output=True, text=True)
            if listed.returncode == 0:  # if the controller is unavailable, the jobs may still run
                alive = listed.stdout.split()
                self._info_dict = {job: {"State": "RUNNING" if job in alive else "OVER"} for job in self._registered}
            self._last_status_check = time.time()

    SlurmJob.watcher = Queue(delay_s=30)
    plain = submitit.Executor.map_array
    submitit.AutoExecutor.map_array = lambda *given: Submitted(plain(*given))


class Submitted:
    """The jobs of a sweep. A job is finished if it has a result or left the queue; Ctrl-C cancels all jobs."""

    def __init__(self, jobs: list[Any]) -> None:
        self.jobs = jobs

    def __iter__(self) -> Iterator[Submitted]:
        told = 0
        try:
            for job in self.jobs:
                job.wait()
                told = tell(told)  # the jobs' output goes to files
                yield self
        except BaseException:
            for job in self.jobs:
                job.cancel(check=False)
            raise

    def results(self) -> list[JobReturn]:
        """Return the results of one job, as Hydra expects them."""
        return [OVER]
