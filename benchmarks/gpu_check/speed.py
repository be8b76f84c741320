"""How fast networks train, next to a bare step on one batch in memory, timm's own benchmark, and the device's matrix rate.

`benchmarks.loops` says what the loop, the bare step and the plain loop are. timm's benchmark.py (in its repository, not in its
package) measures one synthetic batch of three channels: channels_last, the kit's number format, forward, backward and SGD step,
the median of steps of which each is waited for.
"""

import gc
import resource
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from unittest import mock

import timm
import torch
from torch.nn.functional import cross_entropy

from benchmarks import loops
from benchmarks.loops import Loop, make_config, make_table, measure, overheads, shares, speeds, write_pictures
from benchmarks.timing import seconds
from utils.core.devices import pick_device
from utils.training.optimisation import autocast, is_out_of_memory

ROUNDS = 5
EPOCH_S = {"cpu": 0.5, "cuda": 4.0}  # shorter than in `make bench`, so that everything fits into 8 minutes
WARM, STEPS = 10, 40  # of timm's benchmark


@dataclass(frozen=True)
class Case:
    """A network, its image size (height, width), and the images of a batch."""

    network: str
    size: tuple[int, int]
    batch: int


CASES = {
    "resnet50": Case("resnet50", (512, 512), 16),
    "convnext_small": Case("convnext_small", (1024, 512), 8),
}
TOY_CASES = {
    "resnet50": Case("resnet18", (64, 64), 4),
    "convnext_small": Case("convnext_atto", (64, 32), 4),
}


def measure_case(work: Path, name: str) -> dict:
    """Measure a case of `CASES`, on a CPU of `TOY_CASES`; if memory runs out, at half its batch and so on."""
    device = pick_device()
    is_toy = device.type == "cpu"
    case = (TOY_CASES if is_toy else CASES)[name]
    with tempfile.TemporaryDirectory(dir=work) as folder, mock.patch.dict(loops.EPOCH_S, EPOCH_S):
        write_pictures(Path(folder), case.size)
        while True:
            gc.collect()
            if not is_toy:
                torch.cuda.empty_cache()
            try:
                return _measure(case, Path(folder), device, rounds=1 if is_toy else ROUNDS)
            except RuntimeError as error:
                if case.batch == 1 or not is_out_of_memory(error):
                    raise
            case = replace(case, batch=case.batch // 2)  # out here, as the error keeps the memory alive


def _measure(case: Case, folder: Path, device: torch.device, rounds: int) -> dict:
    peak = _peak_memory(case, folder, device)
    row = measure(case.network, case.size, case.batch, folder, rounds, device)
    if row["at_once"] < case.batch:
        raise torch.OutOfMemoryError(f"The kit's loop computed only {row['at_once']} of {case.batch} images at once.")
    timm_s = timm_step(case, device, *((1, 3) if device.type == "cpu" else (WARM, STEPS)))
    return {
        "network": case.network,
        "size": list(case.size),
        "batch": case.batch,
        "precision": row["precision"],
        "images_per_s": speeds(row, "loop_s"),
        "bare_images_per_s": speeds(row, "bare_s"),
        "plain_images_per_s": speeds(row, "plain_s"),
        "timm_images_per_s": case.batch / timm_s,
        "over_bare": overheads(row),
        "data_wait": row["data_wait"],
        "matrix_tflops": median(row["matrix"]) / 1e12,
        "share_of_rate": shares(row, "loop_s", "matrix"),
        "bare_share_of_rate": shares(row, "bare_s", "matrix"),
        "peak_gib": peak / 2**30,
    }


def _peak_memory(case: Case, folder: Path, device: torch.device) -> int:
    """Return the most bytes of memory that two steps of the kit's loop need, with nothing else in memory."""
    loop = Loop(make_config(case.network, case.size, case.batch), make_table(2 * case.batch), folder, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(2):
        loop.warm_up()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timm_step(case: Case, device: torch.device, warm: int, steps: int) -> float:
    """Return the seconds per step as timm's benchmark.py measures them; see the module's first lines."""
    model = timm.create_model(case.network).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    images = torch.randn(case.batch, 3, *case.size, device=device).contiguous(memory_format=torch.channels_last)
    config = make_config(case.network, case.size, case.batch)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(config, device):
            loss = cross_entropy(model(images), torch.randint(model.num_classes, (case.batch,), device=device))
        loss.backward()
        optimizer.step()

    return median([seconds(step, device) for _ in range(warm + steps)][warm:])
