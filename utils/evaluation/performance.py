"""The performance of a run, with intervals: the paper's figures and those of screening programmes."""

from pathlib import Path

import numpy as np
import pandas as pd

from utils.metrics.intervals import Interval, PatientBootstrap, proportion
from utils.metrics.scores import decide
from utils.metrics.thresholds import CHOICES, cut_bins, cut_points, nested_decisions
from utils.runs.run import Run


def performance(breasts: pd.DataFrame, decisions: np.ndarray) -> dict[str, Interval]:
    """Compute accuracy, AUC, precision, recall and F1, as in the paper, with 95 % intervals.

    Shares of breasts have Wilson's interval, AUC and F1 that of a bootstrap over patients.

    Parameters
    ----------
    breasts : DataFrame
        Columns patient_id, cancer, probability.
    decisions : array-like of shape (n,)
        0 or 1.
    """
    labels, decisions = breasts.cancer.to_numpy(), np.asarray(decisions)
    bootstrap = PatientBootstrap(breasts.patient_id)
    hits = int((labels & decisions).sum())
    return {
        "accuracy": proportion((labels == decisions).sum(), len(labels)),
        "AUC": bootstrap.auc(labels, breasts.probability),
        "precision": proportion(hits, decisions.sum()),
        "recall": proportion(hits, labels.sum()),
        "F1": bootstrap.pf1(labels, decisions),
    }


def paper_table(
    runs: dict[str, Path], held_out: dict[str, pd.DataFrame], trained: dict[str, pd.DataFrame], choice: str = "plateau"
) -> pd.DataFrame:
    """Tabulate each run as the paper does: on held-out breasts, and on breasts that trained it.

    Parameters
    ----------
    runs : dict
        Name to run folder.
    held_out : dict
        Name to out-of-fold breasts, from `utils.runs.oof.oof_of_runs`.
    trained : dict
        Name to breasts from `utils.evaluation.training_rows.predict_training_rows`; may lack runs.
    choice : {"plateau", "maximum"}
        How to choose the threshold.

    Returns
    -------
    DataFrame
        One row per run and kind of rows. Held-out rows are decided with the other folds' threshold, training rows with
        the threshold of all held-out ones.

    References
    ----------
    Gudur et al. 2024 report accuracy, AUC, precision, recall and F1 of CNN, RNN and ResNet50 on train and test, at 256
    and 512.
    """
    rows = []
    for name, run in runs.items():
        model, oof = Run(run).config.model, held_out[name]
        about = {"run": name, "architecture": model.architecture, "image size": f"{model.image_height} × {model.image_width}"}
        tables = {"held out": (oof, nested_decisions(oof.cancer, oof.probability, oof.fold, CHOICES[choice]))}
        if name in trained:
            threshold = CHOICES[choice](oof.cancer, oof.probability)
            tables["trained on"] = trained[name], decide(trained[name].probability, threshold)
        for kind, (table, decisions) in tables.items():
            found = {figure: str(interval) for figure, interval in performance(table, decisions).items()}
            rows.append(about | {"rows": kind, "breasts": len(table), "positives": int(table.cancer.sum())} | found)
    return pd.DataFrame(rows)


def screening_figures(breasts: pd.DataFrame, decisions: np.ndarray, seed: int = 0) -> pd.DataFrame:
    """Compute the figures that screening programmes report, with 95 % intervals.

    Parameters
    ----------
    breasts : DataFrame
        Columns patient_id, cancer, probability.
    decisions : array-like of shape (n,)
        0 or 1, at the threshold.

    Returns
    -------
    DataFrame
        Indexed by figure: value with interval, and its meaning.
    """
    labels, decisions = breasts.cancer.to_numpy(), np.asarray(decisions)
    sensitivity_at, specificity_at = _operating_points(breasts, seed)
    hits = int((labels & decisions).sum())
    per_thousand = proportion(hits, len(labels))
    rows = {
        "sensitivity at 90 % specificity": (sensitivity_at, "cancers found if one in ten healthy breasts is called back"),
        "specificity at 90 % sensitivity": (specificity_at, "healthy breasts left alone if nine in ten cancers are found"),
        "recall rate": (proportion(decisions.sum(), len(labels)), "breasts called back at the threshold"),
        "cancers found per breast": (per_thousand, "at the threshold; times 1,000, the detection rate per 1,000 breasts"),
        "positive predictive value": (proportion(hits, decisions.sum()), "share of the called-back breasts that have cancer"),
        "missed": (proportion(labels.sum() - hits, labels.sum()), "cancers that are not called back"),
    }
    table = {name: {"value [95 %]": str(interval), "what it says": meaning} for name, (interval, meaning) in rows.items()}
    return pd.DataFrame(table).T.rename_axis("figure")


def _operating_points(breasts: pd.DataFrame, seed: int) -> tuple[Interval, Interval]:
    """Return sensitivity at 90 % specificity, and specificity at 90 % sensitivity, on the ROC curve of each draw."""
    labels, probabilities = breasts.cancer.to_numpy(dtype=float), breasts.probability.to_numpy()
    cuts = cut_points(probabilities)
    bins = cut_bins(probabilities, cuts)
    bootstrap = PatientBootstrap(breasts.patient_id, seed=seed)
    once, drawn = [], []
    for column in (labels, 1 - labels):
        once.append(np.bincount(bins, column, len(cuts))[None])
        drawn.append(bootstrap.histograms(bins, len(cuts), column))
    values, draws = _read_roc(*once), _read_roc(*drawn)
    return tuple(bootstrap.interval(value.item(), column) for value, column in zip(values, draws, strict=True))


def _read_roc(positives: np.ndarray, negatives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return sensitivity at 90 % specificity, and the reverse, from counts by falling probability: (draws, bins) each."""
    true, false = _shares(positives), _shares(negatives)
    # Read from the curve's other end, the share of missed cancers rises with the specificity.
    return _highest(true, false, 0.1), _highest(1 - false[:, ::-1], 1 - true[:, ::-1], 1 - 0.9)


def _shares(counts: np.ndarray) -> np.ndarray:
    """Return cumulative sums of counts as shares of their total, starting at 0: (draws, bins + 1); NaN if the total is 0."""
    sums = np.cumsum(counts, axis=1)
    with np.errstate(invalid="ignore"):
        return np.pad(sums, ((0, 0), (1, 0))) / sums[:, -1:]


def _highest(y: np.ndarray, x: np.ndarray, at: float) -> np.ndarray:
    """Return the highest ``y`` of each row's rising curve at ``x = at``, linear between points; NaN if it has NaN."""
    found = [np.interp(at, a, b) for a, b in zip(x, y, strict=True)]
    return np.where(np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1), found, np.nan)


def confusion(breasts: pd.DataFrame, decisions: np.ndarray) -> pd.DataFrame:
    """Count breasts by label and decision."""
    decided = pd.Series(np.asarray(decisions)).map({0: "left alone", 1: "called back"}).to_numpy()
    table = pd.crosstab(breasts.cancer.map({0: "no cancer", 1: "cancer"}).to_numpy(), decided)
    return table.reindex(index=["cancer", "no cancer"], columns=["called back", "left alone"], fill_value=0).rename_axis(
        "label"
    )
