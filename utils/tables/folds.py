"""Cross-validation folds that never split a patient."""

import warnings

import pandas as pd

from utils.tables.breasts import by_breast
from utils.tables.strict_csv import TableError

FOLD_BY = ("patient", "machine")
MOST_FOLDS = 1000


def assign_folds(images: pd.DataFrame, n_folds: int, seed: int, fold_by: str = "patient") -> pd.DataFrame:
    """Add an integer column ``fold`` that never splits a patient.

    By patient, folds are stratified by the patient's number of positive breasts (0, 1 or 2) and site, which balances breasts,
    positives and sites.

    Parameters
    ----------
    images : DataFrame
        A train table as from `read_images`.
    n_folds : int
        From 2 to the number of patients, or of groups of machines.
    fold_by : {"patient", "machine"}
        ``machine`` never splits a machine either, which shows what a model is worth on a new machine. Machines that share a
        patient stay together, positives are as balanced as that allows, and ``seed`` has no effect.

    Returns
    -------
    DataFrame
        A copy of ``images`` with ``fold`` in ``range(n_folds)``.

    Raises
    ------
    TableError
        If ``n_folds`` is out of range, or ``fold_by`` is unknown.
    """
    if fold_by not in FOLD_BY:
        raise TableError(f"fold_by is {fold_by!r}; choose from {', '.join(FOLD_BY)}.")
    folds = _by_machine(images, n_folds) if fold_by == "machine" else _by_patient(images, n_folds, seed)
    return images.assign(fold=folds)


def _by_patient(images: pd.DataFrame, n_folds: int, seed: int) -> pd.Series:
    # Late, as below: it takes 0.6 s, and each process that decodes images imports utils.tables.
    from sklearn.model_selection import StratifiedKFold

    patients = images.groupby("patient_id").agg(site_id=("site_id", "first"))
    patients["positives"] = by_breast(images).groupby("patient_id").cancer.sum()
    _check_number(n_folds, len(patients), "patients")
    # A group too small for every fold is balanced by the next one, so similar groups are neighbours.
    patients = patients.sort_values(["positives", "site_id"], kind="stable")
    stratum = patients.positives.astype(str) + " at " + patients.site_id.astype(str)
    if stratum.value_counts().max() < n_folds:  # too few patients to stratify at all
        stratum[:] = "all"
    return images.patient_id.map(_held_out(StratifiedKFold(n_folds, shuffle=True, random_state=seed), stratum))


def _by_machine(images: pd.DataFrame, n_folds: int) -> pd.Series:
    from sklearn.model_selection import StratifiedGroupKFold

    group = _joined_machines(images)
    _check_number(n_folds, group.nunique(), "groups of machines without a common patient")
    # With shuffle, scikit-learn 1.2.2 loses the stratification.
    return _held_out(StratifiedGroupKFold(n_folds), images.cancer, group)


def _check_number(n_folds: int, units: int, name: str) -> None:
    if not 2 <= n_folds <= units:
        raise TableError(f"n_folds is {n_folds}, but {units} {name} can be split into 2 to {units} folds.")


def _held_out(splitter, strata: pd.Series, groups: pd.Series | None = None) -> pd.Series:
    """Return the number of the fold that holds out each row."""
    folds = pd.Series(0, index=strata.index, dtype="int64")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for fold, (_, held_out) in enumerate(splitter.split(strata, strata, groups)):
            folds.iloc[held_out] = fold
    return folds


def _joined_machines(images: pd.DataFrame) -> pd.Series:
    """Number each image's group of machines; machines that share a patient are one group."""
    group = pd.Series(pd.factorize(images.machine_id)[0], index=images.index)
    while True:
        joined = group.groupby(images.patient_id).transform("min").groupby(images.machine_id).transform("min")
        if joined.equals(group):
            return group
        group = joined
