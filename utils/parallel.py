"""One map over many items: processes on this machine, progress, and errors kept per item."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import joblib
from tqdm import tqdm

from utils.environment import KitError


@dataclass(frozen=True)
class Outcome:
    """What became of one item: ``value``, or ``error`` as text where the function raised."""

    item: Any
    value: Any = None
    error: str = ""


class StopRunError(KitError):
    """Raised by a mapped function when going on makes no sense, as on a full disk; ends the whole map."""


def map_items(
    function: Callable[[Any], Any], items: Sequence[Any], num_workers: int, description: str, unit: str
) -> Iterator[Outcome]:
    """Apply ``function`` to every item over processes, and yield each outcome as it is ready, in any order.

    Parameters
    ----------
    function : callable
        Picklable, of one item.
    items : sequence
        Picklable items.
    num_workers : int
        Number of processes; 1 or less runs in this one.
    description, unit : str
        For the progress bar, which shows units per second.

    Yields
    ------
    Outcome
        An exception of the function becomes ``error``; it never ends the run, unless it is a `StopRunError`.
    """
    with _one_thread_each(num_workers):
        pool = joblib.Parallel(n_jobs=max(num_workers, 1), return_as="generator_unordered", batch_size="auto")
        outcomes = pool(joblib.delayed(_attempt)(function, item, alone=num_workers <= 1) for item in items)
        yield from _with_progress(outcomes, len(items), description, unit)


def _attempt(function: Callable[[Any], Any], item: Any, alone: bool) -> Outcome:
    if not alone:
        cv2.setNumThreads(1)  # OpenCV heeds no environment variable
    try:
        return Outcome(item, value=function(item))
    except StopRunError:
        raise
    except Exception as error:
        return Outcome(item, error=f"{type(error).__name__}: {error}")


def _one_thread_each(num_workers: int) -> contextlib.AbstractContextManager:
    """Keep the libraries' own threads from competing with the processes."""
    if num_workers <= 1:
        return contextlib.nullcontext()
    return joblib.parallel_config(backend="loky", inner_max_num_threads=1)


def _with_progress(outcomes: Iterable[Outcome], total: int, description: str, unit: str) -> Iterator[Outcome]:
    errors = 0
    # mininterval keeps the bar readable in a log, where each refresh is a line.
    with tqdm(total=total, desc=description, unit=f" {unit}", mininterval=1.0, disable=total == 0) as bar:
        for outcome in outcomes:
            if outcome.error:
                errors += 1
                bar.set_postfix(errors=errors, refresh=False)
            bar.update()
            yield outcome
