"""Train one configuration over k folds: one way for all architectures, resumable after every epoch."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from torch import nn

from utils.core.environment import remove_leftovers, write_csv
from utils.core.formats import naming
from utils.images.boxes import to_picture, to_source
from utils.images.cache import read_manifest
from utils.metrics.scores import sigmoid
from utils.networks.auxiliary import SIZES
from utils.networks.encoders import takes_any_size
from utils.runs.config import ModelConfig, TrainConfig, TrainingError
from utils.runs.execution import Execution
from utils.runs.folder import claim_run, collect_folds, hash_data
from utils.runs.lock import changing, training
from utils.runs.starts import Start
from utils.runs.tables import OOF_COLUMNS, PROBE_FILE, REMEDY, read_history_table
from utils.tables.boxes import CORNERS
from utils.tables.vocabulary import Vocabulary
from utils.training.augment import Augment
from utils.training.checks import NO_BOX, check_patches, check_training
from utils.training.dataset import BreastDataset, ImageDataset
from utils.training.fitting import Fitting
from utils.training.fold_weights import build_empty, check_tensors, read_vocabulary
from utils.training.patches import PatchDataset
from utils.training.processes import Ranks, joined, run_tasks, trainers_at_once
from utils.training.sources import describe_start, find_starts


def train_run(
    config: TrainConfig,
    images: pd.DataFrame,
    cache_dir: str | Path,
    run_dir: str | Path,
    execution: Execution = Execution(),  # noqa: B008  (it is frozen)
    is_phantom: bool = False,
    boxes: pd.DataFrame | None = None,
    extra: pd.DataFrame | None = None,
    smoke_test: bool = False,
) -> pd.DataFrame:
    """Train every fold of a configuration, and collect the out-of-fold predictions.

    Called again after a kill, it resumes after the last finished epoch, with the result of an uninterrupted run. Calls for
    other folds of the same run may run at the same time.

    Parameters
    ----------
    config : TrainConfig
    images : DataFrame
        A train table whose images are all in the cache.
    cache_dir, run_dir : path
    execution : Execution
    is_phantom : bool
        Noted in the run's configuration, so that no phantom model ever predicts real images.
    boxes : DataFrame, optional
        From `utils.tables.boxes.read_boxes`; for ``box_weight`` and ``patch_epochs``. They may lie in the images of ``extra``
        alone.
    extra : DataFrame, optional
        Images of other sets, from `utils.images.inputs.Inputs.extra`. They are in the training part of every fold, and nowhere
        else: not held out, not predicted, and not in the prevalence.
    smoke_test : bool
        Noted likewise: such a run tells nothing about quality.

    Returns
    -------
    DataFrame
        The out-of-fold table of all folds that are finished in ``run_dir``, as in ``oof.csv``. Where boxes are predicted,
        ``boxes.csv`` holds them, in pixels of the stored pictures.

    Raises
    ------
    TrainingError
        If the run folder holds another configuration, the cache lacks images, a fold lacks a class, extra images are not of
        other patients, ``weights_path`` is refused (`utils.training.sources.find_starts`), another process trains one of these
        folds, the loss diverges, the disk is full, or a process dies.
    LeakError
        If a column of metadata is a label, or a fold would start from weights that its patients trained.
    """
    run_dir = Path(run_dir).resolve()
    images = check_training(config, images, execution, boxes, extra)
    starts = find_starts(config, images, run_dir)
    data_hash = hash_data(images, cache_dir, boxes, extra)
    with changing(run_dir):
        claim_run(run_dir, config, images, data_hash, is_phantom, extra, smoke_test)
    if boxes is not None:
        boxes = _boxes_in_pictures(boxes, [cache_dir] if extra is None else [cache_dir, *extra.cache_dir.unique()], config)
    folds = {fold: run_dir / f"fold{fold}" for fold in config.folds or range(config.n_folds)}
    missing = {fold: fold_dir for fold, fold_dir in folds.items() if not (fold_dir / "oof.csv").is_file()}
    at_once = trainers_at_once(execution, len(missing))
    common = {"execution": execution.share_workers(at_once), "boxes": boxes, "extra": extra}
    for fold in (fold for fold in missing if fold in starts):
        print(describe_start(starts[fold], fold))
    tasks = [
        partial(fit_fold, config, images, fold, cache_dir, fold_dir, start=starts.get(fold), **common)
        for fold, fold_dir in missing.items()
    ]
    start = time.perf_counter()
    run_tasks(tasks, execution)
    _tell(run_dir, list(missing), [fold for fold in folds if fold not in missing], time.perf_counter() - start)
    with changing(run_dir):
        collect_folds(run_dir, "history.csv")
        if config.box_weight:
            collect_folds(run_dir, "boxes.csv")
        if config.fits_head:
            collect_folds(run_dir, PROBE_FILE)
        return collect_folds(run_dir, "oof.csv")


def _tell(run_dir: Path, trained: Sequence[int], found: Sequence[int], seconds: float) -> None:
    """Say which folds were trained, and which had been before."""
    if trained:
        print(f"Finished after {seconds:.0f} s: {_named(trained)}.")
    if found:
        nothing = "" if trained else "Nothing was trained. "
        again = "To train one again, delete its folder, or choose another run_dir."
        print(f"{nothing}Already finished in {run_dir}: {_named(found)}. {again}")


def _named(folds: Sequence[int]) -> str:
    return ", ".join(f"fold{fold}" for fold in folds)


def fit_fold(
    config: TrainConfig,
    images: pd.DataFrame,
    fold: int,
    cache_dir: str | Path,
    fold_dir: Path,
    execution: Execution,
    boxes: pd.DataFrame | None = None,
    extra: pd.DataFrame | None = None,
    device_number: int = 0,
    start: Start | None = None,
) -> None:
    """Train on all folds but one, predict that one, and write its rows of ``oof.csv`` into ``fold_dir``.

    Parameters
    ----------
    config : TrainConfig
    images : DataFrame
        With the column ``fold``.
    fold : int
        The held-out fold.
    cache_dir : path
    fold_dir : Path
    execution : Execution
    boxes : DataFrame, optional
        From `utils.images.boxes.to_picture`.
    extra : DataFrame, optional
        Images of other sets, trained on as well. The vocabulary has their sites and machines too: as unseen ones, they would
        teach that an unseen machine means as much cancer as those sets have.
    device_number : int
        Of the GPU, where each fold has its own.
    start : Start, optional
        Weights to start from; from `utils.training.sources.find_starts`.
    """
    inside, held_out = images[images.fold != fold], images[images.fold == fold]
    if held_out.cancer.nunique() < 2:
        print(
            f"Fold {fold} holds out breasts of one class alone: it has no AUC, and keeps its epoch of lowest loss. Fewer folds"
            " would have both classes in each."
        )
    if extra is not None:
        inside = pd.concat([inside.assign(cache_dir=str(cache_dir)), extra], ignore_index=True)
    vocabulary = Vocabulary.from_images(inside)
    training_set = make_dataset(config, inside, cache_dir, "train", vocabulary, Augment(config.augment_strength), boxes)
    validation_set = make_dataset(config, held_out, cache_dir, "train", vocabulary, boxes=boxes)
    with joined(device_number) as ranks, _alone(ranks, fold_dir) as ranks:
        if ranks.gather((fold_dir / "oof.csv").is_file())[0]:
            if ranks.is_first:
                print(f"Fold {fold}: another process has finished it in the meantime.")
            return
        if start:
            config = replace(config, model=replace(config.model, weights_path=str(start.path)))
            if ranks.is_first:
                start.write(fold_dir)
        parts = (training_set, validation_set, vocabulary, fold_dir, ranks, execution)
        patches = _fit_patches(config, inside, held_out, fold, cache_dir, boxes, *parts[2:]) if config.patch_epochs else None
        fitting = Fitting(config, fold, *parts, auxiliary_sizes=SIZES)
        if patches:
            fitting.start_from(patches)
        held_out_items = validation_set.items.assign(fold=fold)
        if config.fits_head:
            plain_set = make_dataset(config, inside, cache_dir, "train", vocabulary)
            probe = fitting.fit_head(plain_set)
            if probe and ranks.is_first:
                _write_oof(fold_dir / PROBE_FILE, held_out_items, probe.logits, config)
        fitting.run()
        model, _ = load_fold(config, fold_dir)
        predictions = fitting.predict(model.to(ranks.device))
        if ranks.is_first:
            ranks.lock.check()
            if predictions.boxes is not None:
                marked = held_out_items.assign(probability=sigmoid(predictions.logits))
                write_csv(fold_dir / "boxes.csv", _box_table(marked, predictions.boxes, cache_dir, config))
            _write_oof(fold_dir / "oof.csv", held_out_items, predictions.logits, config)
            fitting.checkpoint_path.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(ranks: Ranks, fold_dir: Path) -> Iterator[Ranks]:
    """Lock a fold's folder in the process that writes there, and note the lock."""
    if not ranks.is_first:
        yield ranks
        return
    with training(fold_dir) as lock:
        remove_leftovers(fold_dir)
        yield replace(ranks, lock=lock)


