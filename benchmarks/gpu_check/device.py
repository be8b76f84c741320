"""The machine: its GPU, driver and versions."""

import subprocess
from pathlib import Path

import torch

from benchmarks.gpu_check.check import CheckError, Skipped
from utils.core.devices import cpu_count, pick_device, try_gpu
from utils.core.versions import versions
from utils.kaggle.machine import cpu_name
from utils.training.optimisation import FIRST_WITH_BFLOAT16

DRIVER_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")


def find_gpu(work: Path) -> dict:
    """Compute on each GPU; return the machine's description."""
    machine = describe_machine()
    if not torch.cuda.is_available():
        if machine["nvidia-smi"]:
            raise CheckError(f"nvidia-smi lists a GPU, but torch {torch.__version__} finds none.", machine)
        raise Skipped("There is no NVIDIA GPU: everything runs at toy size on the CPU.", machine)
    for number, name in enumerate(machine["gpus"]):
        try:
            try_gpu(torch.device("cuda", number))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise CheckError(f"{name} does not work with torch {torch.__version__} ({reason}).", machine) from error
    return machine


def describe_machine() -> dict:
    """Return names and versions of everything that the results depend on."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    properties = [torch.cuda.get_device_properties(number) for number in range(count)]
    return {
        "checks_run_on": pick_device().type,
        "gpus": [f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in properties],
        "capability": [f"{gpu.major}.{gpu.minor}" for gpu in properties],
        "bfloat16": "in hardware" if _all_have_bfloat16(properties) else "emulated",
        "nvidia-smi": _driver(),
        "cuda": torch.version.cuda or "none",
        "cudnn": _cudnn_version(),
        "cpu": cpu_name(),
        "cores": cpu_count(),
    } | versions()


def _all_have_bfloat16(properties: list) -> bool:
    return bool(properties) and all((gpu.major, gpu.minor) >= FIRST_WITH_BFLOAT16 for gpu in properties)


def _cudnn_version() -> str:
    """Return cuDNN's version, or what torch says if it does not support one of the GPUs."""
    try:
        return str(torch.backends.cudnn.version())
    except RuntimeError as error:
        return str(error).splitlines()[0]


def _driver() -> list[str]:
    """Return nvidia-smi's line for each GPU: its name and the driver's version."""
    try:
        found = subprocess.run(DRIVER_QUERY, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return found.stdout.strip().splitlines()
