"""Preflight of what was trained: runs, their weights and threshold, and the weights that a training starts from."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from utils.core.environment import on_kaggle, resolve
from utils.kaggle.preflight_job import Finding, Job, hollow, refusals

FINISH = "let train.ipynb finish this run, or leave it out of run_dirs."


def check_runs(job: Job) -> Iterator[Finding]:
    """There is a run, and each has the files that the notebook begins with; their content is checked as the notebook will."""
    if not job.runs and not job.smoke_test and not job.is_phantom:
        attach = "attach the output of train.ipynb, or the dataset of its weights" if on_kaggle() else "run train.ipynb"
        yield Finding("No finished run is named, and none is found.", f"{attach}, or name run_dirs.")
    tunes = job.notebook != "submit" or not job.threshold_path
    for run in job.runs:
        wanted = ["config.json", "oof.csv", *(["folds.csv"] if tunes else [])]
        problems = [f"{name} {problem}" for name in wanted if (problem := hollow(run / name))]
        if problems:
            yield Finding(f"{run}: {', '.join(problems)}.", FINISH)
        elif tunes:
            yield from refusals(partial(_read_tables, run, job.notebook == "report"))


def _read_tables(run: Path, draws_history: bool) -> None:
    from utils.runs.run import Run

    Run(run).oof()
    if draws_history:
        Run(run).history()


def _read_config(run: Path) -> None:
    from utils.runs.run import Run

    Run(run).check_config()


def check_weights(job: Job) -> Iterator[Finding]:
    """Each run's configuration can be read, its folds are finished, and their weights fit the network."""
    for run in job.runs:
        if not hollow(run / "config.json"):  # else check_runs says so
            yield from _weights_of(run, job.notebook == "submit")  # the report does without pictures


def _weights_of(folder: Path, fatal: bool) -> Iterator[Finding]:
    from utils.runs.run import Run
    from utils.training.fold_weights import check_fold

    run = Run(folder)
    if refused := [*refusals(run.check_config)]:
        yield from refused
        return
    config, folds = run.config, run.finished_folds()
    wanted = len(config.folds) or config.n_folds
    if len(folds) < wanted:
        yield Finding(f"{folder}: {len(folds)} of {wanted} folds are finished (fold*/oof.csv).", FINISH, fatal and not folds)
    yield from refusals(run.usable_folds, fatal)
    found = []
    for fold_dir in folds:
        path = fold_dir / "weights.safetensors"
        if problem := hollow(path):
            found.append(Finding(f"{path} {problem}.", "copy the run again from where it was trained.", fatal))
        else:
            found += refusals(partial(check_fold, config, fold_dir), fatal)
    yield from dict.fromkeys(found)  # a network that can't be made is told once


def check_preprocessing(job: Job) -> Iterator[Finding]:
    """No run needs a preprocessing that this kit does not do, or was trained on the phantom for real images."""
    from utils.submission.ensemble import check_run

    for run in job.runs:
        if not any(refusals(partial(_read_config, run))):  # else check_weights says so
            yield from refusals(partial(check_run, run, job.is_phantom))


def check_threshold(job: Job) -> Iterator[Finding]:
    """threshold.json can be read, the one that is named belongs to these runs, and its runs can be looked for."""
    yield from refusals(partial(_read_thresholds, job))


def _read_thresholds(job: Job) -> None:
    from utils.decision.threshold import Threshold
    from utils.decision.tuning import find_threshold, threshold_files, tuned_runs

    for path in threshold_files(job.threshold_path):
        Threshold.load(path)
    if job.threshold_path and job.runs and not any(hollow(run / "oof.csv") for run in job.runs):
        find_threshold(job.runs, job.threshold_path)
    if job.notebook == "submit" and not job.run_dirs:
        tuned_runs(job.threshold_path, job.smoke_test, job.competition_dir)


def check_weights_file(job: Job) -> Iterator[Finding]:
    """What weights_path names can be read: a file of plain weights, or a run that has some."""
    from utils.networks.weights import read_weights
    from utils.training.sources import example_file

    if job.weights_path:
        yield from refusals(lambda: read_weights(example_file(str(resolve(job.weights_path)))))
