"""Preflight of what was trained: runs, their weights and threshold, and the weights that a training starts from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from utils.environment import KitError, on_kaggle, read_json, resolve
from utils.preflight_job import Finding, Job, config_of, hollow

FINISH = "let train.ipynb finish this run, or leave it out of run_dirs."


def check_runs(job: Job) -> Iterator[Finding]:
    """There is a run, and each has the files that the notebook begins with."""
    if not job.runs and not job.smoke_test and not job.is_phantom:
        attach = "attach the output of train.ipynb, or the dataset of its weights" if on_kaggle() else "run train.ipynb"
        yield Finding("No finished run is named, and none is found.", f"{attach}, or name run_dirs.")
    tunes = job.notebook != "submit" or not job.threshold_path
    for run in job.runs:
        wanted = ["config.json", "oof.csv", *(["folds.csv"] if tunes else [])]
        problems = [f"{name} {problem}" for name in wanted if (problem := hollow(run / name))]
        if problems:
            yield Finding(f"{run}: {', '.join(problems)}.", FINISH)


def check_weights(job: Job) -> Iterator[Finding]:
    """Each run's configuration can be read, its folds are finished, and their weights are whole."""
    for run in job.runs:
        if not hollow(run / "config.json"):  # else check_runs says so
            yield from _weights_of(run, job.notebook == "submit")  # the report does without pictures


def _weights_of(run: Path, fatal: bool) -> Iterator[Finding]:
    from utils.run_folder import finished_folds

    config = config_of(run)
    if not config:
        yield Finding(f"{run}/config.json can't be read by this kit.", "train the run again, or leave it out of run_dirs.")
        return
    folds, wanted = finished_folds(run), len(config.folds) or config.n_folds
    if len(folds) < wanted:
        yield Finding(f"{run}: {len(folds)} of {wanted} folds are finished (fold*/oof.csv).", FINISH, fatal and not folds)
    for path in (fold / "weights.safetensors" for fold in folds):
        problem = _safetensors_problem(path)
        if problem:
            yield Finding(f"{path} {problem}.", "copy the run again from where it was trained.", fatal)


def check_preprocessing(job: Job) -> Iterator[Finding]:
    """No run needs a preprocessing that this kit does not do, or was trained on the phantom for real images."""
    from utils.ensemble import check_run

    for run in filter(config_of, job.runs):
        try:
            check_run(run, job.is_phantom)
        except KitError as error:
            yield Finding(str(error), "")


def check_threshold(job: Job) -> Iterator[Finding]:
    """threshold.json can be read, and the one that is named belongs to these runs."""
    from utils.tuning import find_threshold, threshold_files

    try:
        for path in threshold_files(job.threshold_path):
            if not _is_threshold(path):
                yield Finding(f"{path} is no threshold.json of this kit.", "delete it, or run tune_threshold.ipynb again.")
                return
        if job.threshold_path and job.runs and not any(hollow(run / "oof.csv") for run in job.runs):
            find_threshold(job.runs, job.threshold_path)
    except KitError as error:
        yield Finding(str(error), "")


def _is_threshold(path: Path) -> bool:
    try:
        return "oof_hashes" in read_json(path)
    except ValueError:
        return False


def check_weights_file(job: Job) -> Iterator[Finding]:
    """The file that weights_path names can be read as plain weights."""
    from utils.encoder_weights import read_checkpoint

    if job.weights_path:
        try:
            read_checkpoint(resolve(job.weights_path))
        except KitError as error:
            yield Finding(str(error), "")


def _safetensors_problem(path: Path) -> str:
    """Say what is wrong with a file of weights, from its header; one that is cut is shorter than its header says."""
    from safetensors import SafetensorError, safe_open

    problem = hollow(path)
    if problem:
        return problem
    try:
        with safe_open(path, framework="pt") as file:
            is_own = "vocabulary" in (file.metadata() or {})
    except (SafetensorError, OSError) as error:
        return f"can't be read ({error})"
    return "" if is_own else "was not written by this kit"
