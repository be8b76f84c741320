"""The results of tuning in sentences: the threshold, its expected pF1, and the parameters that would be better."""

from collections.abc import Iterator

import pandas as pd

from utils.decision.comparison import Ensemble
from utils.decision.threshold import Threshold


def answer(tuned: Threshold, breasts: pd.DataFrame, found: Ensemble, aggregations: pd.DataFrame) -> str:
    """Return the answer of tune_threshold.ipynb, one or two sentences per line.

    Parameters
    ----------
    tuned : Threshold
        From `utils.decision.tuning.tune`.
    breasts : DataFrame
        From `Threshold.out_of_fold`.
    found : Ensemble
        From `utils.decision.comparison.search_ensemble` on the same runs.
    aggregations : DataFrame
        From `utils.decision.tuning.compare_aggregations` on the same runs.
    """
    lines = [
        f"Threshold: {tuned.threshold:.4f} on the calibrated probability ({tuned.choice}; {tuned.breasts} breasts,"
        f" {tuned.positives} positive).",
        _expected(tuned, breasts.fold.nunique()),
        *_weights(tuned, found),
        *_aggregation(tuned, aggregations),
        *_sites(tuned),
    ]
    return "\n".join(lines)


def _expected(tuned: Threshold, n_folds: int) -> str:
    naive = f"pf1 {tuned.pf1:.3f} is measured on the breasts that chose the threshold, and tends to be too high."
    if n_folds > 1:
        return f"Expected on new patients: pf1_nested {tuned.pf1_nested}. {naive}"
    return (
        f"Expected on new patients: pf1_patient_nested {tuned.pf1_patient_nested}. With one fold there is no pf1_nested: its"
        f" value in threshold.json means nothing. {naive}"
    )


def _weights(tuned: Threshold, found: Ensemble) -> Iterator[str]:
    if len(tuned.runs) == 1:
        return
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in found.weights.items())
    gain = f"AUC {found.gain_over_average.signed} over the plain average"
    if not found.is_worth_it:
        yield f"Runs: the plain average. The best weights found gain no more than noise ({gain})."
    elif len(set(tuned.weights)) > 1:
        yield f"Runs: averaged with the weights found, which are better beyond noise ({weights}; {gain})."
    else:
        yield f"Runs: the plain average. Weights are better beyond noise ({weights}; {gain}). To use them: -p ensemble True"


def _aggregation(tuned: Threshold, aggregations: pd.DataFrame) -> Iterator[str]:
    """Compare with the mean, the reference for all others."""
    verdicts = aggregations.verdict
    better = verdicts.index[verdicts == "better"].tolist()
    if tuned.aggregation == "mean" and better:
        yield f"Aggregation: better than mean beyond noise: {', '.join(better)}. To use it: -p aggregation {better[0]}"
    if verdicts[tuned.aggregation] == "worse":
        yield f"Aggregation: {tuned.aggregation} is worse than mean beyond noise. To use the mean: -p aggregation mean"


def _sites(tuned: Threshold) -> Iterator[str]:
    if tuned.site_gain is None:
        return
    if tuned.site_thresholds:
        yield f"Sites: each has its own threshold, which gains more than noise (pf1_nested {tuned.site_gain})."
    else:
        yield f"Sites: one threshold for all. One per site gains no more than noise (pf1_nested {tuned.site_gain})."
