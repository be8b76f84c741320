"""Checks against inflated figures: patients in two folds, labels among the features, scores on training rows."""

from collections.abc import Iterable, Set
from pathlib import Path

import pandas as pd

from utils.core.errors import KitError
from utils.metrics.scores import area_under_roc
from utils.tables.breasts import by_breast
from utils.tables.competition import SHARED_COLUMNS

MOST_AUC_ALONE = 0.99  # of a single column; age and machine together reach 0.64 on the real set
IDS = ("patient_id", "image_id")
LEAST_POSITIVES = 20  # with fewer, a column may separate the classes by chance
CODES = ("machine_id", "site_id")  # numbers without an order
SHOWN = 3


class LeakError(KitError):
    """Data or predictions would give too good a figure; the message gives the reason and the remedy."""


def check_features(images: pd.DataFrame, columns: Iterable[str]) -> None:
    """Refuse features that are labels, by their name or by their values.

    Parameters
    ----------
    images : DataFrame
        A train table.
    columns : iterable of str
        Columns that a model will read in addition to the images.

    Raises
    ------
    LeakError
        If a column is not in test.csv, or predicts cancer by itself with an AUC of `MOST_AUC_ALONE` or more. The AUC is tested
        only if there are `LEAST_POSITIVES` positive and as many negative breasts.
    """
    columns = list(columns)
    barred = [column for column in columns if column not in SHARED_COLUMNS or column in IDS]
    if barred:
        raise LeakError(f"{', '.join(barred)}: ids, or known from the diagnosis and not in test.csv; never features.")
    breasts = by_breast(images)
    if min(breasts.cancer.sum(), (breasts.cancer == 0).sum()) < LEAST_POSITIVES:
        return
    for column in columns:
        auc = _auc_alone(breasts, column)
        if auc >= MOST_AUC_ALONE:
            raise LeakError(
                f"Column {column} alone predicts cancer with an AUC of {auc:.3f} in train.csv: it contains the label. Correct"
                " the column, or leave it out."
            )


def _auc_alone(breasts: pd.DataFrame, column: str) -> float:
    """Return the AUC of one column in whichever direction is better; texts and codes count as their share of cancer."""
    values = breasts[column]
    if column in CODES or not pd.api.types.is_numeric_dtype(values):
        values = values.map(breasts.groupby(column).cancer.mean())
    auc = area_under_roc(breasts.cancer, values.fillna(values.min() - 1 if values.notna().any() else 0))
    return max(auc, 1 - auc)


def check_patients_whole(table: pd.DataFrame, path: str | Path) -> None:
    """Refuse a table (patient_id, fold) that has a patient in two folds; ``path`` is for the message."""
    folds = table.groupby("patient_id").fold.nunique()
    split = folds[folds > 1].index.tolist()
    if split:
        raise LeakError(
            f"{path}: {len(split)} patient(s) are in more than one fold, first {', '.join(split[:SHOWN])}. Their other images"
            " trained the model that predicts them: split by patient, and train again."
        )


def refuse_seen(patients: Iterable[str], trained: Set[str], model: str) -> None:
    """Refuse to score a model on patients who trained it; ``model`` is its name in the message."""
    seen = [patient for patient in pd.unique(pd.Series(list(patients), dtype=object)) if patient in trained]
    if seen:
        raise LeakError(
            f"{model} was trained on {len(seen)} of these patients, first {', '.join(seen[:SHOWN])}. A figure on its own"
            " training rows says nothing about new ones: use oof.csv, or other patients."
        )
