"""Refuse what would make a figure too good: patients in two folds, labels among the features, rows that trained the model."""

from collections.abc import Iterable, Set
from pathlib import Path

import pandas as pd

from utils.core.environment import KitError
from utils.metrics.scores import area_under_roc
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


def refuse_seen(patients: Iterable[str], trained: Set[str], model: str) -> None:
    """Refuse to score a model on patients that it was trained on.

    Parameters
    ----------
    patients : iterable of str
        Those to be scored.
    trained : set of str
    model : str
        What the message calls the model.

    Raises
    ------
    LeakError
        Naming the first that trained it.
    """
    seen = [patient for patient in pd.unique(pd.Series(list(patients), dtype=object)) if patient in trained]
    if seen:
        raise LeakError(
            f"{model} was trained on {len(seen)} of these patients, first {', '.join(seen[:SHOWN])}. A figure on its own"
            " training rows says nothing about new ones: use oof.csv, or other patients."
        )
