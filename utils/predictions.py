"""From out-of-fold predictions of images to one probability per breast and a tuned threshold."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from utils.baseline import metadata_oof
from utils.boxes import localisation
from utils.configuration import TrainConfig
from utils.environment import KAGGLE_INPUT, KitError, cpu_count, find_competition, read_json, resolve, runs_dir, working_dir
from utils.inputs import open_inputs
from utils.metrics import Interval, auc_interval, best_threshold, nested_decisions, pf1_interval
from utils.models import ModelConfig
from utils.run_folder import read_oof
from utils.training import train_run

SKIPPED_FOLDERS = ("runs-phantom", "runs-smoke", "demo")  # runs that only show that everything works
AGGREGATIONS = ("mean", "max", "top_k")


class PredictionError(KitError):
    """Runs or predictions that can't be used together; the message says what to change."""


def aggregate(predictions: pd.DataFrame, method: str = "mean", top_k: int = 2) -> pd.Series:
    """Join the predictions of a breast's images into one probability.

    Parameters
    ----------
    predictions : DataFrame
        Columns prediction_id and probability, one row per image (or per breast).
    method : {"mean", "max", "top_k"}
        ``top_k`` is the mean of the ``top_k`` highest; of all where a breast has fewer.
    top_k : int

    Returns
    -------
    Series
        Probability in [0, 1], indexed by prediction_id in order of first appearance.
    """
    if method not in AGGREGATIONS:
        raise PredictionError(f"aggregation is {method!r}; choose from {', '.join(AGGREGATIONS)}.")
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
    """Say what a run is worth out of fold, beside what metadata alone tells.

    Both are given on all images of a breast and on one drawn at random: where the two differ much, the number of images tells
    the label, and only the second is fair.

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
    oof, metadata = read_oof(run_dir / "oof.csv"), metadata_oof(images)
    metadata = metadata[metadata.fold.isin(oof.fold.unique())]
    tables = {
        run_dir.name: oof,
        f"{run_dir.name}, one image a breast": one_image_per_breast(oof, seed),
        "metadata alone": metadata,
        "metadata alone, one image a breast": one_image_per_breast(metadata, seed),
    }
    return pd.DataFrame({name: _summary_row(table, seed) for name, table in tables.items()}).T


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
    predicted = pd.read_csv(run_dir / "boxes.csv", dtype={"image_id": str})
    return pd.DataFrame({run_dir.name: localisation(predicted, boxes)}).T


def _summary_row(table: pd.DataFrame, seed: int) -> dict:
    breasts = table.drop_duplicates("prediction_id").set_index("prediction_id")
    probability = aggregate(table).loc[breasts.index]
    auc = auc_interval(breasts.cancer, probability, breasts.patient_id, seed)
    return {"AUC [95 %]": str(auc), "breasts": len(breasts), "positives": int(breasts.cancer.sum())}


def find_runs(run_dirs: str | Sequence[str] | None = None) -> list[Path]:
    """Find finished runs: those named, else all real ones under the working folder and, on Kaggle, the attached inputs.

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
        return [run for root in (runs_dir(), KAGGLE_INPUT) for run in _runs_under(root)]
    names = run_dirs.split(",") if isinstance(run_dirs, str) else run_dirs
    runs = [resolve(name.strip()) for name in names]
    for run in runs:
        if not (run / "oof.csv").is_file():
            raise PredictionError(f"{run} holds no finished run (no oof.csv): let train.ipynb finish it, or leave it out.")
    return runs


def _runs_under(root: Path) -> list[Path]:
    """List finished runs under a folder, without walking through a competition's thousands of patients."""
    found = []
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if not name.endswith("_images") and name not in SKIPPED_FOLDERS]
        if {"oof.csv", "config.json"} <= set(files):
            found.append(Path(folder))
    return sorted(found)


def find_or_train_runs(run_dirs: str | Sequence[str] | None = None, smoke_test: bool = False) -> list[Path]:
    """Find finished runs; where there is none and no competition's data either, train a small one on the phantom.

    Raises
    ------
    PredictionError
        If there is data, but no finished run.
    """
    runs = find_runs(run_dirs) if run_dirs or not smoke_test else []
    if not runs and (smoke_test or not find_competition()):
        runs = _runs_under(runs_dir(is_phantom=True, smoke_test=smoke_test))
    if runs:
        return runs
    if find_competition() and not smoke_test:
        raise PredictionError(f"No finished run under {runs_dir()}: run train.ipynb first, or name run_dirs.")
    print("No finished run found: training a small plain CNN on the phantom competition, as an example.")
    inputs = open_inputs(None, smoke_test=smoke_test)
    images, manifest = inputs.cached("train", cpu_count())
    model = ModelConfig("cnn", inputs.settings.image_height, inputs.settings.image_width)
    quick = {"n_folds": 2, "epochs": 1 if smoke_test else 5, "batch_size": 8, "learning_rate": 1e-3, "positive_share": 0.5}
    config = TrainConfig(model, inputs.settings, **quick)
    run_dir = runs_dir(inputs.is_phantom, smoke_test) / "cnn-example"
    train_run(config, images[(manifest.error == "").to_numpy()], inputs.cache_dir, run_dir, is_phantom=inputs.is_phantom)
    return [run_dir]


