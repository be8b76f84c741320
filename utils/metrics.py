"""The probabilistic F1 and its kin, the exact best threshold, and intervals from a bootstrap over patients."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn import metrics as sklearn_metrics

N_BOOTSTRAP = 1000
INTERVAL = (2.5, 97.5)  # percentiles of a 95 % interval
CHUNK = 2_000_000  # resampled values held in memory at a time


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Turn logits into probabilities in [0, 1], without overflow."""
    return 0.5 * (1 + np.tanh(np.asarray(logits, dtype=float) / 2))


def probabilistic_f1(labels: np.ndarray, probabilities: np.ndarray, beta: float = 1.0) -> float:
    """Compute the competition's metric.

    Parameters
    ----------
    labels : array-like of shape (n,)
        0 or 1.
    probabilities : array-like of shape (n,)
        Clipped to [0, 1]. Hard 0/1 decisions are allowed, and then this is the usual F score.
    beta : float
        Weight of recall over precision.

    Returns
    -------
    float in [0, 1]
        0 where precision or recall is 0 or undefined (no positives, nothing predicted).

    References
    ----------
    Yacouby and Axman, Probabilistic Extension of Precision, Recall, and F1 Score, Eval4NLP 2020.
    """
    labels, probabilities = np.asarray(labels, dtype=float), np.clip(np.asarray(probabilities, dtype=float), 0, 1)
    true_positives, predicted = (labels * probabilities).sum(), probabilities.sum()
    if labels.sum() == 0 or true_positives == 0:
        return 0.0
    precision, recall = true_positives / predicted, true_positives / labels.sum()
    return float((1 + beta**2) * precision * recall / (beta**2 * precision + recall))