def _boxes_in_pictures(boxes: pd.DataFrame, cache_dirs: list[str | Path], config: TrainConfig) -> pd.DataFrame:
    """Carry boxes to the pictures of the caches of all sets."""
    settings = config.preprocessing
    placed = [to_picture(boxes, read_manifest(folder, "train", settings), settings) for folder in cache_dirs]
    placed = pd.concat(placed, ignore_index=True)
    if not len(placed):
        raise TrainingError(NO_BOX)
    return placed


def patch_model(config: TrainConfig) -> ModelConfig:
    """Network that learns patches before the whole images, with the same encoder.

    Raises
    ------
    TrainingError
        If the encoder's weights depend on the size of its images.
    """
    if not takes_any_size(config.model.architecture):
        raise TrainingError(
            f"{config.model.architecture} has other weights for patches than for images: leave patch_epochs at 0."
        )
    size = config.patch_size
    return replace(config.model, level="image", box_head=False, metadata=False, image_height=size, image_width=size)


def _fit_patches(
    config: TrainConfig,
    inside: pd.DataFrame,
    held_out: pd.DataFrame,
    fold: int,
    cache_dir: str | Path,
    boxes: pd.DataFrame,
    vocabulary: Vocabulary,
    fold_dir: Path,
    ranks: Ranks,
    execution: Execution,
) -> Path:
    """Train an encoder on patches of the fold's training images; gives its weights' file."""
    folder, size, model = fold_dir / "patches", config.patch_size, patch_model(config)
    check_patches(inside, boxes, fold)
    stage = replace(config, model=model, epochs=config.patch_epochs, patch_epochs=0, box_weight=0.0, mixup=0.0)
    stage = replace(stage, auxiliary_weight=1.0, keep_epoch="last", positive_share=None)
    training_set = PatchDataset(inside, cache_dir, vocabulary, boxes, size, Augment(config.augment_strength), config.seed)
    validation_set = PatchDataset(held_out, cache_dir, vocabulary, boxes, size, None, config.seed)
    if not (folder / "history.csv").is_file() or len(read_history_table(folder / "history.csv")) < stage.epochs:
        parts = (training_set, validation_set, vocabulary, folder, ranks, execution)
        fitting = Fitting(stage, fold, *parts, auxiliary_sizes=training_set.auxiliary_sizes)
        fitting.run()
        fitting.checkpoint_path.unlink(missing_ok=True)
    return folder / "weights.safetensors"


