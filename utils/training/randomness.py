"""What a run's random choices depend on."""

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def derive_seed(*numbers: int) -> int:
    """Derive one seed from several numbers."""
    return int(np.random.SeedSequence(list(numbers)).generate_state(1)[0])


def set_determinism(deterministic: bool) -> None:
    """Let torch use only deterministic algorithms, or any; `utils` itself sets up cuBLAS."""
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
