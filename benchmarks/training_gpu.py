"""At which share of a GPU's matrix rate networks train, and beside it what timm's own benchmark measures; needs a GPU."""

import tempfile
from pathlib import Path
from statistics import median

import timm
import torch
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.loops import BareModel, make_config, make_table, measure, seconds, speeds, write_pictures
from utils.tables.vocabulary import Vocabulary
from utils.training.optimisation import pick_precision

# Of the table for GPUs: network, size, batch.
GPU_CASES = (("resnet50", (512, 512), 16), ("convnext_small", (1024, 512), 8))
MATRIX = 8192  # rows and columns of what is multiplied to see how fast that goes at best


def measure_gpu(device: torch.device, rounds: int) -> dict:
    """Measure the matrix rate, and the share of it at which networks train.

    Returns
    -------
    dict
        ``matrix_tflops``, and ``rows``: what `measure` gives, with ``flops`` of a step and timm's ``timm_s``, seconds a step.
    """
    rows = []
    for architecture, size, batch in GPU_CASES:
        with tempfile.TemporaryDirectory() as folder:
            write_pictures(Path(folder), size)
            config = make_config(architecture, size, batch)
            try:
                row = measure(architecture, size, batch, Path(folder), rounds, device)
                row["flops"] = count_flops(BareModel(config, Vocabulary.from_images(make_table(batch)), device))
                row["timm_s"] = timm_step(architecture, size, batch, device)
            except torch.OutOfMemoryError:
                print(f"{architecture} at {size[0]}x{size[1]} is left out: the GPU's memory does not suffice.")
                continue
            rows.append(row)
    dtype = pick_precision(config, device)
    return {"matrix_tflops": matrix_rate(device, dtype) / 1e12, "rows": rows}


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int = MATRIX) -> float:
    """Floating point operations a second in the multiplication of large matrices, the best of some."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = [seconds(lambda: torch.mm(a, b), device, times=10) for _ in range(6)]
    return 2 * size**3 / min(times)


def count_flops(bare: BareModel) -> int:
    """Floating point operations of one forward and backward, a multiplication and an addition being two."""
    with FlopCounterMode(display=False) as counter:
        bare.gradients()
    return counter.get_total_flops()


def timm_step(name: str, size: tuple[int, int], batch: int, device: torch.device, warm: int = 10, steps: int = 40) -> float:
    """Seconds a step as timm's benchmark.py measures them: see the module's first lines."""
    model = timm.create_model(name).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    images = torch.randn(batch, 3, *size, device=device).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type):
            loss = cross_entropy(model(images), torch.randint(model.num_classes, (batch,), device=device))
        loss.backward()
        optimizer.step()

    return median([seconds(step, device) for _ in range(warm + steps)][warm:])


def gpu_table(results: dict) -> str:
    """Return the Markdown table of the second part."""
    rate = results["matrix_tflops"]
    head = ("network", "picture", "batch", "bare model, of the rate", "loop, of the rate", "kit, images/s")
    head += ("timm's benchmark, images/s",)
    lines = ["", f"Matrix rate {rate:.0f} TFLOP/s, and the share of it:", ""]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in results["rows"]:
        shares = [f"{row['flops'] / median(row[path]) / rate / 1e12:.0%}" for path in ("bare_s", "loop_s")]
        cells = [row["architecture"], "{} × {}".format(*row["size"]), str(row["batch"]), *shares]
        cells += [f"{median(speeds(row, 'loop_s')):.3g}", f"{row['batch'] / row['timm_s']:.3g}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
