"""From out-of-fold predictions of images to one probability per breast."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from utils.baseline import metadata_oof
from utils.boxes import localisation
from utils.configuration import TrainConfig
from utils.environment import KAGGLE_INPUT, KitError, competition_folder, cpu_count, resolve, runs_dir, walk_small_folders
from utils.fold_folders import SMOKE_RUNS, is_smoke_test
from utils.formats import check
from utils.inputs import open_inputs
from utils.intervals import PatientBootstrap
from utils.leaks import read_honest_oof
from utils.models import ModelConfig
from utils.phantom import is_phantom_competition
from utils.run_tables import PROBE_FILE, read_marks, read_oof
from utils.training import train_run

SKIPPED_FOLDERS = ("runs-phantom", SMOKE_RUNS, "demo")  # runs that only show that everything works
AGGREGATIONS = ("mean", "max", "top_k", "noisy_or")
LEAST_WEIGHT, MOST_WEIGHT = 1e-6, 1e6  # of all runs together: only their ratios count


class PredictionError(KitError):
    """Runs or predictions that can't be used together; the message says what to change."""


def aggregate(predictions: pd.DataFrame, method: str = "mean", top_k: int = 2) -> pd.Series:
    """Join the predictions of a breast's images into one probability.

    Parameters
    ----------
    predictions : DataFrame
        Columns prediction_id and probability, one row per image (or per breast).
    method : {"mean", "max", "top_k", "noisy_or"}
        ``top_k`` is the mean of the ``top_k`` highest; of all where a breast has fewer. ``noisy_or`` is the probability that at
        least one image shows cancer, were they independent: ``1 - prod(1 - p)``.
    top_k : int

    Returns
    -------
    Series
        Probability in [0, 1], indexed by prediction_id in order of first appearance.
    """
    if method not in AGGREGATIONS:
        raise PredictionError(f"aggregation is {method!r}; choose from {', '.join(AGGREGATIONS)}.")
    if method == "noisy_or":
        missed = np.log1p(-predictions.probability.clip(upper=1 - 1e-12))
        return -np.expm1(missed.groupby(predictions.prediction_id, sort=False).sum(min_count=1)).rename("probability")
    if method == "top_k":
        predictions = predictions.sort_values("probability", ascending=False, kind="stable")
        kept = predictions.groupby("prediction_id", sort=False).head(top_k)
        means = kept.groupby("prediction_id", sort=False).probability.mean()
        return means.loc[predictions.sort_index().prediction_id.unique()]
    grouped = predictions.groupby("prediction_id", sort=False).probability
    return grouped.mean() if method == "mean" else grouped.max()


