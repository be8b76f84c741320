"""Number formats and memory layout: what a GPU computes in."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from benchmarks.gpu_check.check import CheckError, Skipped
from benchmarks.gpu_check.small import Small, open_small
from utils.networks.models import Outputs
from utils.runs.config import TrainConfig
from utils.submission.acceleration import disagreement
from utils.training.fitting import Fitting
from utils.training.inference import predict_logits

FORMATS = ("float32", "bfloat16", "float16")
LOSS_TOLERANCE = 0.3  # relative to float32; float16 skips its first steps until the scale fits
LEAST_CHANNELS_LAST = 0.9  # share of maps; the others are those of single channels or pixels, where the layout is ambiguous
COMPARED_ITEMS = 8
CPU = torch.device("cpu")


def train_and_predict(work: Path, architecture: str) -> dict:
    """Train a network in each format, and compare the predictions of the one trained in float32 in all formats."""
    small = open_small(work)
    trained_in = FORMATS[:1] if small.is_toy and architecture != "cnn" else FORMATS
    losses = {}
    for precision in trained_in:
        fitting = small.fitting(small.config(architecture, precision=precision))
        losses[precision] = fitting.train_epoch(0, tqdm(disable=True))["train_loss"]  # raises if it is not finite
        if precision == "float32":
            trained = fitting
    numbers = {"train_loss": losses, "logit_differs_by": _compare_formats(small, trained)}
    for precision, loss in losses.items():
        if not abs(loss / losses["float32"] - 1) <= LOSS_TOLERANCE:
            raise CheckError(f"The loss in {precision} is {loss:.3f}, but {losses['float32']:.3f} in float32.")
    if trained_in != FORMATS:
        raise Skipped("On a CPU only cnn is trained in half precision: convolutions take up to 60 times as long.", numbers)
    return numbers


def _compare_formats(small: Small, trained: Fitting) -> dict[str, float]:
    """Return how much logits in each format differ from those of float32 on the CPU; raise CheckError if that is too much."""
    model, items = trained.learner.model, Subset(trained.data.held_out_set, range(COMPARED_ITEMS))
    found = {precision: _predict(model, items, trained.config, precision, small.device) for precision in FORMATS}
    expected = _predict(model.to(CPU), items, trained.config, "float32", CPU)
    problems = []
    for precision, logits in found.items():
        problem = disagreement(Outputs(torch.from_numpy(logits)), Outputs(torch.from_numpy(expected)))
        problems += [f"{precision}: {problem}"] if problem else []
    if problems:
        raise CheckError(f"Predictions differ from those of float32 on the CPU: {'; '.join(problems)}.")
    differences = {precision: float(np.abs(logits - expected).max()) for precision, logits in found.items()}
    return differences | {"spread_of_logits": float(expected.std())}


def _predict(model: nn.Module, items: Dataset, config: TrainConfig, precision: str, device: torch.device) -> np.ndarray:
    return predict_logits(model, items, replace(config, precision=precision), device)


def keep_channels_last(work: Path) -> dict:
    """Take a training step, and look at the layout of weights and of each layer's maps."""
    small = open_small(work)
    fitting = small.fitting(small.config("resnet50"))
    model = fitting.learner.model.train()
    layout: dict[str, bool] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d)):
            module.register_forward_hook(lambda _, __, output, name=name: layout.update({name: _is_channels_last(output)}))
    fitting.learner.step(next(iter(fitting.loader)), 0)
    weights = {name: _is_channels_last(value) for name, value in model.named_parameters() if value.ndim == 4}
    wrong = [name for name, holds in {**weights, **layout}.items() if not holds]
    numbers = {"weights": _share(weights), "maps": _share(layout), "other_layout": wrong[:10]}
    if numbers["weights"] < 1 or numbers["maps"] < LEAST_CHANNELS_LAST:
        raise CheckError(f"{len(wrong)} of {len(weights) + len(layout)} are not channels_last: {', '.join(wrong[:5])}.")
    return numbers


def _is_channels_last(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


def _share(holds: dict[str, bool]) -> float:
    return sum(holds.values()) / len(holds)
