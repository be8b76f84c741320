"""Weights that a run starts from: a file, or another run of this kit.

Of a run, each fold takes a network that never saw the fold's patients. So stages are trained one after the other, each from the
one before: patches, whole images, another set.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from utils.networks.weights import is_of_kit, read_weights
from utils.runs.config import ModelConfig, TrainConfig, TrainingError
from utils.runs.leaks import LeakError
from utils.runs.run import FOLD, Run
from utils.runs.starts import Start, read_start, start_files
from utils.runs.tables import read_history_table

WEIGHTS = "weights.safetensors"
PATCHES = "patches"
SHOWN = 3


@dataclass(frozen=True)
class Source:
    """A run of this kit whose encoders may start another.

    Parameters
    ----------
    run_dir : Path
    config : TrainConfig
    files : mapping of int to Path
        Weights by fold, of the last stage that is finished: whole images, else patches.
    """

    run_dir: Path
    config: TrainConfig
    files: Mapping[int, Path]


def find_starts(config: TrainConfig, images: pd.DataFrame, run_dir: Path) -> dict[int, Start]:
    """Find what each fold of a run starts from.

    A fold that was begun before keeps to what it started from then; one that is finished needs nothing. Any other takes the
    source's fold of the same number if that never saw the patients whom the new fold holds out, nor did the runs that it
    started from; else another fold of which this is true.

    Parameters
    ----------
    config : TrainConfig
    images : DataFrame
        The train table, with the column ``fold``.
    run_dir : Path
        Of the new run.

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
    _check_same_source(run_dir, weights_path)
    folds = [fold for fold in config.folds or range(config.n_folds) if not (run_dir / f"fold{fold}" / "oof.csv").is_file()]
    begun = {fold: start for fold in folds if (start := read_start(run_dir / f"fold{fold}"))}
    for fold, start in begun.items():
        if not _is_there(start, weights_path):
            raise _other_weights(run_dir / f"fold{fold}", start, weights_path)
    starts = {fold: replace(start, weights_path=weights_path) for fold, start in begun.items()}
    held_out = {fold: set(images.patient_id[images.fold == fold]) for fold in folds if fold not in starts}
    return starts | _choose_all(config.model, held_out)


def _choose_all(model: ModelConfig, held_out: Mapping[int, set[str]]) -> dict[int, Start]:
    """Find what folds start from that hold out these patients and were not begun before."""
    source, path = open_source(model.weights_path) if held_out else None, Path(model.weights_path)
    if not source:
        return {fold: Start(str(path), "", _hash_of(path), is_known=not is_of_kit(path)) for fold in held_out}
    _check_architecture(model, source)
    seen = {number: Run(source.run_dir).trained_patients(number) for number in source.files}
    chosen = {fold: _choose(source, seen, fold, patients) for fold, patients in held_out.items()}
    return {fold: _start_of(source, number, path, seen[number]) for fold, number in chosen.items()}


def _check_same_source(run_dir: Path, weights_path: str) -> None:
    """Refuse to resume a run from another place, unless the weights that its folds started from lie there too."""
    if not (run_dir / "config.json").is_file() or Run(run_dir).config.model.weights_path in ("", weights_path):
        return  # to start from weights at all is another setting, which `utils.runs.folder.check_same_run` refuses
    starts = {path.parent: read_start(path.parent) for path in start_files(run_dir)}
    for fold_dir, start in starts.items():
        if not _is_there(start, weights_path):
            raise _other_weights(fold_dir, start, weights_path)
    if not starts:
        before = Run(run_dir).config.model.weights_path
        raise TrainingError(f"{run_dir} was begun with another weights_path ({before}). Choose another run_dir, or delete it.")


def _is_there(start: Start, weights_path: str) -> bool:
    """Whether a fold's weights lie in ``weights_path``, with the same content."""
    path = replace(start, weights_path=weights_path).path
    return path.is_file() and _hash_of(path) == start.sha256


def _other_weights(fold_dir: Path, start: Start, weights_path: str) -> TrainingError:
    there = replace(start, weights_path=weights_path).path
    return TrainingError(
        f"{fold_dir} started from other weights than those of {there}, which are missing or were changed (then: {start.path})."
        " Name where they are as weights_path, choose another run_dir, or delete the fold's folder."
    )


