"""Who does the jobs: this process, several of this machine, or a Ray cluster. The result is the same."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any

from tokenmill.core.errors import TokenmillError
from tokenmill.core.threads import allowed_cores
from tokenmill.data.curate.read import MissingLibrary
from tokenmill.data.curate.work import Job, Setup, Worker


class WorkerDied(TokenmillError):
    """A process that did a job is gone."""


Runner = Callable[[list[Job]], Iterator[int]]
"""Does the jobs, in any order, and gives for each how many documents came out of it."""


@contextmanager
def runner(setup: Setup, worker: Worker) -> Iterator[Runner]:
    """The one that the recipe asks for, for all stages of a run. `worker` is this process's own."""
    count = setup.recipe.workers or len(allowed_cores()) or os.cpu_count() or 1
    if setup.recipe.runner == "ray":
        yield lambda jobs: _on_ray(setup, jobs)
    elif count == 1:
        yield lambda jobs: map(worker.run, jobs)
    else:
        with _Processes(setup, worker, count) as processes:
            yield processes.run


class _Processes:
    """Processes of this machine, started when there is work for two and kept for the next stage."""

    def __init__(self, setup: Setup, worker: Worker, count: int) -> None:
        self._setup, self._worker, self._count = setup, worker, count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # spawn: a fork of a process whose libraries run threads may hang
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._count, context, initializer=_start_worker, initargs=(self._setup,))
        return self._pool

    def run(self, jobs: list[Job]) -> Iterator[int]:
        """Never more than a few are handed out, so that the list may be long."""
        if len(jobs) < 2:
            yield from map(self._worker.run, jobs)
            return
        pool, queue = self._started(), iter(jobs)
        running: set[Future[int]] = set()
        try:
            while True:
                running.update(pool.submit(_run_job, job) for job in islice(queue, 2 * self._count - len(running)))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            raise WorkerDied(
                "a worker died, perhaps for want of memory (fewer workers or a smaller shard_mb need less); "
                "the same command goes on where it was"
            ) from error


_WORKER: list[Worker] = []  # of a worker process, which does nothing else


def _start_worker(setup: Setup) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the first one decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # each worker has its own core: threads of libraries would only get in each other's way
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", POLARS_MAX_THREADS="1", OMP_PROC_BIND="false")
    import pyarrow

    pyarrow.set_cpu_count(1)
    _WORKER.append(Worker(setup))


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for its next job for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_job(job: Job) -> int:
    return _WORKER[0].run(job)


def _on_ray(setup: Setup, jobs: list[Job]) -> Iterator[int]:
    """Over the machines of the Ray cluster at ``RAY_ADDRESS``, or on this one; all of them see the same folders."""
    try:
        import ray
    except ImportError as error:
        raise MissingLibrary('runner=ray needs `pip install "tokenmill[ray]"`') from error

    logging.getLogger("ray.data").setLevel(logging.WARNING)  # the run shows its own progress
    ray.data.DataContext.get_current().enable_progress_bars = False
    if not ray.is_initialized():
        ray.init(num_cpus=setup.recipe.workers if "RAY_ADDRESS" not in os.environ else None, log_to_driver=False)
    rows = ray.data.from_items([{"job": number} for number in range(len(jobs))], override_num_blocks=len(jobs))
    workers = int(min(len(jobs), setup.recipe.workers or ray.cluster_resources().get("CPU", 1)))
    # an actor makes its steps once, with what they load
    pool = ray.data.ActorPoolStrategy(size=workers)
    done = rows.map(_RayWorker, fn_constructor_args=(setup, jobs), compute=pool)
    for row in done.iter_rows():
        yield int(row["documents"])


class _RayWorker:
    """Does jobs by number; the shape that Ray Data wants."""

    def __init__(self, setup: Setup, jobs: list[Job]) -> None:
        self._worker, self._jobs = Worker(setup), jobs

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"documents": self._worker.run(self._jobs[row["job"]])}
