"""One map over many items: processes on this machine, a Dask cluster beyond it; progress, and errors kept per item."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import joblib
from tqdm import tqdm

from utils.core.environment import KitError
from utils.core.isolation import IsolatedPool, IsolationError, Limits

DECODING = Limits()


@dataclass(frozen=True)
class Outcome:
    """What became of one item: ``value``, or ``error`` as text where the function raised."""

    item: Any
    value: Any = None
    error: str = ""


class StopRunError(KitError):
    """Raised by a mapped function when going on makes no sense, as on a full disk; ends the whole map."""


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
    """Apply ``function`` to every item over processes, and yield each outcome as it is ready, in any order.

    Parameters
    ----------
    function : callable
        Picklable, of one item.
    items : sequence
        Picklable items.
    num_workers : int
        Number of processes on this machine, each of which may die without harm to the others' items; 0 runs in this one.
    description, unit : str
        For the progress bar, which shows units per second; without a description there is none.
    cluster : str
        Address of a Dask scheduler, as in ``tcp://10.0.0.1:8786``: its workers do the work, each in as many processes as it has
        threads. They need this package and the items' files in the same places.
    prepare : callable, optional
        Called here with each item when it is handed out, which is ``num_workers`` items before its turn: as to read ahead.
    limits : Limits
        Of each process; those of decoding one image by default.

    Yields
    ------
    Outcome
        An exception of the function becomes ``error``, and so does the death of its process; neither ends the run, unless the
        exception is a `StopRunError`.
    """
    if not items:
        return
    with _workers(num_workers, cluster, limits) as (attempt, pool):
        outcomes = pool(joblib.delayed(attempt)(function, item) for item in _handed_out(items, prepare))
        yield from _with_progress(outcomes, len(items), description, unit)


def prefetched(items: Iterator[Any]) -> Iterator[Any]:
    """Yield what an iterator gives, whose next item is made in a thread while this one is used."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item


@contextlib.contextmanager
def _workers(num_workers: int, cluster: str, limits: Limits) -> Iterator[tuple[Callable, joblib.Parallel]]:
    if cluster:
        with dask_client(cluster) as client, joblib.parallel_config(backend="dask"):
            yield partial(_attempt_on_cluster, limits), joblib.Parallel(return_as="generator_unordered")
            client.run(_stop_pools)
    elif num_workers < 1:
        yield _attempt, joblib.Parallel(n_jobs=1, return_as="generator_unordered")
    else:
        with IsolatedPool(num_workers, limits) as isolated:
            # These threads only wait for the processes.
            threads = joblib.Parallel(n_jobs=num_workers, backend="threading", return_as="generator_unordered")
            yield (lambda function, item: _attempt(function, item, isolated)), threads


def dask_client(address: str):
    """Connect to a Dask scheduler whose workers have the kit.

    Raises
    ------
    KitError
        If Dask is not installed, nothing answers, or the workers lack the kit.
    """
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
    """Say what a cluster lacks; empty if it is ready. A scheduler or worker without the kit would hang or fail later."""

    def finds_kit() -> bool:  # defined here, Dask sends its code and not its name
        from importlib.util import find_spec

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
    for item in items:
        if prepare:
            prepare(item)
        yield item


def _attempt(function: Callable[[Any], Any], item: Any, isolated: IsolatedPool | None = None) -> Outcome:
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
    """Turn what the function raises into text where it is raised: not every exception survives the way between processes."""
    try:
        return Outcome(item, value=function(item))
    except StopRunError:
        raise
    except (Exception, SystemExit) as error:
        return Outcome(item, error=f"{type(error).__name__}: {error}")


_pools: dict[tuple[int, Limits], IsolatedPool] = {}  # of a Dask worker, kept from one item to the next
_pools_lock = threading.Lock()


def _attempt_on_cluster(limits: Limits, function: Callable[[Any], Any], item: Any) -> Outcome:
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
    errors = 0
    # mininterval keeps the bar readable in a log, where each refresh is a line.
    with tqdm(total=total, desc=description, unit=f" {unit}", mininterval=1.0, disable=not description) as bar:
        for outcome in outcomes:
            if outcome.error:
                errors += 1
                bar.set_postfix(errors=errors, refresh=False)
            bar.update()
            yield outcome
