"""Run a function in processes that may die: a crash or a hang costs the item that caused it, and nothing else."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import TimeoutError  # pebble raises this one
from typing import Any

import cv2
from pebble import ProcessExpired, ProcessPool

GIBIBYTE = 2**30


class IsolationError(Exception):
    """The process that worked on an item died, or took too long."""


class IsolatedPool:
    """Processes that each work on one item at a time.

    Parameters
    ----------
    num_workers : int
        Number of processes.
    time_limit : float
        Seconds for one item, after which its process is killed.
    memory_limit : int
        Bytes that a process may take beyond what it has at its start; enforced on Linux.
    """

    def __init__(self, num_workers: int, time_limit: float = 120.0, memory_limit: int = 2 * GIBIBYTE):
        # In a Dask worker, which is a daemon, multiprocessing refuses children; these end with their parent by themselves.
        multiprocessing.current_process().daemon = False
        # Linux's C library returns large blocks when they are freed, and fetching them anew for each image costs a tenth of the
        # time. Processes read this at their start; more than 32 MiB is ignored.
        os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(32 * 2**20))
        os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(GIBIBYTE))
        self._time_limit = time_limit
        self._pool = ProcessPool(
            max_workers=num_workers,
            # fork would copy whatever threads and locks a notebook has; spawn is the one way that works everywhere
            context=multiprocessing.get_context("spawn"),
            initializer=_prepare,
            initargs=(memory_limit,),
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
            return self._pool.schedule(function, args=(item,), timeout=self._time_limit).result()
        except ProcessExpired as error:
            raise IsolationError(f"the process that worked on it died ({_cause(error.exitcode)})") from error
        except TimeoutError as error:
            raise IsolationError(f"it took more than {self._time_limit:g} seconds") from error

    def stop(self) -> None:
        """End the processes."""
        self._pool.stop()
        self._pool.join()
        atexit.unregister(self.stop)

    def __enter__(self) -> IsolatedPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def _prepare(memory_limit: int) -> None:
    cv2.setNumThreads(1)  # one process a core: the libraries' own threads would compete; OpenCV heeds no environment variable
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # for what is imported from here on
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C ends the parent, which ends these
    with contextlib.suppress(ImportError, OSError):  # Windows, macOS
        _limit_memory(memory_limit)


def _limit_memory(limit: int) -> None:
    import resource

    with open("/proc/self/statm") as file:
        in_use = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _cause(exit_code: int) -> str:
    return signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
