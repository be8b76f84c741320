"""The probabilistic F1 and related scores."""

import numpy as np


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Turn logits into probabilities without overflow."""
    return 0.5 * (1 + np.tanh(np.asarray(logits, dtype=float) / 2))


def probabilistic_f1(labels: np.ndarray, probabilities: np.ndarray, beta: float = 1.0) -> float:
    """Compute the competition's metric, the probabilistic F1.

    Parameters
    ----------
    labels : array-like of shape (n,)
        0 or 1.
    probabilities : array-like of shape (n,)
        Clipped to [0, 1]. Hard 0/1 decisions give the usual F score.
    beta : float
        Weight of recall over precision.

    Returns
    -------
    float in [0, 1]
        0 if precision or recall is 0 or undefined (no positives, nothing predicted).

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


def decide(probabilities: np.ndarray, threshold: float | np.ndarray) -> np.ndarray:
    """Return hard decisions: 1 if the probability is at least the threshold, else 0. No other code compares them."""
    return (np.asarray(probabilities, dtype=float) >= threshold).astype(int)


def best_threshold(labels: np.ndarray, probabilities: np.ndarray) -> tuple[float, float]:
    """Find the threshold with the highest pF1 of the hard decisions, exactly.

    Every threshold takes a prefix of the rows sorted by probability, so cumulative sums give the F1 of all thresholds.

    Parameters
    ----------
    labels, probabilities : array-like of shape (n,), n > 0

    Returns
    -------
    threshold : float
        Half-way between the last probability taken and the first one left out; the highest of equally good ones.
    pf1 : float
        pF1 on the same data, which is too optimistic for new data.
    """
    labels, probabilities = np.asarray(labels, dtype=float), np.asarray(probabilities, dtype=float)
    order = np.argsort(-probabilities, kind="stable")
    taken, hits = probabilities[order], np.cumsum(labels[order])
    f1 = 2 * hits / (labels.sum() + np.arange(1, len(labels) + 1))
    can_cut = np.append(taken[:-1] > taken[1:], True)  # no threshold separates equal probabilities
    best = int(np.argmax(np.where(can_cut, f1, -1)))
    return half_way(taken[best], taken[best + 1] if best + 1 < len(taken) else 0.0), float(f1[best])


def half_way(upper: float, lower: float) -> float:
    """Return a threshold between two probabilities that takes the upper one and leaves the lower one out."""
    middle = (upper + lower) / 2
    return float(middle if middle > lower else upper)  # half way between neighbouring floats may round down


def area_under_roc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the AUC, or NaN if only one class is present (scikit-learn would warn)."""
    from sklearn.metrics import roc_auc_score

    labels = np.asarray(labels)
    if labels.min() == labels.max():
        return float("nan")
    return float(roc_auc_score(labels, probabilities))


def average_precision(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the area under the precision-recall curve, as a sum of steps; 0 without positives."""
    from sklearn.metrics import average_precision_score

    labels = np.asarray(labels)
    return float(average_precision_score(labels, probabilities)) if labels.any() else 0.0
