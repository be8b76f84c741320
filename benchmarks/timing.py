"""Seconds that a call takes."""

import time
from collections.abc import Callable

import torch


def seconds(work: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Return the seconds that a call takes, the mean of ``times``; on a GPU, until its work is done."""
    _wait_for(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    _wait_for(device)
    return (time.perf_counter() - start) / times


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
