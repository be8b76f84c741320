"""Run a function in processes that may die: a crash or a hang costs only the item that caused it."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError, wait  # pebble raises this TimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock
from typing import Any

import cv2
from pebble import ProcessExpired, ProcessPool

GIBIBYTE = 2**30
ATTEMPTS = 2  # for an item: a process may have died of something else while it was idle
LOOK_EVERY = 1.0  # seconds between looks at whether a pool still works
LONGEST_START = 300.0  # seconds until a process takes an item: a process that dies while it holds a lock blocks the next one


class IsolationError(Exception):
    """The process that worked on an item died or took too long."""


@dataclass(frozen=True)
class Limits:
    """Limits on what one item may cost its process.

    Parameters
    ----------
    seconds : float or None
        The process is killed after this time; None for no limit.
    memory : int or None
        Bytes that the process may allocate beyond its size at the start; enforced only on Linux. None for no limit.
    threads : int or None
        Threads of OpenMP and OpenBLAS; None keeps their defaults.
    """

    seconds: float | None = 120.0
    memory: int | None = 2 * GIBIBYTE
    threads: int | None = 1


DECODING = Limits()


class IsolatedPool:
    """``num_workers`` processes, each of which works on one item at a time within ``limits``.

    Each is a pebble pool of its own: a pool breaks if its process dies before it has said what it works on, and must then
    be replaced without another item's being lost.
    """

    def __init__(self, num_workers: int, limits: Limits = DECODING):
        # A Dask worker is a daemon, and multiprocessing lets no daemon start children. These end with their parent anyway.
        multiprocessing.current_process().daemon = False
        # By default glibc returns large freed blocks to the system. Allocating them again for each image takes a tenth of the
        # time. Processes read this when they start; the threshold is at most 32 MiB.
        os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(32 * 2**20))
        os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(GIBIBYTE))
        self._limits = limits
        self._idle: SimpleQueue[ProcessPool] = SimpleQueue()
        self._started: list[ProcessPool] = []
        self._is_stopped = False
        self._lock = Lock()  # of the two above
        for _ in range(num_workers):
            self._idle.put(self._start())
        atexit.register(self.stop)

    def _start(self) -> ProcessPool:
        with self._lock:
            if self._is_stopped:
                raise IsolationError("its pool of processes was stopped")
            pool = ProcessPool(
                max_workers=1,
                # fork would copy a notebook's threads and locks; spawn works on every system
                context=multiprocessing.get_context("spawn"),
                initializer=_prepare,
                initargs=(self._limits,),
            )
            self._started.append(pool)
            return pool

    def call(self, function: Callable[[Any], Any], item: Any) -> Any:
        """Call the function in one of the processes and return its result or raise its exception.

        Raise IsolationError if the process died or took too long.
        """
        pool = self._idle.get()
        try:
            for _ in range(ATTEMPTS):
                with contextlib.suppress(BrokenProcessPool):
                    return self._result(pool, function, item)
                pool = self._replace(pool)
            raise IsolationError("the process that worked on it died")
        finally:
            self._idle.put(pool)

    def _result(self, pool: ProcessPool, function: Callable[[Any], Any], item: Any) -> Any:
        """Return the function's result; raise BrokenProcessPool if the pool must be replaced."""
        try:
            future = pool.schedule(function, args=(item,), timeout=self._limits.seconds)
        except RuntimeError as error:  # its process died while it was idle
            raise BrokenProcessPool from error
        begin = time.monotonic()
        while not wait([future], timeout=LOOK_EVERY).done:
            is_late = not future.running() and time.monotonic() - begin > LONGEST_START
            if is_late or not pool.active:
                raise BrokenProcessPool
        try:
            return future.result()
        except ProcessExpired as error:
            raise IsolationError(f"the process that worked on it died ({_cause(error.exitcode)})") from error
        except TimeoutError as error:
            raise IsolationError(f"it took more than {self._limits.seconds:g} seconds") from error

    def _replace(self, pool: ProcessPool) -> ProcessPool:
        _end(pool)
        with self._lock:
            self._started.remove(pool)
        return self._start()

    def stop(self) -> None:
        """End the processes."""
        with self._lock:
            self._is_stopped = True
            started = list(self._started)
        for pool in started:
            pool.stop()
        for pool in started:
            _end(pool)
        atexit.unregister(self.stop)

    def __enter__(self) -> IsolatedPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def _end(pool: ProcessPool) -> None:
    pool.stop()
    pool.join()


def _prepare(limits: Limits) -> None:
    """Set up a worker process: start method, threads, signals and memory limit."""
    # Let a data loader start processes of its own, with the system's default start method instead of spawn.
    multiprocessing.current_process()._config["daemon"] = False
    multiprocessing.set_start_method(None, force=True)
    cv2.setNumThreads(1)  # one process per core, so more threads would compete; OpenCV ignores environment variables
    if limits.threads:  # takes effect in libraries imported from here on
        os.environ.update(OMP_NUM_THREADS=str(limits.threads), OPENBLAS_NUM_THREADS=str(limits.threads))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C ends the parent, which ends its workers
    if limits.memory:
        with contextlib.suppress(ImportError, OSError):  # Windows, macOS
            _limit_memory(limits.memory)


def _limit_memory(limit: int) -> None:
    """Limit this process's address space to its current size plus ``limit`` bytes; Linux only."""
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        in_use = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    least = in_use + limit if hard == resource.RLIM_INFINITY else min(in_use + limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (least, hard))


def _cause(exit_code: int) -> str:
    """Return the signal's name or the exit code as text."""
    return signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
