"""Floating point operations: how many a network needs, and how many a device can do per second."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import seconds

TRIALS = 3  # the best of these counts
MATRIX = {"cpu": 2048, "cuda": 8192}  # rows and columns
REPEATS = {"cpu": 1, "cuda": 10}  # in a trial, so that it takes milliseconds
MAPS, SIDE = (8, 64, 64, 64), 3  # images, channels, height and width, as in the second stage of a ResNet; side of the kernel


def count_flops(model: nn.Module, *inputs: torch.Tensor) -> int:
    """Return the floating point operations of a forward and backward; a multiplication and an addition are two.

    The backward counts twice as much as the forward, for the gradients of maps and weights. torch's own count of it takes
    depthwise convolutions for full ones.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return 3 * counter.get_total_flops()


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating point operations per second in the multiplication of large matrices."""
    size = MATRIX[device.type]
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: torch.mm(a, b), device, REPEATS[device.type]) for _ in range(TRIALS))


def convolution_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating point operations per second in a convolution that suits the device."""
    channels = MAPS[1]
    maps = torch.randn(MAPS, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, SIDE, SIDE, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    best = min(seconds(lambda: torch.conv2d(maps, weight, padding=1), device, REPEATS[device.type]) for _ in range(TRIALS))
    return 2 * maps.numel() * channels * SIDE**2 / best