def make_dataset(
    config: TrainConfig,
    images: pd.DataFrame,
    cache_dir: str | Path,
    split: str,
    vocabulary: Vocabulary,
    augment: Augment | None = None,
    boxes: pd.DataFrame | None = None,
) -> ImageDataset:
    """Make the data set that a model reads: of images or of breasts."""
    arguments = (images, cache_dir, split, vocabulary, augment, config.seed)
    if config.model.item == "image":
        return ImageDataset(*arguments, boxes=boxes)
    return BreastDataset(*arguments, max_views=config.max_views)


def load_fold(config: TrainConfig, fold_dir: str | Path) -> tuple[nn.Module, Vocabulary]:
    """Load a fold's network and the vocabulary that it was trained with.

    Raises
    ------
    TrainingError
        If the weights are missing or broken, or are those of another network; names the file and the remedy.
    """
    path = Path(fold_dir) / "weights.safetensors"
    if not path.is_file():
        raise TrainingError(f"{path} is missing: let train.ipynb finish this run, or leave it out of run_dirs.")
    vocabulary = read_vocabulary(path)
    with naming(path.parent.parent / "config.json", TrainingError, REMEDY):
        model = build_empty(config.model, vocabulary)
    check_tensors(path, model.state_dict())
    model.load_state_dict(safetensors.torch.load_file(path))
    return model.to(memory_format=torch.channels_last), vocabulary


def _write_oof(path: Path, items: pd.DataFrame, logits: np.ndarray, config: TrainConfig) -> None:
    """Write the predictions of a fold's held-out items."""
    items = items.assign(logit=logits, probability=sigmoid(logits))
    if config.model.item != "image":
        items["image_id"] = ""
    write_csv(path, items[OOF_COLUMNS].reset_index(drop=True))


def _box_table(items: pd.DataFrame, boxes: np.ndarray, cache_dir: str | Path, config: TrainConfig) -> pd.DataFrame:
    table = items[["image_id", "fold", "probability"]].assign(**dict(zip(CORNERS, boxes.T, strict=True)))
    return to_source(table, read_manifest(cache_dir, "train", config.preprocessing), config.preprocessing)
