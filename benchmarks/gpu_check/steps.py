"""What single training steps do on a GPU: scaled gradients, short memory, activations computed twice, and repeatability."""

import contextlib
import gc
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import torch
from tqdm import tqdm

from benchmarks.gpu_check.agreement import relative_distance
from benchmarks.gpu_check.check import CheckError
from benchmarks.gpu_check.small import Small, open_small
from utils.runs.config import TrainConfig
from utils.training import learner
from utils.training.learner import Learner

MOST_SKIPPED = 24  # steps until float16's scale fits; it starts at 2**16 and is halved each time
GRADIENT_TOLERANCE = 0.05  # relative; for TF32 and other algorithms for a convolution. A missing part is ten times as much
MEMORY_SHARE = 0.6  # of what a step's activations need, so that half of them fit
GPU_BATCH = 32  # images, so that activations need several times as much memory as weights


def skip_infinite_gradients(work: Path) -> dict:
    """Take steps in float16 until the scale fits, then one with an infinite gradient, then another good one."""
    small = open_small(work)
    fitting = small.fitting(small.config("cnn", precision="float16", epochs=100))
    trained, batch = fitting.learner, next(iter(fitting.loader))
    trained.network.train()
    if not trained.scaler.is_enabled():
        raise CheckError("The GradScaler is off in float16.")
    skipped = 0
    while not _step_changes_weights(trained, batch):
        skipped += 1
        if skipped > MOST_SKIPPED:
            raise CheckError(f"{skipped} steps in a row had infinite gradients.")
    scale = trained.scaler.get_scale()
    poison = next(trained.model.parameters()).register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    changed, halved = _step_changes_weights(trained, batch), trained.scaler.get_scale()
    poison.remove()
    if changed or halved != scale / 2:
        raise CheckError(f"After an infinite gradient the scale went from {scale:g} to {halved:g}; weights changed: {changed}.")
    if not _step_changes_weights(trained, batch):
        raise CheckError("The step after an infinite gradient changes no weight.")
    return {"skipped_at_first": skipped, "scale": scale, "scale_after_infinity": halved}


def _step_changes_weights(trained: Learner, batch: dict) -> bool:
    before = _flat(trained.model.parameters())
    loss = trained.step(batch, 0)
    if not torch.isfinite(loss):
        raise CheckError(f"The loss is {loss.item()}.")
    after = _flat(trained.model.parameters())
    if not torch.isfinite(after).all():
        raise CheckError("Some weights are not finite.")
    return not torch.equal(before, after)


@dataclass(frozen=True)
class Steps:
    """The first two steps of a new training.

    ``gradients`` and ``at_once`` (items) are those of the first step; the gradients are AdamW's first moments, so they have a
    factor. ``loss`` is that of the second step. ``start`` and ``peak`` are a GPU's memory in bytes before the second step and
    at most in it: the first step also needs memory to search for cuDNN's fastest algorithms.
    """

    gradients: torch.Tensor
    loss: float
    at_once: int
    start: int
    peak: int


def halve_within_memory(work: Path) -> dict:
    """Train with too little memory for a batch, and compare with a training whose parts were small from the start."""
    small = open_small(work)
    config = _memory_config(small)
    complete = _take_steps(small, config)
    with _short_of_memory(small, complete):
        halved = _take_steps(small, config)
    if halved.at_once >= config.batch_size:
        raise CheckError(f"All {halved.at_once} items were computed at once, although memory was limited.")
    explicit = _take_steps(small, replace(config, micro_batch_size=halved.at_once))
    differs = relative_distance(halved.gradients, explicit.gradients)
    numbers = {"batch": config.batch_size, "at_once": halved.at_once, "loss": halved.loss, "gradient_differs_by": differs}
    numbers |= _peaks(complete=complete, halved=halved)
    if not differs <= GRADIENT_TOLERANCE:
        raise CheckError(f"Gradients differ by {differs:.2g} from those of micro_batch_size={halved.at_once}.", numbers)
    return numbers


