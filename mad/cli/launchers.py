"""A sweep's engine: Hydra's launchers give up at the first job that dies; here the other jobs go on.

A job that dies leaves its note as it was when the sweep began, and the sweep's end names it.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from mad.cli.sweep_folder import tell
from mad.environment import SLOT

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
IDLE_SECONDS = 60.0  # a worker whose sweep was killed ends by itself after these
OVER = JobReturn(status=JobStatus.COMPLETED)  # all that Hydra wants to know; a cell's note says the rest


def go_on(target: str) -> None:
    """Make the launcher of this class wait for all of its jobs, whatever becomes of one of them."""
    with suppress(ImportError):  # what to install is said when Hydra misses it
        if ".hydra_joblib_launcher." in target:
            from hydra_plugins.hydra_joblib_launcher import _core as joblib_core

            joblib_core.Parallel = Pool
        elif ".hydra_submitit_launcher." in target:
            outlive_submitit()
        elif ".hydra_ray_launcher." in target:
            from hydra_plugins.hydra_ray_launcher import _core as ray_core

            ray_core.ray = SimpleNamespace(get=outlive_ray)


def jobs(device: Any) -> int:
    """Return how many cells this machine runs at once: one a GPU, or one a core where there is none."""
    import torch
    from joblib import cpu_count

    if device == "auto" and torch.cuda.is_available():
        return int(torch.cuda.device_count())
    return int(cpu_count()) if device in ("auto", "cpu") else 1


class Pool:
    """In joblib's place: each process in a pool of its own, so that one that is killed takes one job with it."""

    def __init__(self, n_jobs: int, **_: Any) -> None:
        from joblib import effective_n_jobs

        self.slots = effective_n_jobs(n_jobs)
        self.pools: dict[int, Any] = {}

    def __call__(self, calls: Iterable[Call]) -> list[JobReturn]:
        """Run the calls in order, each as soon as a process is free; Ctrl-C ends those that run."""
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

        deaf = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}  # Ctrl-C is the parent's
        pool = None
        for function, positional, named in queue:
            if pool is None:
                pool = self.pools[slot] = ProcessPoolExecutor(1, timeout=IDLE_SECONDS, env={SLOT: str(slot)}, **deaf)
            try:
                pool.submit(function, *positional, **named).result()
            except BrokenProcessPool:
                pool = None


def outlive_ray(job: Any) -> JobReturn:
    """Wait for a Ray task; one whose worker died is over, too."""
    import ray

    with suppress(ray.exceptions.RayError):
        ray.get(job)
    return OVER


def outlive_submitit() -> None:
    """Let submitit's launcher wait for its jobs through ``Submitted``, and ask ``squeue`` about them."""
    import submitit
    from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

    class Queue(SlurmInfoWatcher):
        """What squeue lists is not over; sacct, which submitit asks, needs an accounting that not every cluster has."""

        def update(self) -> None:
            command = ["squeue", "--me", "--array", "--noheader", "--format=%i"]
            listed = subprocess.run(command, capture_output=True, text=True)
            if listed.returncode == 0:  # a controller that is away for a while says nothing about the jobs
                alive = listed.stdout.split()
                self._info_dict = {job: {"State": "RUNNING" if job in alive else "OVER"} for job in self._registered}
            self._last_status_check = time.time()

    SlurmJob.watcher = Queue(delay_s=30)
    plain = submitit.Executor.map_array
    submitit.AutoExecutor.map_array = lambda *given: Submitted(plain(*given))


class Submitted:
    """The jobs of a sweep; each is over when it has a result or is gone, and Ctrl-C cancels them all."""

    def __init__(self, jobs: list[Any]) -> None:
        self.jobs = jobs

    def __iter__(self) -> Iterator[Submitted]:
        told = 0
        try:
            for job in self.jobs:
                job.wait()
                told = tell(told)  # the jobs print into files of their own
                yield self
        except BaseException:
            for job in self.jobs:
                job.cancel(check=False)
            raise

    def results(self) -> list[JobReturn]:
        """Return what Hydra wants of one job."""
        return [OVER]
