"""Processes that share one fold's steps (torch's launcher and DDP), and folds side by side (here or on Dask)."""

import contextlib
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from utils.core.environment import cpu_count, pick_device
from utils.core.isolation import Limits
from utils.core.parallel import map_items
from utils.runs.config import TrainingError
from utils.runs.execution import Execution
from utils.runs.lock import FoldLock

PATIENCE = timedelta(minutes=10)  # for a process that does not answer; a dead one on this machine is noticed at once
STANDALONE = "localhost:0"  # a free port of this machine
UNLIMITED = Limits(seconds=None, memory=None, threads=None)


@dataclass(frozen=True)
class Ranks:
    """Rank of this process among those that share a fold, its device, and the fold's lock if it writes."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    lock: FoldLock | None = None

    @property
    def is_first(self) -> bool:
        """True if this process writes and reports."""
        return self.rank == 0

    def mean(self, value: float) -> float:
        """Return the mean of a number over the processes."""
        values = self.gather(value)
        return sum(values) / len(values)

    def align(self, module: torch.nn.Module) -> None:
        """Set a module's buffers to those of the first process."""
        if self.world_size > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def gather(self, value) -> list:
        """Return each process's value, in the order of their ranks."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        distributed.all_gather_object(values, value)
        return values


@contextlib.contextmanager
def joined(device_number: int = 0) -> Iterator[Ranks]:
    """Join the other processes that torchrun started, if any; alone, use GPU ``device_number`` modulo their number."""
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if world_size == 1:
        yield Ranks(pick_device(device_number))
        return
    device = pick_device(int(os.environ["LOCAL_RANK"]))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    if device.type == "cuda" and here > torch.cuda.device_count():
        raise TrainingError(f"num_processes is {here}, but there are {torch.cuda.device_count()} GPUs: one process each.")
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    yield Ranks(device, distributed.get_rank(), world_size)
    distributed.destroy_process_group()  # not after an error: it could wait for the others, which the launcher ends


def trainers_at_once(execution: Execution, folds: int) -> int:
    """Return how many processes train on this machine at once: those of one fold, or one for each fold side by side."""
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
            _run_together(task, execution)
    elif execution.cluster:
        _run_side_by_side([[task] for task in tasks], cluster=execution.cluster, limits=UNLIMITED)
    elif (count := trainers_at_once(execution, len(tasks))) > 1:
        threads = max(1, cpu_count() // count)
        groups = [tasks[start::count] for start in range(count)]  # each with its own GPU
        _run_side_by_side(groups, num_workers=count, limits=replace(UNLIMITED, threads=threads))
    else:
        for task in tasks:
            task()


def _run_together(task: Callable, execution: Execution) -> None:
    """Run a task in ``num_processes`` processes on each of ``num_machines`` machines, as torchrun does."""
    config = LaunchConfig(
        min_nodes=execution.num_machines,
        max_nodes=execution.num_machines,
        nproc_per_node=execution.num_processes,
        run_id="train",
        rdzv_backend="c10d",
        rdzv_endpoint=execution.rendezvous or STANDALONE,
        max_restarts=0,
        start_method="spawn",  # fork would copy a notebook's threads and locks
    )
    threads = max(1, cpu_count() // execution.num_processes)
    with _environment(OMP_NUM_THREADS=str(threads)), _kept_signal_handlers():
        try:
            elastic_launch(config, _call)(task)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise TrainingError(f"Process {rank} of {execution.world_size} {_reason(failure)}") from error


def _call(task: Callable) -> None:
    task()  # the launcher needs a function with a name


def _reason(failure) -> str:
    if failure.exitcode < 0:
        died = f"died ({signal.Signals(-failure.exitcode).name})"
        return f"{died}: is there memory for so many? The others were ended; run again to go on after the last saved epoch."
    text = failure.message if isinstance(failure.message, str) else str(failure.message)
    lines = [line for line in text.splitlines() if line.strip()]
    return f"failed: {lines[-1] if lines else f'exit code {failure.exitcode}'}"


def _run_side_by_side(groups: Sequence[Sequence[Callable]], **work) -> None:
    outcomes = map_items(_run_group, list(enumerate(groups)), description="Folds", unit="groups", **work)
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if errors:
        raise TrainingError(f"{len(errors)} of {len(groups)} groups of folds failed: {'; '.join(errors)}")


def _run_group(numbered: tuple[int, Sequence[Callable]]) -> None:
    number, tasks = numbered
    for task in tasks:
        task(device_number=number)


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def _kept_signal_handlers() -> Iterator[None]:
    """Restore the signal handlers that the launcher replaces, so that a notebook can be interrupted afterwards."""
    names = [name for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]  # Windows has only two
    before = {name: signal.getsignal(getattr(signal, name)) for name in names}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
