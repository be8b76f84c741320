"""Floating point operations: how many a network needs, and how many a device can do per second."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.loops import BareModel, seconds

TRIALS = 6  # the best of these counts
MAPS, SIDE = (8, 64, 64, 64), 3  # images, channels, height and width, as in the second stage of a ResNet; side of the kernel


def count_flops(bare: BareModel) -> int:
    """Return the floating point operations of a forward and backward; a multiplication and an addition are two.

    The backward counts twice as much as the forward, for the gradients of maps and weights. torch's own count of it takes
    depthwise convolutions for full ones.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        bare.model(bare.images, bare.metadata, bare.lengths)
    return 3 * counter.get_total_flops()


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int, times: int = 10) -> float:
    """Return the floating point operations per second in the multiplication of large matrices, the best of some trials."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: torch.mm(a, b), device, times) for _ in range(TRIALS))


def convolution_rate(device: torch.device, dtype: torch.dtype, times: int = 10) -> float:
    """Return the floating point operations per second in a convolution that suits the device, the best of some trials."""
    channels = MAPS[1]
    maps = torch.randn(MAPS, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, SIDE, SIDE, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    best = min(seconds(lambda: torch.conv2d(maps, weight, padding=1), device, times) for _ in range(TRIALS))
    return 2 * maps.numel() * channels * SIDE**2 / best