def checkpoint_activations(work: Path) -> dict:
    """Compare steps that keep their activations with steps that compute them twice."""
    small = open_small(work)
    config = _memory_config(small)
    kept, twice = _take_steps(small, config), _take_steps(small, replace(config, activation_checkpointing=True))
    differs = relative_distance(twice.gradients, kept.gradients)
    numbers = {"gradient_differs_by": differs} | _peaks(kept=kept, computed_twice=twice)
    if not differs <= GRADIENT_TOLERANCE:
        raise CheckError(f"Gradients differ by {differs:.2g} from those of kept activations.", numbers)
    if twice.peak > kept.peak:
        raise CheckError("Activations that are computed twice need more memory than kept ones.", numbers)
    return numbers


def _peaks(**steps: Steps) -> dict[str, float]:
    """Return peak memory of the GPU by name, in GiB; on a CPU it is unknown."""
    return {f"peak_gib_{name}": each.peak / 2**30 for name, each in steps.items() if each.peak}


def _memory_config(small: Small) -> TrainConfig:
    """Return a training without draws, since a failed attempt at a step draws too."""
    network, batch = ("cnn", 8) if small.is_toy else ("resnet50", GPU_BATCH)
    return small.config(network, dropout=0.0, batch_size=batch, precision="float32")


def _take_steps(small: Small, config: TrainConfig) -> Steps:
    """Take two steps with the first batch; the training is forgotten afterwards, and its memory is freed."""
    is_gpu = small.device.type == "cuda"
    if is_gpu:
        gc.collect()
        torch.cuda.empty_cache()
    fitting = small.fitting(config)
    trained, batch = fitting.learner, next(iter(fitting.loader))
    trained.network.train()
    trained.step(batch, 0)
    at_once = trained.micro_batch_size  # now, as the second step may halve it again
    gradients = _flat(trained.optimizer.state[weights]["exp_avg"] for weights in trained.model.parameters()).cpu()
    start = torch.cuda.memory_allocated(small.device) if is_gpu else 0
    if is_gpu:
        torch.cuda.reset_peak_memory_stats(small.device)
    loss = trained.step(batch, 1).item()
    peak = torch.cuda.max_memory_allocated(small.device) if is_gpu else 0
    if not (torch.isfinite(gradients).all() and math.isfinite(loss)):
        raise CheckError(f"Some gradients are not finite, or the loss, {loss}, is not.")
    return Steps(gradients, loss, at_once, start, peak)


@contextlib.contextmanager
def _short_of_memory(small: Small, complete: Steps) -> Iterator[None]:
    """Limit the GPU's memory to a share of what a step needs; on a CPU, let the network fail as a GPU's does."""
    if small.device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()  # the limit counts what torch has reserved, used or not
        limit = complete.start + MEMORY_SHARE * (complete.peak - complete.start)
        total = torch.cuda.get_device_properties(small.device).total_memory
        torch.cuda.set_per_process_memory_fraction(limit / total, small.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, small.device)
        return
    forward = learner.forward

    def limited(model, batch, *rest):
        if len(batch["label"]) > complete.at_once // 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(model, batch, *rest)

    with mock.patch.object(learner, "forward", limited):
        yield


def repeat_training(work: Path) -> dict:
    """Train each network twice with ``deterministic``, and compare all weights."""
    small = open_small(work)
    numbers = {}
    for architecture in ("cnn", "resnet18", "rnn") if small.is_toy else ("cnn", "resnet50", "rnn"):
        config = small.config(architecture, deterministic=True)
        first, second = (_trained_weights(small, config) for _ in range(2))
        numbers[architecture] = (first != second).sum().item()
    different = {name: count for name, count in numbers.items() if count}
    if different:
        raise CheckError(f"Weights that differ between two trainings: {different}.")
    return {"differing_weights": numbers}


def _trained_weights(small: Small, config: TrainConfig) -> torch.Tensor:
    fitting = small.fitting(config)
    fitting.train_epoch(0, tqdm(disable=True))
    return _flat(fitting.learner.model.state_dict().values()).cpu()


def _flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten().float() for tensor in tensors])
