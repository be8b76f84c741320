"""A run's out-of-fold figures, next to those reached without training."""

from pathlib import Path

import pandas as pd

from utils.images.boxes import localisation
from utils.metrics.intervals import PatientBootstrap
from utils.runs.baseline import metadata_oof
from utils.runs.oof import aggregate, one_image_per_breast
from utils.runs.run import Run
from utils.runs.tables import PROBE_FILE, read_oof
from utils.tables.breasts import by_breast


def oof_summary(run_dir: Path, images: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Compare a run's out-of-fold AUC with that of metadata alone, and with that of its encoder before training.

    Each is given on all images of a breast and on one random image. If the two differ much, the number of images predicts the
    label, and only the second is fair. An encoder that started from weights is read by a logistic regression
    (`utils.training.probe`): if the trained network is below it, training did harm.

    Parameters
    ----------
    images : DataFrame
        The run's training table.
    seed : int
        Seed of the bootstrap and of the random images.

    Returns
    -------
    DataFrame
        AUC with its 95 % interval, breasts and positives, one row each.
    """
    run = Run(run_dir)
    oof, metadata = run.oof(), metadata_oof(images.assign(fold=run.fold_of(images.patient_id)).dropna(subset=["fold"]))
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
    """Compare the boxes that a run predicted out of fold with the true ones.

    Parameters
    ----------
    run_dir : Path
        A run with a box head.
    boxes : DataFrame
        From `utils.tables.boxes.read_boxes`.

    Returns
    -------
    DataFrame
        One row; see `utils.images.boxes.localisation`.
    """
    return pd.DataFrame({run_dir.name: localisation(Run(run_dir).marks(), boxes)}).T


def _summary_row(table: pd.DataFrame, seed: int) -> dict:
    breasts = by_breast(table)
    probability = aggregate(table).loc[breasts.index]
    auc = PatientBootstrap(breasts.patient_id, seed=seed).auc(breasts.cancer, probability)
    return {"AUC [95 %]": str(auc), "breasts": len(breasts), "positives": int(breasts.cancer.sum())}
