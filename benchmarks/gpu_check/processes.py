"""Several processes: a step shared by two, folds at the same time, and a run that is killed."""

import contextlib
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from torch import distributed

from benchmarks.gpu_check.check import CheckError
from benchmarks.gpu_check.small import Small, open_small
from utils.core.devices import pick_device
from utils.images.training_data import TrainingData
from utils.runs.config import TrainConfig
from utils.runs.execution import Execution
from utils.training import folds
from utils.training.folds import FoldTask, train_run
from utils.training.processes import run_tasks
from utils.training.ranks import PATIENCE, Ranks

ON_TWO = Execution(num_processes=2)
LOSS_TOLERANCE = 5e-3  # TF32 and another order of sums; on CPUs, losses agree within 2e-4
LOGIT_TOLERANCE = 1e-3
START_S, LOOK_EVERY_S = 60.0, 0.005


def share_steps(work: Path) -> dict:
    """Train a fold in one process and in two; on a GPU also a network whose batch normalisation they synchronise."""
    small = open_small(work)
    backend = "nccl" if torch.cuda.device_count() > 1 else "gloo (NCCL is untested: it needs two GPUs)"
    numbers: dict = {"backend": backend, "loss_differs_by": {}}
    for architecture in ("test_convnext",) if small.is_toy else ("test_convnext", "test_resnet"):
        config = small.config(architecture, dropout=0.0, precision="float32", epochs=2, folds=(0,))
        alone, together = work / f"{architecture}-one", work / f"{architecture}-two"
        train_run(config, small.data, alone)
        with _sharing_one_device():
            train_run(config, small.data, together, ON_TWO)
        one, two = (pd.read_csv(run / "history.csv") for run in (alone, together))
        differs = max(float((one[name] - two[name]).abs().max()) for name in ("train_loss", "valid_loss"))
        if not differs <= LOSS_TOLERANCE:
            raise CheckError(
                f"Losses of {architecture} differ by {differs:.2g}: {list(one.train_loss)}, {list(two.train_loss)}."
            )
        numbers["loss_differs_by"][architecture] = differs
    return numbers


@dataclass(frozen=True)
class OnOneDevice:
    """A fold's task for processes that share one device, which NCCL refuses; it is pickled into these processes."""

    task: FoldTask

    def __call__(self) -> None:
        with mock.patch.object(folds, "joined", _joined_by_gloo):
            self.task()


@contextlib.contextmanager
def _sharing_one_device() -> Iterator[None]:
    """Let processes share the GPU if there is only one; the CPU too, so that this runs without a GPU."""
    if torch.cuda.device_count() > 1:
        yield
        return
    with mock.patch.object(folds, "run_tasks", lambda tasks, execution: run_tasks([*map(OnOneDevice, tasks)], execution)):
        yield


@contextlib.contextmanager
def _joined_by_gloo(device_number: int = 0) -> Iterator[Ranks]:
    """Do as `utils.training.ranks.joined` does, with one device for all and gloo."""
    device = pick_device()
    distributed.init_process_group("gloo", timeout=PATIENCE)
    yield Ranks(device, distributed.get_rank(), distributed.get_world_size())
    distributed.destroy_process_group()


def train_folds_side_by_side(work: Path) -> dict:
    """Train two folds one after the other, and at the same time; compare out-of-fold predictions."""
    small = open_small(work)
    config = small.config("cnn", deterministic=True, epochs=2)
    start = time.perf_counter()
    one = train_run(config, small.data, work / "after-each-other", Execution(parallel_folds=1))
    middle = time.perf_counter()
    two = train_run(config, small.data, work / "at-once", Execution(parallel_folds=2))
    differs = float(np.abs(one.logit - two.logit).max())
    if one.image_id.tolist() != two.image_id.tolist() or not differs <= LOGIT_TOLERANCE:
        raise CheckError(f"Logits differ by {differs:.2g}.")
    return {"logit_differs_by": differs, "one_after_the_other_s": middle - start, "at_once_s": time.perf_counter() - middle}


def resume_killed_run(work: Path) -> dict:
    """Kill a training after its first checkpoint, resume it, and compare weights with an uninterrupted one."""
    small = open_small(work)
    config = small.config("cnn", deterministic=True, ema_decay=0.9, epochs=6, folds=(0,))
    train_run(config, small.data, work / "uninterrupted")
    epochs = _kill_after_checkpoint(config, small, work / "killed")
    train_run(config, small.data, work / "killed")
    first, second = (
        safetensors.torch.load_file(work / run / "fold0" / "weights.safetensors") for run in ("uninterrupted", "killed")
    )
    different = [name for name, value in first.items() if not torch.equal(value, second[name])]
    if different:
        raise CheckError(f"{len(different)} of {len(first)} tensors differ, first {different[0]}.")
    return {"epochs": config.epochs, "epochs_before_the_kill": epochs, "differing_tensors": 0}


def _kill_after_checkpoint(config: TrainConfig, small: Small, run_dir: Path) -> int:
    """Start a training in another process, and kill it at its first checkpoint; return how many epochs it had finished."""
    training = multiprocessing.get_context("spawn").Process(
        target=_train, args=(config, small.data, run_dir, torch.get_num_threads())
    )
    training.start()
    checkpoint = run_dir / "fold0" / "checkpoint.pt"
    began = time.monotonic()
    while not checkpoint.is_file():
        if not training.is_alive() or time.monotonic() - began > START_S:
            training.kill()
            raise CheckError(f"The training that was to be killed wrote no checkpoint within {START_S:.0f} s.")
        time.sleep(LOOK_EVERY_S)
    training.kill()
    training.join()
    if not checkpoint.is_file():
        raise CheckError("The training ended before it was killed.")
    return len(torch.load(checkpoint, weights_only=True, map_location="cpu")["history"])


def _train(config: TrainConfig, data: TrainingData, run_dir: Path, threads: int) -> None:
    torch.set_num_threads(threads)  # so that sums have the same order
    train_run(config, data, run_dir)
