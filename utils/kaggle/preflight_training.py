"""Preflight of a training or a submission: find within seconds problems that would appear hours later."""

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from utils.core.errors import KitError
from utils.core.files import read_json
from utils.core.folders import on_kaggle
from utils.core.parallel import dask_client
from utils.images.inputs import Inputs
from utils.images.training_data import TrainingData
from utils.kaggle.findings import GIGABYTE, Finding, refusals, report
from utils.kaggle.gpus import check_gpus, check_processes, describe_gpus
from utils.kaggle.machine import check_disks, check_hub, check_memory, describe_machine
from utils.kaggle.packages import mounted
from utils.kaggle.preflight import check_images, count_missing, room_for
from utils.runs.config import TrainConfig
from utils.runs.execution import Execution
from utils.runs.folder import check_same_run
from utils.runs.plan import Plan
from utils.training.checks import check_training
from utils.training.sources import find_starts
from utils.training.trial import try_networks

RUN_BYTES = 2 * GIGABYTE  # four folds of resnet50 with 0.1 GB each, and the checkpoints of two folds while they are replaced


def preflight_training(plan: Plan, num_workers: int) -> None:
    """Check the requirements of a training and its preprocessing, and print warnings.

    Parameters
    ----------
    plan : Plan
    num_workers : int
        Number of decoding processes.

    Raises
    ------
    PreflightError
        If a problem is fatal; it lists all fatal problems.
    """
    inputs, config, execution, run_dir = plan.inputs, plan.config, plan.execution, plan.run_dir
    data = plan.expected_data()
    table = {"train": data.images}
    missing = count_missing(inputs, table)
    is_real = not (inputs.is_phantom or inputs.smoke_test)
    written = room_for(inputs, missing) | {run_dir: RUN_BYTES if is_real else 0.0}
    findings = [*check_disks(written), *check_memory(num_workers), *check_gpus(is_real)]
    findings += check_images(inputs, table) if missing["train"] else []
    findings += _waiting_gpu(inputs, missing)
    findings += refusals(lambda: check_training(config, data, execution))
    if (run_dir / "config.json").is_file():
        findings += refusals(lambda: check_same_run(run_dir, config, data.images))
    findings += refusals(lambda: try_networks(config, execution))
    findings += check_start(config, data, run_dir, is_sure=not missing["train"])
    if config.model.pretrained and not config.model.weights_path:
        findings += check_hub()
    findings += [*check_processes(execution.num_processes), *_check_services(execution)]
    report(findings, describe_machine(describe_gpus()))


def check_start(config: TrainConfig, data: TrainingData, run_dir: Path, is_sure: bool) -> Iterator[Finding]:
    """If weights_path is a run, check that none of its networks has seen a patient of the held-out fold.

    ``is_sure`` means that all images are known to be readable. Otherwise the folds may differ, and findings only warn.
    """
    if config.model.weights_path:
        with contextlib.suppress(KitError):  # check_training reports it
            images = data.with_folds(config.n_folds, config.seed, config.fold_by).images
            for finding in refusals(lambda: find_starts(config, images, run_dir)):
                yield replace(finding, is_fatal=is_sure)


def preflight_submission(inputs: Inputs, folders: Sequence[Path], num_workers: int) -> None:
    """Check the requirements of preprocessing and predicting test images, and print warnings.

    Parameters
    ----------
    folders : sequence of Path
        Folders that will be written to.
    num_workers : int
        Number of decoding processes.

    Raises
    ------
    PreflightError
        If a problem is fatal; it lists all fatal problems.
    """
    findings = [*check_disks(dict.fromkeys(folders, 0.0), is_kept=False), *check_memory(num_workers)]
    findings += [*check_gpus(is_training=False), *check_images(inputs, {"test": inputs.images("test")})]
    report(findings, describe_machine(describe_gpus()))


def _waiting_gpu(inputs: Inputs, missing: Mapping[str, int]) -> Iterator[Finding]:
    """Warn on Kaggle if a GPU would wait for hours of preprocessing."""
    if on_kaggle() and missing["train"]:
        attached = next((folder for folder in mounted("settings.json") if _hash_of(folder) == inputs.settings.hash), None)
        make = "run preprocess.ipynb in a notebook without a GPU, attach its output, and give its folder as cache_dir."
        problem = f"{inputs.cache_dir} lacks {missing['train']} images: they would be made first, while GPU hours are used up."
        yield Finding(problem, f"set cache_dir to {attached}." if attached else make, is_fatal=False)


def _hash_of(cache_dir: Path) -> str:
    content = read_json(cache_dir / "settings.json")
    return content.get("hash", "") if isinstance(content, dict) else ""


def _check_services(execution: Execution) -> Iterator[Finding]:
    """Check the optional services that are requested: the Dask cluster, TensorBoard and a compiler."""
    if execution.cluster:
        yield from refusals(lambda: dask_client(execution.cluster).close())
    if execution.tensorboard and not importlib.util.find_spec("tensorboard"):
        yield Finding("tensorboard is not installed.", "%pip install tensorboard, or leave out the parameter tensorboard.")
    if execution.compile:
        yield from refusals(lambda: torch.compile(torch.nn.Linear(1, 1))(torch.zeros(1, 1)))
