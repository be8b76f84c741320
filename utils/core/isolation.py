"""Run a function in processes that may die: a crash or a hang costs the item that caused it, and nothing else."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import TimeoutError  # pebble raises this one
from dataclasses import dataclass
from typing import Any

import cv2
from pebble import ProcessExpired, ProcessPool

GIBIBYTE = 2**30


class IsolationError(Exception):
    """The process that worked on an item died, or took too long."""


@dataclass(frozen=True)
class Limits:
    """What one item may cost its process.

    Parameters
    ----------
    seconds : float or None
        After which the process is killed; None for no end.
    memory : int or None
        Bytes that the process may take beyond what it has at its start; enforced on Linux. None for no limit.
    threads : int or None
        Of the libraries that it computes with; None leaves the choice to them.
    """

    seconds: float | None = 120.0
    memory: int | None = 2 * GIBIBYTE
    threads: int | None = 1


class IsolatedPool:
    """Processes that each work on one item at a time.

    Parameters
    ----------
    num_workers : int
        Number of processes.
    limits : Limits
        Of each.
    """

    def __init__(self, num_workers: int, limits: Limits = Limits()):  # noqa: B008  (it is frozen)
        # In a Dask worker, which is a daemon, multiprocessing refuses children; these end with their parent by themselves.
        multiprocessing.current_process().daemon = False
        # Linux's C library returns large blocks when they are freed, and fetching them anew for each image costs a tenth of the
        # time. Processes read this at their start; more than 32 MiB is ignored.
        os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(32 * 2**20))
        os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(GIBIBYTE))
        self._seconds = limits.seconds
        self._pool = ProcessPool(
            max_workers=num_workers,
            # fork would copy whatever threads and locks a notebook has; spawn is the one way that works everywhere
            context=multiprocessing.get_context("spawn"),
            initializer=_prepare,
            initargs=(limits,),
        )
        atexit.register(self.stop)

    def call(self, function: Callable[[Any], Any], item: Any) -> Any:
        """Call the function in one of the processes, and give its result or raise its exception.

        Raises
        ------
        IsolationError
            If the process died or took too long.
        """
        try:
            return self._pool.schedule(function, args=(item,), timeout=self._seconds).result()
        except ProcessExpired as error:
            raise IsolationError(f"the process that worked on it died ({_cause(error.exitcode)})") from error
        except TimeoutError as error:
            raise IsolationError(f"it took more than {self._seconds:g} seconds") from error

    def stop(self) -> None:
        """End the processes."""
        self._pool.stop()
        self._pool.join()
        atexit.unregister(self.stop)

    def __enter__(self) -> IsolatedPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def _prepare(limits: Limits) -> None:
    # So that a loader of batches may start processes, in the way that is usual here, and not as this one was started.
    multiprocessing.current_process()._config["daemon"] = False
    multiprocessing.set_start_method(None, force=True)
    cv2.setNumThreads(1)  # one process a core: the libraries' own threads would compete; OpenCV heeds no environment variable
    if limits.threads:  # for what is imported from here on
        os.environ.update(OMP_NUM_THREADS=str(limits.threads), OPENBLAS_NUM_THREADS=str(limits.threads))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C ends the parent, which ends these
    if limits.memory:
        with contextlib.suppress(ImportError, OSError):  # Windows, macOS
            _limit_memory(limits.memory)


def _limit_memory(limit: int) -> None:
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        in_use = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    least = in_use + limit if hard == resource.RLIM_INFINITY else min(in_use + limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (least, hard))


def _cause(exit_code: int) -> str:
    return signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
