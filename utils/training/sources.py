"""Weights that a run starts from: a file, or another run of this kit.

From a run, each fold takes a network that never saw the fold's patients. So stages are trained one after the other, each
from the one before: patches, whole images, another set.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from utils.networks.weights import is_of_kit, read_weights
from utils.runs.config import ModelConfig, TrainConfig
from utils.runs.errors import TrainingError
from utils.runs.leaks import LeakError
from utils.runs.run import FOLD, Run
from utils.runs.starts import Start, read_start, start_files
from utils.runs.tables import read_history_table

WEIGHTS = "weights.safetensors"
PATCHES = "patches"
SHOWN = 3


@dataclass(frozen=True)
class Source:
    """A run whose encoders may start another; ``files`` has the weights of each fold's last finished stage."""

    run_dir: Path
    config: TrainConfig
    files: Mapping[int, Path]


def find_starts(config: TrainConfig, images: pd.DataFrame, run_dir: Path) -> dict[int, Start]:
    """Find what each fold of a run starts from.

    A fold that was begun before keeps its start; a finished one needs none. Any other takes the source's fold of the same
    number if neither it nor the runs that it started from saw the patients whom the new fold holds out, else another such
    fold.

    Parameters
    ----------
    images : DataFrame
        The train table, with the column ``fold``.
    run_dir : Path
        Folder of the new run.

    Returns
    -------
    dict of int to Start
        By fold, of those that are to be trained; empty without ``weights_path``.

    Raises
    ------
    LeakError
        If no network of the source is free of a fold's patients.
    KitError
        If the source is of another architecture, has no finished fold, can't be read, or was changed since a fold started.
    """
    weights_path = config.model.weights_path
    if not weights_path:
        return {}
    begun = {path.parent: read_start(path.parent) for path in start_files(run_dir)}
    folds = {fold: run_dir / f"fold{fold}" for fold in config.folds or range(config.n_folds)}
    missing = {fold: fold_dir for fold, fold_dir in folds.items() if not (fold_dir / "oof.csv").is_file()}
    moved = _begun_elsewhere(run_dir, weights_path)
    if moved and not begun:
        raise TrainingError(f"{run_dir} was begun with another weights_path ({moved}). Choose another run_dir, or delete it.")
    for fold_dir, start in begun.items():
        if moved or fold_dir in missing.values():
            _check_unchanged(fold_dir, start, weights_path)
    starts = {fold: replace(begun[path], weights_path=weights_path) for fold, path in missing.items() if path in begun}
    held_out = {fold: set(images.patient_id[images.fold == fold]) for fold in missing if fold not in starts}
    return starts | _choose_all(config.model, held_out)


def _begun_elsewhere(run_dir: Path, weights_path: str) -> str:
    """Return the ``weights_path`` that a run was begun with, or "" if it is the same."""
    if not (run_dir / "config.json").is_file():
        return ""
    before = Run(run_dir).config.model.weights_path  # `utils.runs.folder.check_same_run` refuses a run without one
    return before if before != weights_path else ""


def _check_unchanged(fold_dir: Path, start: Start, weights_path: str) -> None:
    """Raise TrainingError if ``weights_path`` lacks the weights that a fold started from, or has others."""
    there = replace(start, weights_path=weights_path).path
    if not there.is_file() or _hash_of(there) != start.sha256:
        raise TrainingError(
            f"{fold_dir} started from other weights than those of {there}, which are missing or were changed (then:"
            f" {start.path}). Set weights_path to where they are, choose another run_dir, or delete the fold's folder."
        )


def _choose_all(model: ModelConfig, held_out: Mapping[int, set[str]]) -> dict[int, Start]:
    """Find the starts of folds that hold out these patients and were not begun before."""
    path = Path(model.weights_path)
    source = open_source(path) if held_out else None
    if not source:
        return {fold: Start(str(path), "", _hash_of(path), is_known=not is_of_kit(path)) for fold in held_out}
    _check_architecture(model, source)
    seen = {number: Run(source.run_dir).trained_patients(number) for number in source.files}
    chosen = {fold: _choose(source, seen, fold, patients) for fold, patients in held_out.items()}
    return {fold: _start_of(source, number, path, seen[number]) for fold, number in chosen.items()}


