"""Processes that share one fold's steps, by torch's launcher and DistributedDataParallel."""

import contextlib
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from utils.core.devices import cpu_count, pick_device
from utils.runs.errors import TrainingError
from utils.runs.execution import Execution
from utils.runs.lock import FoldLock

PATIENCE = timedelta(minutes=10)  # for a process that does not answer; a dead one on this machine is noticed at once


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
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", world_size)), torch.cuda.device_count()
    if device.type == "cuda" and here > gpus:
        raise TrainingError(f"num_processes is {here}, but this machine has {gpus} GPUs: each process needs one.")
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    yield Ranks(device, distributed.get_rank(), world_size)
    distributed.destroy_process_group()  # not after an error: it could wait for the others, which the launcher ends


def run_together(task: Callable, execution: Execution) -> None:
    """Run a task in ``num_processes`` processes on each of ``num_machines`` machines, as torchrun does."""
    config = LaunchConfig(
        min_nodes=execution.num_machines,
        max_nodes=execution.num_machines,
        nproc_per_node=execution.num_processes,
        run_id="train",
        rdzv_backend="c10d",
        rdzv_endpoint=execution.rendezvous or "localhost:0",  # a free port of this machine
        max_restarts=0,
        start_method="spawn",  # fork would copy a notebook's threads and locks
    )
    threads = max(1, cpu_count() // execution.num_processes)
    with _kept_signal_handlers():
        try:
            elastic_launch(config, _call)(task, threads)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise TrainingError(f"Process {rank} of {execution.world_size} {_reason(failure)}") from error


def _call(task: Callable, threads: int) -> None:
    torch.set_num_threads(threads)
    task()


def _reason(failure) -> str:
    if failure.exitcode < 0:
        died = f"died ({signal.Signals(-failure.exitcode).name}), and the others were ended"
        return f"{died}. Run again to resume after the last saved epoch, with fewer processes if memory ran out."
    lines = [line for line in str(failure.message).splitlines() if line.strip()]
    return f"failed: {lines[-1] if lines else f'exit code {failure.exitcode}'}"


@contextlib.contextmanager
def _kept_signal_handlers() -> Iterator[None]:
    """Restore the signal handlers that the launcher replaces, so that a notebook can be interrupted afterwards."""
    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")  # Windows has only two
    before = {name: signal.getsignal(getattr(signal, name)) for name in names if hasattr(signal, name)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
