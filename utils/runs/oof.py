"""From out-of-fold predictions of images to one probability per breast."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from utils.core.formats import check
from utils.runs.errors import PredictionError
from utils.runs.run import Run
from utils.tables.breasts import by_breast

AGGREGATIONS = ("mean", "max", "top_k", "noisy_or")
TOP_K = 2
LEAST_WEIGHT, MOST_WEIGHT = 1e-6, 1e6  # bounds of the sum: only the ratios of weights count


def aggregate(predictions: pd.DataFrame, method: str = "mean") -> pd.Series:
    """Combine the predictions of a breast's images into one probability.

    Parameters
    ----------
    predictions : DataFrame
        Columns prediction_id and probability, one row per image (or per breast).
    method : {"mean", "max", "top_k", "noisy_or"}
        ``top_k`` is the mean of the `TOP_K` highest; of all if a breast has fewer. ``noisy_or`` is the probability that at
        least one image shows cancer, if they were independent: ``1 - prod(1 - p)``.

    Returns
    -------
    Series
        Probability in [0, 1], indexed by prediction_id in order of first appearance.

    Raises
    ------
    PredictionError
        If ``method`` is unknown.
    """
    if method not in AGGREGATIONS:
        raise PredictionError(f"aggregation is {method!r}; choose from {', '.join(AGGREGATIONS)}.")
    if method == "noisy_or":
        missed = np.log1p(-predictions.probability.clip(upper=1 - 1e-12))
        return -np.expm1(missed.groupby(predictions.prediction_id, sort=False).sum(min_count=1)).rename("probability")
    if method == "top_k":
        predictions = predictions.sort_values("probability", ascending=False, kind="stable")
        kept = predictions.groupby("prediction_id", sort=False).head(TOP_K)
        means = kept.groupby("prediction_id", sort=False).probability.mean()
        return means.loc[predictions.sort_index().prediction_id.unique()]
    grouped = predictions.groupby("prediction_id", sort=False).probability
    return grouped.mean() if method == "mean" else grouped.max()


def one_image_per_breast(oof: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Keep one random image of each breast: a fair count if the number of images predicts the label."""
    shuffled = oof.sample(frac=1, random_state=seed)
    return shuffled.drop_duplicates("prediction_id").sort_index()


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
        Weights of the runs; equal by default.
    one_image : bool
        Use only one random image of each breast.

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
    oof = Run(run_dir).oof()
    oof = one_image_per_breast(oof) if one_image else oof
    breasts = by_breast(oof)[["patient_id", "fold", "cancer"]]
    return breasts.assign(probability=aggregate(oof, aggregation))


def check_weights(weights: Sequence[float], n_runs: int) -> None:
    """Refuse weights that runs can't be averaged with.

    Raises
    ------
    PredictionError
        If there is not one weight per run, one is negative or not finite, or their sum is extreme.
    """
    check(len(weights) == n_runs, "weights", weights, f"as many as runs ({n_runs})", PredictionError)
    wanted = f"numbers of 0 or more, with a sum from {LEAST_WEIGHT} to {MOST_WEIGHT:.0f}"
    holds = all(weight >= 0 for weight in weights) and LEAST_WEIGHT <= sum(weights) <= MOST_WEIGHT
    check(holds, "weights", weights, wanted, PredictionError)