def open_source(weights_path: str | Path) -> Source | None:
    """Open the run that ``weights_path`` names, or that its file is part of; return None for other files.

    Raise KitError if there is nothing, the run can't be read, or none of its folds has finished a stage.
    """
    path = Path(weights_path)
    if (path / "config.json").is_file():
        config = Run(path).config
        stages = {number: _last_stage(path / f"fold{number}", config.patch_epochs) for number in range(config.n_folds)}
        files = {number: file for number, file in stages.items() if file}
        if not files:
            raise TrainingError(f"weights_path {path}: no fold of this run is finished. Let train.ipynb finish one.")
        return Source(path, config, files)
    if not path.is_file():
        read_weights(path)  # raises what is wrong
    fold_dir = path.absolute().parent
    fold_dir = fold_dir.parent if fold_dir.name == PATCHES else fold_dir
    fold = FOLD.fullmatch(fold_dir.name)
    if not fold or not (fold_dir.parent / "config.json").is_file():
        return None
    return Source(fold_dir.parent, Run(fold_dir.parent).config, {int(fold[1]): path})


def example_file(model: ModelConfig) -> str:
    """Return a file of the weights that a network starts from, or "" if none; raise TrainingError if its run does not fit."""
    source = open_source(model.weights_path) if model.weights_path else None
    if not source:
        return model.weights_path
    _check_architecture(model, source)
    return str(next(iter(source.files.values())))


def describe_start(start: Start, fold: int) -> str:
    """Return a sentence on what a fold starts from, with a warning if the patients whom it saw are unknown."""
    if start.is_known:
        return f"Fold {fold} starts from {start.path}."
    return (
        f"Fold {fold} starts from {start.path}, which this kit trained on unknown patients: their predictions may not be out of"
        " fold. Set weights_path to the folder of its run instead, if there is one."
    )


def _last_stage(fold_dir: Path, patch_epochs: int) -> Path | None:
    """Return the weights of a fold's last finished stage; those of whole images change until ``oof.csv`` exists."""
    weights, patches = fold_dir / WEIGHTS, fold_dir / PATCHES / WEIGHTS
    if weights.is_file() and (fold_dir / "oof.csv").is_file():
        return weights
    history = patches.with_name("history.csv")
    is_finished = patches.is_file() and history.is_file() and len(read_history_table(history)) >= patch_epochs > 0
    return patches if is_finished else None


def _check_architecture(model: ModelConfig, source: Source) -> None:
    """Raise TrainingError if a source lacks an encoder of the new network; the plain CNN of ``rnn`` starts from scratch."""
    has, wanted = source.config.model.encoder_names, model.encoder_names
    if model.architecture == "rnn":
        wanted = [name for name in wanted if name != "cnn"]
    missing = [name for name in wanted if name not in has]
    if missing or not wanted:
        raise TrainingError(
            f"weights_path {source.run_dir} is a run of {', '.join(has)}: it has no {', '.join(missing) or 'network of timm'},"
            f" which {model.architecture} would start from. Choose the architecture {has[-1]}, or weights of another run."
        )


def _choose(source: Source, seen: Mapping[int, set[str]], fold: int, held_out: set[str]) -> int:
    """Return the source's fold of the same number, else the next one, that saw no held-out patient."""
    shared = {number: sorted(seen[number] & held_out) for number in source.files}
    free = [number for number in shared if not shared[number]]
    if free:
        return min(free, key=lambda number: (number - fold) % source.config.n_folds)
    number = min(shared, key=lambda number: len(shared[number]))
    config = source.config
    raise LeakError(
        f"weights_path {source.run_dir}: no network there may start fold {fold}. Even that of its fold{number}, or one that it"
        f" started from, was trained on {len(shared[number])} of the {len(held_out)} patients whom fold {fold} holds out, first"
        f" {', '.join(shared[number][:SHOWN])}. {_advice(source, fold)} split the patients as that run did"
        f" (n_folds {config.n_folds}, seed {config.seed}, fold_by {config.fold_by}, the same images)."
    )


def _advice(source: Source, fold: int) -> str:
    if fold < source.config.n_folds and fold not in source.files:
        return f"Let train.ipynb finish fold{fold} there, or give the folder of the run if you named a file of it;"
    return "Set weights_path to other weights, or"


def _start_of(source: Source, number: int, weights_path: Path, seen: set[str]) -> Start:
    path, before = source.files[number], read_start(source.run_dir / f"fold{number}")
    file = "" if path == weights_path else path.relative_to(weights_path).as_posix()
    is_known = before.is_known if before else not source.config.model.weights_path  # earlier versions wrote no start.json
    return Start(str(weights_path), file, _hash_of(path), tuple(sorted(seen)), is_known)


def _hash_of(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TrainingError(f"weights_path {path} can't be read ({error.strerror}). Correct the path.") from error
