"""Refuse what would make a figure too good: patients in two folds, labels among the features, rows that trained the model."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import pandas as pd

from utils.core.environment import KitError
from utils.metrics.scores import area_under_roc
from utils.runs.folder import check_collected, finished_folds
from utils.runs.starts import read_start, start_files
from utils.runs.tables import check_predicted, read_extra_patients, read_folds, read_oof
from utils.tables.competition import SHARED_COLUMNS

TELLS_THE_LABEL = 0.99  # AUC of a single column; age and machine together reach 0.64 on the real set
IDS = ("patient_id", "image_id")
LEAST_POSITIVES = 20  # fewer may be told apart by chance
CODES = ("machine_id", "site_id")  # numbers that only name
SHOWN = 3


class LeakError(KitError):
    """Data or predictions whose figures would be too good; the message says why and what to change."""


def check_features(images: pd.DataFrame, columns: Iterable[str]) -> None:
    """Refuse features that are labels, by their name or by what they tell.

    Parameters
    ----------
    images : DataFrame
        A train table.
    columns : iterable of str
        What a model is to read beside the pictures.

    Raises
    ------
    LeakError
        If a column is not in test.csv, or tells cancer by itself on `LEAST_POSITIVES` breasts or more.
    """
    columns = list(columns)
    barred = [column for column in columns if column not in SHARED_COLUMNS or column in IDS]
    if barred:
        raise LeakError(f"{', '.join(barred)}: ids, or known from the diagnosis and not in test.csv; never features.")
    breasts = images.drop_duplicates("prediction_id")
    if min(breasts.cancer.sum(), (breasts.cancer == 0).sum()) < LEAST_POSITIVES:
        return
    for column in columns:
        auc = _alone(breasts, column)
        if auc >= TELLS_THE_LABEL:
            raise LeakError(
                f"Column {column} alone tells cancer with an AUC of {auc:.3f} in train.csv: a label is in it. Correct the"
                " column, or leave it out."
            )


def _alone(breasts: pd.DataFrame, column: str) -> float:
    """AUC of one column on the rows that it is fitted on, whichever way it points; texts and codes by their share of cancer."""
    values = breasts[column]
    if column in CODES or not pd.api.types.is_numeric_dtype(values):
        values = values.map(breasts.groupby(column).cancer.mean())
    auc = area_under_roc(breasts.cancer, values.fillna(values.min() - 1 if values.notna().any() else 0))
    return max(auc, 1 - auc)


def check_patients_whole(table: pd.DataFrame, path: str | Path) -> None:
    """Refuse folds that split a patient.

    Parameters
    ----------
    table : DataFrame
        Columns patient_id and fold.
    path : path
        Where it is from, for the message.

    Raises
    ------
    LeakError
        Naming the first patients that are in two folds.
    """
    folds = table.groupby("patient_id").fold.nunique()
    split = folds[folds > 1].index.tolist()
    if split:
        raise LeakError(
            f"{path}: {len(split)} patient(s) are in more than one fold, first {', '.join(split[:SHOWN])}. Their other images"
            " trained the model that predicts them: split by patient, and train again."
        )


def trained_patients(run_dir: str | Path, fold: int) -> set[str]:
    """Patients who trained a fold's model: those of all other folds, of extra sets, and of the runs that it started from.

    Raises
    ------
    TrainingError
        If the run does not say.
    """
    folds, start = read_folds(run_dir), read_start(Path(run_dir) / f"fold{fold}")
    inside = folds.patient_id[folds.fold != fold]
    return {*inside, *read_extra_patients(run_dir), *(start.seen if start else ())}


def check_unseen(run_dir: str | Path, fold: int, patients: Iterable[str]) -> None:
    """Refuse to score a fold's model on patients that it was trained on.

    Parameters
    ----------
    run_dir : path
    fold : int
        Whose model it is; see `trained_patients`.
    patients : iterable of str
        Those to be scored.

    Raises
    ------
    LeakError
        Naming the first that trained it.
    """
    trained = trained_patients(run_dir, fold)
    seen = [patient for patient in pd.unique(pd.Series(list(patients), dtype=object)) if patient in trained]
    if seen:
        raise LeakError(
            f"{run_dir}: the model of fold {fold} was trained on {len(seen)} of these patients, first"
            f" {', '.join(seen[:SHOWN])}. A figure on its own training rows says nothing about new ones: use oof.csv, or"
            " other patients."
        )


def read_honest_oof(run_dir: str | Path) -> pd.DataFrame:
    """Read a run's out-of-fold predictions, and check that they are.

    Returns
    -------
    DataFrame
        As from `utils.runs.tables.read_oof`.

    Raises
    ------
    TrainingError
        If oof.csv or folds.csv is broken, or they do not go together, or not with those of the folds.
    LeakError
        If a patient is in two folds, was predicted by a model that it trained, or a label differs within a breast.
    """
    path = Path(run_dir) / "oof.csv"
    files = [path, *(path.with_name(name) for name in ("folds.csv", "extra.csv"))]
    files += start_files(path.parent)
    files += [fold_dir / "oof.csv" for fold_dir in finished_folds(path.parent)]
    changed = tuple(file.stat().st_mtime_ns for file in files if file.is_file())
    return _read_checked(path, changed).copy()


@lru_cache(maxsize=16)
def _read_checked(path: Path, _changed: tuple[int, ...]) -> pd.DataFrame:
    """Read and check a run once, as long as its files do not change."""
    run_dir, oof = path.parent, read_oof(path)
    check_patients_whole(oof, path)
    for fold, rows in oof.groupby("fold"):
        check_unseen(run_dir, fold, rows.patient_id)
    labels = oof.groupby("prediction_id").cancer.nunique()
    if (labels > 1).any():
        raise LeakError(f"{path}: breast {labels.index[labels > 1][0]} has two labels. Correct train.csv, and train again.")
    check_predicted(oof, read_folds(run_dir), path)
    check_collected(run_dir, oof)
    return oof
