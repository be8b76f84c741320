"""Map a function over many items, in local processes or on a Dask cluster, with a progress bar and one error per item."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import joblib

from utils.core.errors import KitError
from utils.core.isolation import DECODING, IsolatedPool, IsolationError, Limits
from utils.core.progress import progress_bar


@dataclass(frozen=True)
class Outcome:
    """Result of one item: ``value``, or ``error`` as text if the function raised."""

    item: Any
    value: Any = None
    error: str = ""


class StopRunError(KitError):
    """Raised by a mapped function to end the map if continuing is pointless, as on a full disk."""


def map_items(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    num_workers: int = 0,
    description: str = "",
    unit: str = "items",
    cluster: str = "",
    prepare: Callable[[Any], None] | None = None,
    limits: Limits = DECODING,
) -> Iterator[Outcome]:
    """Apply ``function`` to every item in parallel, and yield each outcome as it completes, in any order.

    Parameters
    ----------
    function : callable
        Picklable; takes one item.
    items : sequence
        Picklable items.
    num_workers : int
        Number of local processes, each of which may die without affecting others' items; 0 runs in this process.
    description, unit : str
        Text of the progress bar; without a description there is no bar.
    cluster : str
        Address of a Dask scheduler, such as ``tcp://10.0.0.1:8786``. Each worker runs as many processes as it has threads,
        and needs this package and the items' files at the same paths.
    prepare : callable, optional
        Called in this process with each item ``num_workers`` items before its turn, for example to read ahead.
    limits : Limits
        Limits of each process; the default suits decoding one image.

    Yields
    ------
    Outcome
        If the function raises or its process dies, ``error`` says why and the map continues; a `StopRunError` ends it.
    """
    if not items:
        return
    with _workers(num_workers, cluster, limits) as (attempt, pool):
        outcomes = pool(joblib.delayed(attempt)(function, item) for item in _handed_out(items, prepare))
        yield from _with_progress(outcomes, len(items), description, unit)


def prefetched(items: Iterator[Any]) -> Iterator[Any]:
    """Yield an iterator's items; a thread makes the next one while the caller uses this one."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item


@contextlib.contextmanager
def _workers(num_workers: int, cluster: str, limits: Limits) -> Iterator[tuple[Callable, joblib.Parallel]]:
    """Yield a function that attempts one item, and the joblib pool that calls it."""
    if cluster:
        with dask_client(cluster) as client, joblib.parallel_config(backend="dask"):
            try:
                yield partial(_attempt_on_cluster, limits), joblib.Parallel(return_as="generator_unordered")
            finally:
                client.run(_stop_pools)
    elif num_workers < 1:
        yield _attempt, joblib.Parallel(n_jobs=1, return_as="generator_unordered")
    else:
        with IsolatedPool(num_workers, limits) as isolated:
            # These threads only wait for processes.
            threads = joblib.Parallel(n_jobs=num_workers, backend="threading", return_as="generator_unordered")
            yield (lambda function, item: _attempt(function, item, isolated)), threads


def dask_client(address: str):
    """Connect to a Dask scheduler; raise KitError if Dask is missing, nothing answers, or the workers lack the kit."""
    try:
        from distributed import Client
    except ImportError as error:
        raise KitError("cluster needs Dask: pip install distributed, here and on the workers.") from error
    try:
        client = Client(address, set_as_default=True)
    except (OSError, ValueError) as error:
        raise KitError(f"No Dask scheduler answers at {address!r} ({error}): start one with 'dask scheduler'.") from error
    reason = _unready(client, address)
    if reason:
        client.close()
        raise KitError(reason)
    return client


def _unready(client, address: str) -> str:
    """Return what a cluster lacks, or "" if it is ready; without the kit a scheduler or worker would hang or fail later."""

    def finds_kit() -> bool:  # because it is nested, Dask sends its code and not its name
        try:
            return find_spec("utils.core.parallel") is not None
        except ModuleNotFoundError:
            return False

    if not (client.run_on_scheduler(finds_kit) and all(client.run(finds_kit).values())):
        return (
            "Dask's scheduler and workers must find the kit: start them in the project's root with PYTHONPATH=. before 'dask'."
        )
    if not client.nthreads():
        return f"The Dask scheduler at {address} has no workers: start some with 'dask worker {address}'."
    return ""


def _handed_out(items: Iterable[Any], prepare: Callable[[Any], None] | None) -> Iterator[Any]:
    """Yield each item after calling ``prepare`` with it."""
    for item in items:
        if prepare:
            prepare(item)
        yield item


def _attempt(function: Callable[[Any], Any], item: Any, isolated: IsolatedPool | None = None) -> Outcome:
    """Run the function on an item, in an isolated process if there is a pool; errors become part of the outcome."""
    if isolated is None:
        return _run(function, item)
    try:
        return isolated.call(partial(_run, function), item)
    except IsolationError as error:
        return Outcome(item, error=str(error))
    except StopRunError:
        raise
    except Exception as error:  # the result can't be pickled
        return Outcome(item, error=f"{type(error).__name__}: {error}")


def _run(function: Callable[[Any], Any], item: Any) -> Outcome:
    """Convert an exception to text in the process that raises it, since not every exception can be pickled."""
    try:
        return Outcome(item, value=function(item))
    except StopRunError:
        raise
    except (Exception, SystemExit) as error:
        return Outcome(item, error=f"{type(error).__name__}: {error}")


_pools: dict[tuple[int, Limits], IsolatedPool] = {}  # of this Dask worker, kept between items
_pools_lock = threading.Lock()


def _attempt_on_cluster(limits: Limits, function: Callable[[Any], Any], item: Any) -> Outcome:
    """Run the function on an item in the Dask worker's own pool, which is made at the first item."""
    from distributed import get_worker

    num_workers = get_worker().state.nthreads
    with _pools_lock:
        if (num_workers, limits) not in _pools:
            _pools[num_workers, limits] = IsolatedPool(num_workers, limits)
    return _attempt(function, item, _pools[num_workers, limits])


def _stop_pools() -> None:
    while _pools:
        _pools.popitem()[1].stop()


def _with_progress(outcomes: Iterable[Outcome], total: int, description: str, unit: str) -> Iterator[Outcome]:
    """Yield outcomes and show a progress bar with the number of errors."""
    errors = 0
    with progress_bar(None, description, unit, total, disable=not description) as bar:
        for outcome in outcomes:
            if outcome.error:
                errors += 1
                bar.set_postfix(errors=errors, refresh=False)
            bar.update()
            yield outcome
