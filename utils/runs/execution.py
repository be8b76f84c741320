"""How a training's work is spread over processes and machines, which does not affect its weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from utils.core.formats import build, check, is_whole, select_fields
from utils.runs.config import TrainingError

MOST_WORKERS = 1024  # processes
LARGEST_PORT = 2**16 - 1


@dataclass(frozen=True)
class Execution:
    """How a run's work is spread over processes and machines.

    Parameters
    ----------
    num_workers : int
        Number of data-loading processes per machine, divided among its training processes; 0 loads in threads of the latter.
    num_processes : int
        Number of processes, one per GPU, that share each step's batch (data-parallel training).
    num_machines : int
        Number of machines that do so together; each runs the same notebook with the same parameters.
    rendezvous : str
        HOST:PORT of one of those machines, to which the others connect.
    parallel_folds : int
        Number of folds trained in parallel, each in its own process on its own GPU; the better use of several GPUs for k-fold
        training. 0 uses the number of GPUs.
    cluster : str
        Address of a Dask scheduler whose workers train the folds, one each.
    compile : bool
        Compile the encoder with torch.compile: minutes at first, then often faster on a GPU.
    tensorboard : bool
        Write TensorBoard files into each fold's folder.
    """

    num_workers: int = 0
    num_processes: int = 1
    num_machines: int = 1
    rendezvous: str = ""
    parallel_folds: int = 0
    cluster: str = ""
    compile: bool = False
    tensorboard: bool = False

    def __post_init__(self):
        """Refuse ambiguous combinations."""
        for name, least in {"num_workers": 0, "num_processes": 1, "num_machines": 1, "parallel_folds": 0}.items():
            value = getattr(self, name)
            _check(is_whole(value) and value >= least, name, value, f"a whole number of {least} or more")
        _check(self.num_workers <= MOST_WORKERS, "num_workers", self.num_workers, f"at most {MOST_WORKERS}")
        address = re.fullmatch(r"\S+:([0-9]{1,5})", self.rendezvous)
        is_address = address is not None and int(address[1]) <= LARGEST_PORT
        _check(is_address or not self.rendezvous, "rendezvous", self.rendezvous, "HOST:PORT of one of the machines")
        if self.num_machines > 1 and not self.rendezvous:
            raise TrainingError("num_machines above 1 needs rendezvous: HOST:PORT of one of the machines.")
        if self.world_size > 1 and (self.parallel_folds > 1 or self.cluster):
            raise TrainingError(
                "Either several processes share a fold (num_processes, num_machines), or folds run in parallel"
                " (parallel_folds, cluster): not both. With at least as many folds as GPUs, parallel folds are faster."
            )

    @classmethod
    def from_parameters(cls, values: Mapping[str, object]) -> "Execution":
        """Make an execution from values by field name; other names are ignored, and other fields keep their default."""
        return build(cls, select_fields(cls, values))

    def share_workers(self, trainers: int) -> "Execution":
        """Return one training process's part of its machine's data-loading processes."""
        return replace(self, num_workers=-(-self.num_workers // trainers))

    @property
    def world_size(self) -> int:
        """Number of processes that share a step's batch."""
        return self.num_processes * self.num_machines


def _check(holds: bool, name: str, value: object, wanted: str) -> None:
    check(holds, name, value, wanted, TrainingError)