def one_image_per_breast(oof: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Keep one image of each breast, drawn at random: a fair count where the number of images tells the label."""
    shuffled = oof.sample(frac=1, random_state=seed)
    return shuffled.drop_duplicates("prediction_id").sort_index()


def oof_summary(run_dir: Path, images: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Say what a run is worth out of fold, beside what metadata alone tells, and what its encoder told before it was trained.

    All are given on all images of a breast and on one drawn at random: where the two differ much, the number of images tells
    the label, and only the second is fair. The encoder, where it started from weights, is read by a logistic regression
    (`utils.probe`): training that ends below it did harm.

    Parameters
    ----------
    run_dir : Path
    images : DataFrame
        The run's training table, with the column ``fold``.
    seed : int

    Returns
    -------
    DataFrame
        AUC with its 95 % interval, breasts and positives, one row each.
    """
    oof, metadata = read_honest_oof(run_dir), metadata_oof(images)
    metadata = metadata[metadata.fold.isin(oof.fold.unique())]
    tables = {run_dir.name: oof}
    if (run_dir / PROBE_FILE).is_file():
        tables["its encoder before training"] = read_oof(run_dir / PROBE_FILE)
    tables["metadata alone"] = metadata
    rows = {}
    for name, table in tables.items():
        rows[name] = _summary_row(table, seed)
        rows[f"{name}, one image a breast"] = _summary_row(one_image_per_breast(table, seed), seed)
    return pd.DataFrame(rows).T


def box_summary(run_dir: Path, boxes: pd.DataFrame) -> pd.DataFrame:
    """Say how well a run's boxes, predicted out of fold, lie on the true ones.

    Parameters
    ----------
    run_dir : Path
        Of a run with a box head.
    boxes : DataFrame
        From `utils.boxes.read_boxes`.

    Returns
    -------
    DataFrame
        One row; see `utils.boxes.localisation`.
    """
    return pd.DataFrame({run_dir.name: localisation(read_marks(run_dir), boxes)}).T


def _summary_row(table: pd.DataFrame, seed: int) -> dict:
    breasts = table.drop_duplicates("prediction_id").set_index("prediction_id")
    probability = aggregate(table).loc[breasts.index]
    auc = PatientBootstrap(breasts.patient_id, seed=seed).auc(breasts.cancer, probability)
    return {"AUC [95 %]": str(auc), "breasts": len(breasts), "positives": int(breasts.cancer.sum())}


def find_runs(run_dirs: str | Sequence[str] | None = None) -> list[Path]:
    """Find finished runs: those named, else all real ones under the working folder and, on Kaggle, the attached inputs.

    A run is not real if it was a smoke test, or lies in one of `SKIPPED_FOLDERS`.

    Parameters
    ----------
    run_dirs : str, sequence of str, or None
        Folders, as a list or as one text with commas between.

    Returns
    -------
    list of Path
        Each holds an ``oof.csv``; empty only if nothing was named and nothing found.

    Raises
    ------
    PredictionError
        If a named folder holds no finished run.
    """
    if not run_dirs:
        return [run for root in (runs_dir(), KAGGLE_INPUT) for run in _runs_under(root) if not _is_marked_as_smoke_test(run)]
    names = run_dirs.split(",") if isinstance(run_dirs, str) else run_dirs
    runs = [resolve(name.strip()) for name in names]
    for run in runs:
        if not (run / "oof.csv").is_file():
            raise PredictionError(f"{run} holds no finished run (no oof.csv): let train.ipynb finish it, or leave it out.")
    return runs


def _is_marked_as_smoke_test(run: Path) -> bool:
    with contextlib.suppress(ValueError, OSError):  # what reads the run refuses it
        return is_smoke_test(run)
    return False


def _runs_under(root: Path) -> list[Path]:
    """List finished runs under a folder."""
    return folders_with({"oof.csv", "config.json"}, root)


def folders_with(wanted: set[str], root: Path) -> list[Path]:
    """List folders that hold some files; not of runs that only show that everything works."""
    found = []
    for folder, names, files in walk_small_folders(root):
        names[:] = [name for name in names if name not in SKIPPED_FOLDERS]
        if wanted <= set(files):
            found.append(folder)
    return sorted(found)


def has_real_data(competition_dir: str | Path = "") -> bool:
    """Whether the competition that is named, else the one that is found, is real: not a phantom."""
    folder = competition_folder(competition_dir)
    return folder is not None and not is_phantom_competition(folder)


def find_or_train_runs(
    run_dirs: str | Sequence[str] | None = None, smoke_test: bool = False, competition_dir: str | Path = ""
) -> list[Path]:
    """Find finished runs; where there is none and no real competition's data either, train a small one on the phantom.

    Raises
    ------
    PredictionError
        If there is real data, but no finished run.
    """
    runs = find_runs(run_dirs) if run_dirs or not smoke_test else []
    for_show = smoke_test or not has_real_data(competition_dir)
    if not runs and for_show:
        runs = _runs_under(runs_dir(is_phantom=True, smoke_test=smoke_test))
    if runs:
        return runs
    if not for_show:
        raise PredictionError(f"No finished run under {runs_dir()}: run train.ipynb first, or name run_dirs.")
    print("No finished run found: training a small plain CNN on the phantom competition, as an example.")
    inputs = open_inputs(None, smoke_test=smoke_test)
    images, manifest = inputs.cached("train", cpu_count())
    model = ModelConfig("cnn", inputs.settings.image_height, inputs.settings.image_width)
    quick = {"n_folds": 2, "epochs": 1 if smoke_test else 5, "batch_size": 8, "learning_rate": 1e-3, "positive_share": 0.5}
    config = TrainConfig(model, inputs.settings, **quick)
    run_dir = runs_dir(inputs.is_phantom, smoke_test) / "cnn-example"
    usable = images[(manifest.error == "").to_numpy()]
    train_run(config, usable, inputs.cache_dir, run_dir, is_phantom=inputs.is_phantom, smoke_test=smoke_test)
    return [run_dir]


def oof_of_runs(
    run_dirs: Sequence[Path], aggregation: str = "mean", weights: Sequence[float] | None = None, one_image: bool = False
) -> pd.DataFrame:
    """Average the out-of-fold probabilities of runs, one row per breast.

    Parameters
    ----------
    run_dirs : sequence of Path
    aggregation : str
        See `aggregate`.
    weights : sequence of float, optional
        Of the runs; all alike if None.
    one_image : bool
        Count one random image of each breast, where the number of images tells the label.

    Returns
    -------
    DataFrame
        Columns prediction_id, patient_id, fold, cancer, probability; ``fold`` is the first run's.

    Raises
    ------
    PredictionError
        If the runs did not predict the same breasts, or `check_weights` refuses the weights.
    LeakError
        If a prediction is not out of fold.
    """
    if weights is not None:
        check_weights(weights, len(run_dirs))
    tables = [_breasts_of(run, aggregation, one_image) for run in run_dirs]
    first = tables[0]
    for run, table in zip(run_dirs, tables, strict=True):
        if set(table.index) != set(first.index):
            raise PredictionError(
                f"{run} predicted {len(table)} breasts, {run_dirs[0]} {len(first)}, and not the same ones: name run_dirs"
                " of one data set, with all their folds finished."
            )
    columns = np.stack([table.probability.loc[first.index] for table in tables])
    return first.assign(probability=np.average(columns, axis=0, weights=weights)).reset_index()


def _breasts_of(run_dir: Path, aggregation: str, one_image: bool) -> pd.DataFrame:
    oof = read_honest_oof(run_dir)
    oof = one_image_per_breast(oof) if one_image else oof
    breasts = oof.drop_duplicates("prediction_id").set_index("prediction_id")[["patient_id", "fold", "cancer"]]
    return breasts.assign(probability=aggregate(oof, aggregation))


def check_weights(weights: Sequence[float], n_runs: int) -> None:
    """Refuse weights of runs that can't be averaged with.

    Raises
    ------
    PredictionError
        If they are not as many as the runs, one is negative or not finite, or all are 0.
    """
    check(len(weights) == n_runs, "weights", weights, f"as many as runs ({n_runs})", PredictionError)
    wanted = f"numbers of 0 or more, with a sum from {LEAST_WEIGHT} to {MOST_WEIGHT:.0f}"
    holds = all(weight >= 0 for weight in weights) and LEAST_WEIGHT <= sum(weights) <= MOST_WEIGHT
    check(holds, "weights", weights, wanted, PredictionError)


def name_runs(run_dirs: Sequence[Path]) -> dict[str, Path]:
    """Name runs by their folders; by more of the path where two folders have the same name."""
    names = [run.name for run in run_dirs]
    return {run.name if names.count(run.name) == 1 else str(run): run for run in run_dirs}
