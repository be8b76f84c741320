"""Train one configuration over k folds, the same way for all architectures; resumable after every epoch."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from utils.core.files import remove_leftovers, write_csv
from utils.images.boxes import to_picture, to_source
from utils.images.cached import read_manifest
from utils.images.training_data import TrainingData
from utils.metrics.scores import sigmoid
from utils.networks.encoders import takes_any_size
from utils.runs.config import TrainConfig
from utils.runs.errors import TrainingError
from utils.runs.execution import Execution
from utils.runs.folder import claim_run, collect_folds, hash_data
from utils.runs.lock import changing, training
from utils.runs.run import Run
from utils.runs.starts import Start
from utils.runs.tables import OOF_COLUMNS, PROBE_FILE, read_history_table
from utils.tables.boxes import CORNERS
from utils.training.checks import NO_BOX, check_patches, check_training
from utils.training.fitting import Fitting
from utils.training.fold_data import patches, whole_images
from utils.training.fold_weights import load_fold
from utils.training.inference import Predictions
from utils.training.processes import run_tasks, trainers_at_once
from utils.training.ranks import Ranks, joined
from utils.training.sources import describe_start, find_starts


def train_run(
    config: TrainConfig,
    data: TrainingData,
    run_dir: str | Path,
    execution: Execution = Execution(),  # noqa: B008  (it is frozen)
) -> pd.DataFrame:
    """Train every fold of a configuration, and collect the out-of-fold predictions.

    A run that was killed resumes after the last finished epoch, and ends with the weights of an uninterrupted one. Calls for
    other folds of the same run may run at the same time.

    Returns
    -------
    DataFrame
        The out-of-fold table of all finished folds in ``run_dir``, as in ``oof.csv``. If boxes are predicted, ``boxes.csv``
        has them in pixels of the stored images.

    Raises
    ------
    TrainingError
        If the run folder has another configuration, the cache lacks images, a fold lacks a class, extra images share patients
        with the competition, ``weights_path`` is refused (`utils.training.sources.find_starts`), another process trains one
        of these folds, the loss diverges, the disk is full, or a process dies.
    LeakError
        If a metadata column is a label, or a fold would start from weights that its patients trained.
    """
    run_dir = Path(run_dir).resolve()
    data = check_training(config, data, execution)
    starts = find_starts(config, data.images, run_dir)
    data_hash = hash_data(data)
    with changing(run_dir):
        claim_run(run_dir, config, data, data_hash)
    if data.boxes is not None:
        data = replace(data, boxes=_boxes_in_pictures(data, config))
    folds = {fold: run_dir / f"fold{fold}" for fold in config.folds or range(config.n_folds)}
    missing = {fold: fold_dir for fold, fold_dir in folds.items() if not (fold_dir / "oof.csv").is_file()}
    for fold in (fold for fold in missing if fold in starts):
        print(describe_start(starts[fold], fold))
    shared = execution.share_workers(trainers_at_once(execution, len(missing)))
    tasks = [FoldTask(config, data, fold, fold_dir, shared, starts.get(fold)) for fold, fold_dir in missing.items()]
    start = time.perf_counter()
    run_tasks(tasks, execution)
    trained = [fold_dir.name for fold_dir in missing.values()]
    found = [fold_dir.name for fold, fold_dir in folds.items() if fold not in missing]
    _report(Run(run_dir), trained, found, time.perf_counter() - start)
    with changing(run_dir):
        collect_folds(run_dir, "history.csv")
        if config.box_weight:
            collect_folds(run_dir, "boxes.csv")
        if config.fits_head:
            collect_folds(run_dir, PROBE_FILE)
        return collect_folds(run_dir, "oof.csv")


def _report(run: Run, trained: Sequence[str], found: Sequence[str], seconds: float) -> None:
    """Print which folds were trained, which were already finished, and which are left."""
    if trained:
        print(f"Finished after {seconds:.0f} s: {', '.join(trained)}.")
    if found:
        nothing = "" if trained else "Nothing was trained. "
        again = "To train one again, delete its folder, or choose another run_dir."
        print(f"{nothing}Already finished in {run.folder}: {', '.join(found)}. {again}")
    finished = {fold_dir.name for fold_dir in run.finished_folds()}
    left = [str(fold) for fold in range(run.config.n_folds) if f"fold{fold}" not in finished]
    if left:
        print(f"Not trained yet: {len(left)} of {run.config.n_folds} folds. To train them: -p folds {','.join(left)}")


@dataclass(frozen=True)
class FoldTask:
    """Train on all folds but one, predict that one, and write its rows of ``oof.csv`` into ``fold_dir``.

    ``data`` has folds, and boxes from `utils.images.boxes.to_picture`; ``start`` is from `find_starts`. A task can be pickled.
    """

    config: TrainConfig
    data: TrainingData
    fold: int
    fold_dir: Path
    execution: Execution
    start: Start | None = None

    def __call__(self, device_number: int = 0) -> None:
        """Do it; ``device_number`` is the GPU if each fold has its own."""
        with joined(device_number) as ranks, _alone(ranks, self.fold_dir) as ranks:
            if ranks.gather((self.fold_dir / "oof.csv").is_file())[0]:
                if ranks.is_first:
                    print(f"Fold {self.fold}: another process has finished it in the meantime.")
                return
            if ranks.is_first:
                self._prepare()
            fitting = self._make_fitting(ranks)
            fitting.run()
            model, _ = load_fold(self.config, self.fold_dir)
            predictions = fitting.predict(model.to(ranks.device))
            if ranks.is_first:
                ranks.lock.check()
                self._write(fitting.data.held_out_set.items, predictions)
                fitting.checkpoint_path.unlink(missing_ok=True)

    def _prepare(self) -> None:
        """Note what the fold starts from, and warn if its held-out images are all of one class."""
        if self.data.held_out(self.fold).cancer.nunique() < 2:
            print(
                f"Fold {self.fold} holds out breasts of one class only: its AUC is undefined, so it keeps the epoch of lowest"
                " loss. With fewer folds, each would hold out both classes."
            )
        if self.start:
            self.start.write(self.fold_dir)

    def _make_fitting(self, ranks: Ranks) -> Fitting:
        """Make the training of whole images or breasts, which starts from patches or a fitted head if configured."""
        config = self.config
        if self.start:
            config = replace(config, model=replace(config.model, weights_path=str(self.start.path)))
        patch_weights = self._fit_patches(config, ranks) if config.patch_epochs else None
        fitting = Fitting(config, whole_images(config, self.data, self.fold), self.fold_dir, ranks, self.execution)
        if patch_weights:
            fitting.start_from(patch_weights)
        probe = fitting.fit_head() if config.fits_head else None
        if probe and ranks.is_first:
            self._write_oof(PROBE_FILE, fitting.data.held_out_set.items, probe.logits)
        return fitting

    def _fit_patches(self, config: TrainConfig, ranks: Ranks) -> Path:
        """Train an encoder on patches of the fold's training images; return the path of its weights."""
        folder = self.fold_dir / "patches"
        stage = patch_config(config)
        check_patches(self.data, self.fold)
        if not (folder / "history.csv").is_file() or len(read_history_table(folder / "history.csv")) < stage.epochs:
            fitting = Fitting(stage, patches(config, self.data, self.fold), folder, ranks, self.execution)
            fitting.run()
            fitting.checkpoint_path.unlink(missing_ok=True)
        return folder / "weights.safetensors"

    def _write(self, items: pd.DataFrame, predictions: Predictions) -> None:
        """Write the predictions of the held-out items; ``oof.csv`` comes last, as it marks the fold as finished."""
        if predictions.boxes is not None:
            settings = self.config.preprocessing
            table = items[["image_id"]].assign(fold=self.fold, probability=sigmoid(predictions.logits))
            table[CORNERS] = predictions.boxes
            write_csv(
                self.fold_dir / "boxes.csv", to_source(table, read_manifest(self.data.cache_dir, "train", settings), settings)
            )
        self._write_oof("oof.csv", items, predictions.logits)

    def _write_oof(self, name: str, items: pd.DataFrame, logits: np.ndarray) -> None:
        table = items.assign(fold=self.fold, logit=logits, probability=sigmoid(logits))
        if self.config.model.item != "image":
            table["image_id"] = ""
        write_csv(self.fold_dir / name, table[OOF_COLUMNS].reset_index(drop=True))


