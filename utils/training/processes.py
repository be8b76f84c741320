"""Folds one after the other, side by side in processes of this machine or on Dask, or each shared by several processes."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from utils.core.devices import cpu_count
from utils.core.isolation import Limits
from utils.core.parallel import map_items
from utils.runs.errors import TrainingError
from utils.runs.execution import Execution
from utils.training.ranks import run_together

UNLIMITED = Limits(seconds=None, memory=None, threads=None)


def trainers_at_once(execution: Execution, folds: int) -> int:
    """Return how many processes train on this machine at once: those that share a fold, or one for each fold side by side."""
    if execution.world_size > 1:
        return execution.num_processes
    if execution.cluster:
        return 1
    return max(1, min(execution.parallel_folds or torch.cuda.device_count(), folds))


def run_tasks(tasks: Sequence[Callable], execution: Execution) -> None:
    """Train folds: one after the other, here or in several processes each, or side by side.

    Each task is picklable, trains a fold and takes ``device_number``. Raise TrainingError if a fold fails or its process dies;
    folds next to it are finished first.
    """
    if execution.world_size > 1:
        for task in tasks:
            run_together(task, execution)
    elif execution.cluster:
        _run_side_by_side([[task] for task in tasks], UNLIMITED, cluster=execution.cluster)
    elif (count := trainers_at_once(execution, len(tasks))) > 1:
        threads = max(1, cpu_count() // count)
        groups = [tasks[start::count] for start in range(count)]  # each with its own GPU
        _run_side_by_side(groups, replace(UNLIMITED, threads=threads), num_workers=count)
    else:
        for task in tasks:
            task()


def _run_side_by_side(groups: Sequence[Sequence[Callable]], limits: Limits, num_workers: int = 0, cluster: str = "") -> None:
    numbered = list(enumerate(groups))
    outcomes = map_items(_run_group, numbered, num_workers, description="Folds", unit="groups", cluster=cluster, limits=limits)
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if errors:
        raise TrainingError(f"{len(errors)} of {len(groups)} groups of folds failed: {'; '.join(errors)}")


def _run_group(numbered: tuple[int, Sequence[Callable]]) -> None:
    number, tasks = numbered
    for task in tasks:
        task(device_number=number)