def find_threshold(runs: Sequence[Path], threshold_path: str = "") -> dict:
    """Read threshold.json where it is for these runs; else tune now, with the defaults.

    Raises
    ------
    PredictionError
        If the named file does not exist, or was tuned on other runs.
    """
    path = resolve(threshold_path) if threshold_path else working_dir() / "threshold.json"
    if not path.is_file():
        if threshold_path:
            raise PredictionError(f"threshold_path {path} does not exist: run tune_threshold.ipynb first.")
        print("No threshold.json: tuning on these runs' out-of-fold predictions now.")
        return tune(runs)
    tuned = read_json(path)
    # By content: paths differ from one Kaggle notebook to the next.
    if sorted(tuned["oof_hashes"]) == sorted(_hash_oof(run) for run in runs):
        return tuned
    if threshold_path:
        tuned_on = ", ".join(tuned["runs"])
        raise PredictionError(
            f"{path} was tuned on {tuned_on}, or before they changed: run tune_threshold.ipynb with these run_dirs."
        )
    print(f"{path} was tuned on other runs, or before these changed: tuning on these now.")
    return tune(runs)


def runs_to_submit(run_dirs: str = "", threshold_path: str = "", smoke_test: bool = False) -> list[Path]:
    """Runs that are named; else those that the threshold was tuned on, where they are still there; else all."""
    path = resolve(threshold_path) if threshold_path else working_dir() / "threshold.json"
    if not run_dirs and path.is_file():
        tuned = [Path(run) for run in read_json(path)["runs"]]
        if all((run / "oof.csv").is_file() for run in tuned):
            return tuned
    return find_or_train_runs(run_dirs, smoke_test)


def oof_of_runs(run_dirs: Sequence[Path], aggregation: str = "mean") -> pd.DataFrame:
    """Average the out-of-fold probabilities of runs, one row per breast.

    Returns
    -------
    DataFrame
        Columns prediction_id, patient_id, fold, cancer, probability; ``fold`` is the first run's.

    Raises
    ------
    PredictionError
        If the runs did not predict the same breasts.
    """
    first = read_oof(run_dirs[0] / "oof.csv")
    breasts = first.drop_duplicates("prediction_id").set_index("prediction_id")[["patient_id", "fold", "cancer"]]
    columns = [aggregate(read_oof(run / "oof.csv"), aggregation) for run in run_dirs]
    for run, column in zip(run_dirs, columns, strict=True):
        if set(column.index) != set(breasts.index):
            raise PredictionError(
                f"{run} predicted {len(column)} breasts, {run_dirs[0]} {len(breasts)}, and not the same ones: name run_dirs"
                " of one data set, with all their folds finished."
            )
    breasts["probability"] = pd.concat(columns, axis=1).mean(axis=1)
    return breasts.reset_index()


def tune(run_dirs: Sequence[Path], aggregation: str = "mean", seed: int = 0) -> dict:
    """Choose the threshold of one or several averaged runs on their out-of-fold predictions.

    Returns
    -------
    dict
        As in ``threshold.json``: threshold, aggregation, pf1 (naive: tuned and measured on the same data), pf1_nested (each
        fold decided with the others' threshold) with its 95 % interval, auc with its interval, and the runs.
    """
    oof = oof_of_runs(run_dirs, aggregation)
    threshold, pf1 = best_threshold(oof.cancer, oof.probability)
    nested = nested_decisions(oof.cancer, oof.probability, oof.fold)
    return {
        "threshold": threshold,
        "aggregation": aggregation,
        "pf1": pf1,
        "pf1_nested": _plain(pf1_interval(oof.cancer, nested, oof.patient_id, seed)),
        "auc": _plain(auc_interval(oof.cancer, oof.probability, oof.patient_id, seed)),
        "breasts": len(oof),
        "positives": int(oof.cancer.sum()),
        "prevalence": float(oof.cancer.mean()),
        "runs": [str(run) for run in run_dirs],
        "oof_hashes": [_hash_oof(run) for run in run_dirs],
    }


def describe_tuned(tuned: dict) -> pd.DataFrame:
    """Show threshold.json as a table, its intervals as text."""
    rows = {}
    for key, value in tuned.items():
        if isinstance(value, dict):  # None, JSON's for "undefined", reads as NaN
            value = str(Interval(**{name: np.nan if number is None else number for name, number in value.items()}))
        rows[key] = ", ".join(value) if isinstance(value, list) else value
    return pd.Series(rows).to_frame("value")


def name_runs(run_dirs: Sequence[Path]) -> dict[str, Path]:
    """Name runs by their folders; by more of the path where two folders have the same name."""
    names = [run.name for run in run_dirs]
    return {run.name if names.count(run.name) == 1 else str(run): run for run in run_dirs}


def _hash_oof(run_dir: Path) -> str:
    return hashlib.sha256((run_dir / "oof.csv").read_bytes()).hexdigest()[:12]


def _plain(interval: Interval) -> dict:
    return {key: None if np.isnan(value) else value for key, value in asdict(interval).items()}