@contextlib.contextmanager
def _alone(ranks: Ranks, fold_dir: Path) -> Iterator[Ranks]:
    """Lock a fold's folder in the process that writes there, and note the lock in its ranks."""
    if not ranks.is_first:
        yield ranks
        return
    with training(fold_dir) as lock:
        remove_leftovers(fold_dir)
        yield replace(ranks, lock=lock)


def _boxes_in_pictures(data: TrainingData, config: TrainConfig) -> pd.DataFrame:
    """Map boxes to the cached images of all sets."""
    settings = config.preprocessing
    placed = [to_picture(data.boxes, read_manifest(folder, "train", settings), settings) for folder in data.cache_dirs]
    placed = pd.concat(placed, ignore_index=True)
    if not len(placed):
        raise TrainingError(NO_BOX)
    return placed


def patch_config(config: TrainConfig) -> TrainConfig:
    """Return the configuration of patch training; raise TrainingError if the encoder's weights depend on the image size."""
    if not takes_any_size(config.model.architecture):
        raise TrainingError(
            f"The weights of {config.model.architecture} depend on the size of its images: set patch_epochs to 0."
        )
    size = config.patch_size
    return replace(
        config,
        model=replace(config.model, level="image", box_head=False, metadata=False, image_height=size, image_width=size),
        epochs=config.patch_epochs,
        patch_epochs=0,
        box_weight=0.0,
        mixup=0.0,
        auxiliary_weight=1.0,
        keep_epoch="last",
        positive_share=None,
    )
