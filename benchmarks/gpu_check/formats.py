"""Number formats and memory layout: what a GPU computes in."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.gpu_check.agreement import Prediction, check_agreement
from benchmarks.gpu_check.check import CheckError, Skipped
from benchmarks.gpu_check.small import Small, open_small
from utils.runs.config import TrainConfig
from utils.training.fitting import Fitting
from utils.training.inference import forward
from utils.training.learner import encoders_of
from utils.training.loading import Batch
from utils.training.optimisation import FIRST_WITH_BFLOAT16, autocast

FORMATS = ("float32", "bfloat16", "float16")
LOSS_TOLERANCE = 0.3  # relative to float32; float16 skips its first steps until the scale fits
LEAST_CHANNELS_LAST = 0.9  # share of maps; the others are those of single channels or pixels, where the layout is ambiguous
CPU = torch.device("cpu")


def train_and_predict(work: Path, architecture: str) -> dict:
    """Train a network in each format, and compare the predictions of the one trained in float32 in all formats."""
    small = open_small(work)
    trained_in, reason = choose_formats(architecture, small.device)
    losses = {}
    for precision in trained_in:
        fitting = small.fitting(small.config(architecture, precision=precision))
        losses[precision] = fitting.train_epoch(0, tqdm(disable=True))["train_loss"]  # raises if it is not finite
        if precision == "float32":
            trained = fitting
    numbers = {"train_loss": losses, "features_differ_by": _compare_formats(small, trained)}
    for precision, loss in losses.items():
        if not abs(loss / losses["float32"] - 1) <= LOSS_TOLERANCE:
            raise CheckError(f"The loss in {precision} is {loss:.3f}, but {losses['float32']:.3f} in float32.")
    if reason:
        raise Skipped(reason, numbers)
    return numbers


def choose_formats(architecture: str, device: torch.device) -> tuple[tuple[str, ...], str]:
    """Return the formats to train in, and the reason if some are left out."""
    if architecture == "cnn":
        return FORMATS, ""
    if device.type == "cpu":
        return ("float32",), "On a CPU only cnn is trained in half precision: convolutions take up to 60 times as long."
    if torch.cuda.get_device_capability(device) < FIRST_WITH_BFLOAT16:
        return ("float32", "float16"), "This GPU only emulates bfloat16, slowly: only cnn is trained in it. All else passed."
    return FORMATS, ""


def _compare_formats(small: Small, trained: Fitting) -> dict[str, float]:
    """Return how much features in each format differ from those of float32 on the CPU; raise CheckError if it is too much."""
    model, batch = trained.learner.model.eval(), next(iter(trained.validation_loader))
    found = {name: _predict(model, batch, replace(trained.config, precision=name), small.device) for name in FORMATS}
    expected = _predict(model.to(CPU), batch, replace(trained.config, precision="float32"), CPU)
    return {name: check_agreement(name, prediction, expected) for name, prediction in found.items()}


def _predict(model: nn.Module, batch: Batch, config: TrainConfig, device: torch.device) -> Prediction:
    images = batch["images"].to(device)
    with torch.inference_mode(), autocast(config, device):
        features = [encoder(images)[0].float().cpu() for encoder in encoders_of(model)]
        logit = forward(model, batch, device).logit.float().cpu()
    return Prediction(logit, torch.cat(features, dim=1))


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