def open_source(weights_path: str | Path) -> Source | None:
    """Open the run that ``weights_path`` names, or of which it is a file; None for other files.

    Raises
    ------
    KitError
        If there is nothing, the run can't be read, or none of its folds has finished a stage.
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
        read_weights(path)  # which says what is wrong
    fold_dir = path.absolute().parent
    fold_dir = fold_dir.parent if fold_dir.name == PATCHES else fold_dir
    if not FOLD.fullmatch(fold_dir.name) or not (fold_dir.parent / "config.json").is_file():
        return None
    return Source(fold_dir.parent, Run(fold_dir.parent).config, {_number(fold_dir): path})


def check_source(model: ModelConfig) -> None:
    """Refuse a run as ``weights_path`` that lacks an encoder of a network.

    Raises
    ------
    TrainingError
        Naming the run and what it has.
    """
    source = open_source(model.weights_path)
    if source:
        _check_architecture(model, source)


def example_file(weights_path: str) -> str:
    """Give the path of one file of weights: that of a run's first fold, where a run is named."""
    source = open_source(weights_path)
    return str(next(iter(source.files.values()))) if source else weights_path


def describe_start(start: Start, fold: int) -> str:
    """Say what a fold starts from, and whether anybody knows which patients it had seen."""
    if start.is_known:
        return f"Fold {fold} starts from {start.path}."
    return (
        f"Fold {fold} starts from {start.path}, which was trained by this kit, and nothing tells on which patients: those are"
        " not out of fold in what follows. Give the folder of its run instead, if there is one."
    )


def _last_stage(fold_dir: Path, patch_epochs: int) -> Path | None:
    """Weights of a fold's last finished stage; those of whole images change until ``oof.csv`` is there."""
    weights, patches = fold_dir / WEIGHTS, fold_dir / PATCHES / WEIGHTS
    if weights.is_file() and (fold_dir / "oof.csv").is_file():
        return weights
    history = patches.with_name("history.csv")
    is_finished = patches.is_file() and history.is_file() and len(read_history_table(history)) >= patch_epochs > 0
    return patches if is_finished else None


def _check_architecture(model: ModelConfig, source: Source) -> None:
    """Refuse a source that lacks an encoder of the new network; the plain CNN of ``rnn`` always starts from scratch."""
    has, wanted = _encoders(source.config.model), _encoders(model)
    if model.architecture == "rnn":
        wanted = [name for name in wanted if name != "cnn"]
    missing = [name for name in wanted if name not in has]
    if missing or not wanted:
        raise TrainingError(
            f"weights_path {source.run_dir} is a run of {', '.join(has)}: it has no {', '.join(missing) or 'network of timm'},"
            f" which {model.architecture} would start from. Choose the architecture {has[-1]}, or weights of another run."
        )


def _encoders(model: ModelConfig) -> list[str]:
    return list(model.encoders) if model.architecture == "rnn" else [model.architecture]


def _choose(source: Source, seen: Mapping[int, set[str]], fold: int, held_out: set[str]) -> int:
    """Choose the source's fold of the same number, else the next one, that saw no patient who is held out."""
    shared = {number: sorted(seen[number] & held_out) for number in source.files}
    free = [number for number in shared if not shared[number]]
    if free:
        return min(free, key=lambda number: (number - fold) % source.config.n_folds)
    number = min(shared, key=lambda number: len(shared[number]))
    config = source.config
    raise LeakError(
        f"weights_path {source.run_dir}: no network there may start fold {fold}. Even that of its fold{number}, or one that it"
        f" started from, was trained on {len(shared[number])} of the {len(held_out)} patients whom fold {fold} holds out, first"
        f" {', '.join(shared[number][:SHOWN])}. {_advice(source, fold)} split the patients as it did"
        f" (n_folds {config.n_folds}, seed {config.seed}, fold_by {config.fold_by}, the same images)."
    )


def _advice(source: Source, fold: int) -> str:
    if fold < source.config.n_folds and fold not in source.files:
        return f"Let train.ipynb finish fold{fold} there, or give the folder of the run if you named a file of it;"
    return "Name other weights, or"


def _start_of(source: Source, number: int, weights_path: Path, seen: set[str]) -> Start:
    path, before = source.files[number], read_start(source.run_dir / f"fold{number}")
    file = "" if path == weights_path else path.relative_to(weights_path).as_posix()
    is_known = before.is_known if before else not source.config.model.weights_path  # an earlier version wrote no start.json
    return Start(str(weights_path), file, _hash_of(path), tuple(sorted(seen)), is_known)


def _number(fold_dir: Path) -> int:
    return int(fold_dir.name.removeprefix("fold"))


def _hash_of(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TrainingError(f"weights_path {path} can't be read ({error.strerror}). Correct the path.") from error