def decide(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """Turn probabilities into hard 0/1 decisions: 1 from the threshold upward. The only place that compares them."""
    return (np.asarray(probabilities, dtype=float) >= threshold).astype(int)


def best_threshold(labels: np.ndarray, probabilities: np.ndarray) -> tuple[float, float]:
    """Find the threshold with the highest pF1 of the hard decisions, exactly.

    Sorted by probability, every threshold takes a prefix, so cumulative sums give the F1 of all of them at once.

    Parameters
    ----------
    labels, probabilities : array-like of shape (n,), n > 0

    Returns
    -------
    threshold : float
        Half way between the last probability taken and the first one left out; of equally good ones, the highest.
    pf1 : float
        At that threshold, on these very data: too good for new data.
    """
    labels, probabilities = np.asarray(labels, dtype=float), np.asarray(probabilities, dtype=float)
    order = np.argsort(-probabilities, kind="stable")
    taken, hits = probabilities[order], np.cumsum(labels[order])
    f1 = 2 * hits / (labels.sum() + np.arange(1, len(labels) + 1))
    can_cut = np.append(taken[:-1] > taken[1:], True)  # equal probabilities can't be told apart
    best = int(np.argmax(np.where(can_cut, f1, -1)))
    below = taken[best + 1] if best + 1 < len(taken) else 0.0
    threshold = (taken[best] + below) / 2
    # Half way between two neighbouring floats may round down to the lower one.
    return float(threshold if threshold > below else taken[best]), float(f1[best])


def nested_decisions(labels: np.ndarray, probabilities: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Decide each fold with the threshold that was tuned on the other folds.

    Returns
    -------
    ndarray of shape (n,), int
        Decisions that did not see their own labels; their pF1 is an honest estimate of a tuned pF1. With one fold alone
        there is nothing to tune on, and all decisions are 0.
    """
    labels, probabilities, folds = (np.asarray(values) for values in (labels, probabilities, folds))
    decisions = np.zeros(len(labels), dtype=int)
    for fold in np.unique(folds):
        inside = folds == fold
        if not inside.all():
            threshold, _ = best_threshold(labels[~inside], probabilities[~inside])
            decisions[inside] = decide(probabilities[inside], threshold)
    return decisions


def area_under_roc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """AUC; NaN where only one class is present, instead of scikit-learn's warning."""
    labels = np.asarray(labels)
    if labels.min() == labels.max():
        return float("nan")
    return float(sklearn_metrics.roc_auc_score(labels, probabilities))


def summarise(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, float]:
    """Compute the metrics that the paper reports, at a threshold, and those that need none.

    Returns
    -------
    dict
        auc, average_precision, accuracy, precision, recall, f1, probabilistic_f1 (of the decisions), n, positives.
    """
    labels, decisions = np.asarray(labels), decide(probabilities, threshold)
    precision, recall, f1, _ = sklearn_metrics.precision_recall_fscore_support(
        labels, decisions, average="binary", zero_division=0
    )
    has_positives = labels.any()
    return {
        "auc": area_under_roc(labels, probabilities),
        "average_precision": float(sklearn_metrics.average_precision_score(labels, probabilities)) if has_positives else 0.0,
        "accuracy": float((labels == decisions).mean()),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "probabilistic_f1": probabilistic_f1(labels, decisions),
        "n": len(labels),
        "positives": int(labels.sum()),
    }


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def auc_interval(labels: np.ndarray, probabilities: np.ndarray, patients: np.ndarray, seed: int = 0) -> Interval:
    """AUC with a 95 % interval from a bootstrap over patients.

    Parameters
    ----------
    labels, probabilities : array-like of shape (n,)
    patients : array-like of shape (n,)
        A patient's rows are drawn together: they are not independent.
    seed : int

    Returns
    -------
    Interval
        Draws with one class alone do not count.
    """
    weighted = _weighted_auc(labels, probabilities)
    return _interval(area_under_roc(labels, probabilities), weighted, patients, seed)


def auc_difference(labels: np.ndarray, first: np.ndarray, second: np.ndarray, patients: np.ndarray, seed: int = 0) -> Interval:
    """AUC of the first predictions minus that of the second, on the same patients in each draw of the bootstrap.

    Parameters
    ----------
    labels, first, second : array-like of shape (n,)
        Of the same rows.
    patients : array-like of shape (n,)
    seed : int

    Returns
    -------
    Interval
        Without zero inside, the data show a difference beyond which patients happened to be there.
    """
    one, two = _weighted_auc(labels, first), _weighted_auc(labels, second)
    value = area_under_roc(labels, first) - area_under_roc(labels, second)
    return _interval(value, lambda weights: one(weights) - two(weights), patients, seed)


def _weighted_auc(labels: np.ndarray, probabilities: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """AUC as a function of the rows' weights, an array of shape (draws, n)."""
    labels, probabilities = np.asarray(labels, dtype=float), np.asarray(probabilities, dtype=float)
    _, rank = np.unique(probabilities, return_inverse=True)  # equal probabilities share a rank
    order = np.argsort(rank, kind="stable")
    starts = np.flatnonzero(np.diff(rank[order], prepend=-1))
    positive = labels[order]

    def weighted_auc(weights: np.ndarray) -> np.ndarray:
        weights = weights[:, order]
        positives = np.add.reduceat(weights * positive, starts, axis=1)  # (draws, ranks)
        negatives = np.add.reduceat(weights * (1 - positive), starts, axis=1)
        below = np.cumsum(negatives, axis=1) - negatives
        pairs = positives.sum(axis=1) * negatives.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (positives * (below + negatives / 2)).sum(axis=1) / pairs

    return weighted_auc


def pf1_interval(labels: np.ndarray, probabilities: np.ndarray, patients: np.ndarray, seed: int = 0) -> Interval:
    """pF1 (of probabilities or of hard decisions) with a 95 % interval from a bootstrap over patients.

    The parameters are those of `auc_interval`. A draw without positives counts as 0, as the metric says.
    """
    labels = np.asarray(labels, dtype=float)
    probabilities = np.clip(np.asarray(probabilities, dtype=float), 0, 1)

    def weighted_pf1(weights: np.ndarray) -> np.ndarray:
        total = weights @ labels + weights @ probabilities
        return 2 * (weights @ (labels * probabilities)) / np.maximum(total, np.finfo(float).tiny)

    return _interval(probabilistic_f1(labels, probabilities), weighted_pf1, patients, seed)


def _interval(value: float, statistic, patients: np.ndarray, seed: int) -> Interval:
    """Percentiles of a statistic of row weights over patients drawn with replacement."""
    codes, names = pd.factorize(np.asarray(patients))
    generator = np.random.default_rng(seed)
    per_chunk = max(1, CHUNK // max(len(codes), 1))
    values = []
    for start in range(0, N_BOOTSTRAP, per_chunk):
        draws = min(per_chunk, N_BOOTSTRAP - start)
        counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
        values.append(statistic(counts[:, codes].astype(float)))  # weights of shape (draws, n)
    values = np.concatenate(values)
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, INTERVAL) if len(values) else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high))
