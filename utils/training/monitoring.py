"""What a training shows of itself while it runs: loss, waiting time, peak memory, and TensorBoard's files."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from utils.runs.errors import TrainingError
from utils.training.loading import Batch, Loader

try:
    import resource
except ImportError:  # Windows
    resource = None


class EpochWatch:
    """Mean loss of an epoch, and the share of its time that passes waiting for data.

    The loss stays on the device: reading a number makes a GPU wait for its work.
    """

    def __init__(self, device: torch.device):
        self.start = time.perf_counter()
        self.waited = 0.0
        self.count = 0
        self.total = torch.zeros((), device=device)
        self.first_bad = torch.full((), -1, device=device)  # the first step whose loss is not finite

    def batches(self, loader: Loader) -> Iterator[Batch]:
        """Yield the loader's batches, and measure how long they take to come."""
        asked = time.perf_counter()
        for batch in loader:
            self.waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()

    def add(self, loss: torch.Tensor, step: int) -> None:
        """Add a step's loss."""
        self.total += loss
        self.count += 1
        self.first_bad = torch.where((self.first_bad < 0) & ~torch.isfinite(loss), step, self.first_bad)

    @property
    def mean_loss(self) -> float:
        """Mean loss so far."""
        return self.total.item() / self.count

    @property
    def data_wait(self) -> float:
        """Share of the time so far that passed waiting for data."""
        return self.waited / (time.perf_counter() - self.start)


def make_board(fold_dir: Path):
    """Make a writer of TensorBoard files; raise TrainingError if the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError("tensorboard=True needs the package: pip install tensorboard.") from error
    return SummaryWriter(fold_dir / "tensorboard")


def peak_memory(device: torch.device) -> str:
    """Return peak memory as text: of the GPU, else of this process."""
    if device.type == "cuda":
        return f"at most {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB of the GPU's memory in use"
    if resource is None:
        return "peak memory is unknown on Windows"
    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss: macOS counts bytes, Linux and the BSDs KiB
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f"at most {used / 2**30:.2f} GiB of memory in use by this process"
