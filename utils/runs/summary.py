"""What a run reached out of fold, next to what can be told without training."""

from pathlib import Path

import pandas as pd

from utils.images.boxes import localisation
from utils.metrics.intervals import PatientBootstrap
from utils.runs.baseline import metadata_oof
from utils.runs.oof import aggregate, one_image_per_breast
from utils.runs.run import Run
from utils.runs.tables import PROBE_FILE, read_oof


def oof_summary(run_dir: Path, images: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Say what a run is worth out of fold, beside what metadata alone tells, and what its encoder told before it was trained.

    All are given on all images of a breast and on one drawn at random: where the two differ much, the number of images tells
    the label, and only the second is fair. The encoder, where it started from weights, is read by a logistic regression
    (`utils.training.probe`): training that ends below it did harm.

    Parameters
    ----------
    run_dir : Path
    images : DataFrame
        The run's training table.
    seed : int

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
    """Say how well a run's boxes, predicted out of fold, lie on the true ones.

    Parameters
    ----------
    run_dir : Path
        Of a run with a box head.
    boxes : DataFrame
        From `utils.tables.boxes.read_boxes`.

    Returns
    -------
    DataFrame
        One row; see `utils.images.boxes.localisation`.
    """
    return pd.DataFrame({run_dir.name: localisation(Run(run_dir).marks(), boxes)}).T


def _summary_row(table: pd.DataFrame, seed: int) -> dict:
    breasts = table.drop_duplicates("prediction_id").set_index("prediction_id")
    probability = aggregate(table).loc[breasts.index]
    auc = PatientBootstrap(breasts.patient_id, seed=seed).auc(breasts.cancer, probability)
    return {"AUC [95 %]": str(auc), "breasts": len(breasts), "positives": int(breasts.cancer.sum())}
