"""The optimizer's groups of parameters, the schedule, and the number format."""

import math
from collections.abc import Callable

import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from utils.runs.config import TrainConfig

# In messages of the C++ allocator, CUDA, cuBLAS, cuDNN and oneDNN.
OUT_OF_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "STATUS_ALLOC_FAILED",
    "unable to find an engine",
    "could not create a primitive",
)
FIRST_WITH_BFLOAT16 = (8, 0)  # compute capability; below it (T4: 7.5), torch emulates bfloat16 slowly
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Make AdamW; biases and norms do not decay."""
    groups = param_groups_weight_decay(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def warmup_cosine(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the learning rate's factor as a function of the step: linear warm-up, then cosine to zero.

    torch's SequentialLR of LinearLR and CosineAnnealingLR multiplies step by step, and rounds to other rates.
    """
    total = config.epochs * steps_per_epoch
    warmup = max(1, round(config.warmup_share * total))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    return factor


def pick_precision(config: TrainConfig, device: torch.device) -> torch.dtype:
    """Pick the number format: half precision on a GPU, float32 on a CPU, where neither gained."""
    if config.precision != "auto":
        return DTYPES[config.precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= FIRST_WITH_BFLOAT16 else torch.float16
    return torch.float32


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """Return a context in which a network computes in the configuration's number format."""
    dtype = pick_precision(config, device)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def is_out_of_memory(error: RuntimeError) -> bool:
    """True if an error means that the GPU's or the machine's memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)
