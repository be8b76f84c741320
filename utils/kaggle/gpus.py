"""Preflight of the GPUs: which exist, and whether they compute."""

from collections.abc import Iterator
from pathlib import Path

import torch

from utils.core.devices import try_gpu
from utils.core.folders import on_kaggle
from utils.kaggle.findings import GIGABYTE, Finding

GPU_DRIVER = Path("/dev/nvidiactl")
CHOOSE_T4 = "choose the accelerator 'GPU T4 x2' in the notebook's settings"


def check_gpus(is_training: bool) -> Iterator[Finding]:
    """Check that each kind of GPU computes: ``torch.cuda.is_available()`` is True for unsupported ones too.

    ``is_training`` means on real images: on a CPU that takes weeks, whereas prediction is only slow.
    """
    if not torch.cuda.is_available():
        yield from _without_gpu(is_training)
        return
    kinds = {torch.cuda.get_device_capability(number): number for number in range(torch.cuda.device_count())}
    for (major, minor), number in kinds.items():  # one of each kind, since a trial takes some GPU memory
        try:
            try_gpu(f"cuda:{number}")
        except RuntimeError as error:
            name, built = torch.cuda.get_device_name(number), ", ".join(torch.cuda.get_arch_list())
            problem = f"{name} (sm_{major}{minor}) does not work with torch {torch.__version__}, which is built for {built}:"
            hide = "end other programs that use it, install a torch built for it, or hide it: CUDA_VISIBLE_DEVICES=''"
            reason = str(error).splitlines()[0]
            yield Finding(f"{problem} {reason}.", f"{CHOOSE_T4 if on_kaggle() else hide}.", is_fatal=is_training)


def _without_gpu(is_training: bool) -> Iterator[Finding]:
    if GPU_DRIVER.exists():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        problem = f"There is an NVIDIA GPU, but torch {torch.__version__}, {built}, can't use it."
        yield Finding(problem, "install a torch for the CUDA version that nvidia-smi shows.", is_fatal=False)
    elif on_kaggle() and is_training:
        # README, "Speed": on two cores resnet50 trains on 0.8 images of 512 x 512 per second.
        problem = "There is no GPU: on a CPU, four folds of resnet50 on the competition's images take weeks."
        yield Finding(problem, f"{CHOOSE_T4}.", is_fatal=False)


def check_processes(num_processes: int) -> Iterator[Finding]:
    """Check that each training process has a GPU of its own."""
    count = torch.cuda.device_count()
    if torch.cuda.is_available() and num_processes > count:
        problem = f"num_processes is {num_processes}, but there are {count} GPUs, and each process needs its own."
        yield Finding(problem, f"set num_processes to {count}.")


def describe_gpus() -> str:
    """Return the names and memory of the GPUs that torch sees, as text."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = [torch.cuda.get_device_properties(number) for number in range(count)]
    named = " and ".join(f"{one.name} with {one.total_memory / GIGABYTE:.1f} GB" for one in found)
    if named:
        return f"{named}{', all used' if count > 1 else ''}"
    has_mps = torch.backends.mps.is_available()
    return f"{'this Mac has a GPU (MPS), which the kit does not use' if has_mps else 'no GPU'}: the CPU computes"
