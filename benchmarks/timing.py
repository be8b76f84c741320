"""Seconds that a call takes, and intervals of medians."""

import time
from collections.abc import Callable
from statistics import median

import torch
from scipy.stats import quantile_test

LEVEL = 0.95


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


def spread(values: list[float], form: str) -> str:
    """Return a median with its 95 % interval as text, or with the lowest and highest of fewer than six values.

    The interval is that of order statistics, which assumes no distribution; of 6 to 8 values, it is the lowest and highest.
    """
    if not values:
        return "–"
    middle, low, high = median(values), min(values), max(values)
    interval = quantile_test(values, q=middle, p=0.5).confidence_interval(LEVEL)
    if interval.low == interval.low:  # not NaN
        low, high = interval
    return f"{middle:{form}} [{low:{form}}, {high:{form}}]"
