"""Calibration: probabilities that match observed frequencies, by the method with the lowest log-loss on held-out folds."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from utils.core.formats import check, check_types
from utils.metrics.intervals import proportion
from utils.metrics.scores import sigmoid
from utils.metrics.thresholds import held_out

METHODS = ("none", "temperature", "platt", "isotonic")
LEAST_SLOPE = 1e-3  # keeps the order even of a model worse than chance: calibration must not invert it
MOST_SLOPE = 1e4  # only almost equal probabilities need more; a steeper line is a step function
EDGE = 1e-6  # logits are taken of probabilities clipped to [EDGE, 1 - EDGE]
EDGE_LOGIT = float(np.log1p(-EDGE) - np.log(EDGE))  # 13.8, the logit of 1 - EDGE
N_BINS = 10


@dataclass(frozen=True)
class Calibration:
    """A strictly increasing map from probability to probability.

    Parameters
    ----------
    method : {"none", "temperature", "platt", "isotonic"}
    slope, intercept : float
        Line on the logit, for temperature (slope ``1 / temperature``, intercept 0) and Platt.
    inputs, outputs : tuple of float
        Corners of the isotonic map, which is linear between them and almost constant beyond.

    Raises
    ------
    FormatError
        If a value has the wrong type, or the map would decrease or give all probabilities the same value.
    """

    method: str = "none"
    slope: float = 1.0
    intercept: float = 0.0
    inputs: tuple[float, ...] = ()
    outputs: tuple[float, ...] = ()

    def __post_init__(self):
        """Check that this is a rising map from [0, 1] to [0, 1]."""
        check_types(self)
        check(self.method in METHODS, "method", self.method, f"one of {', '.join(METHODS)}")
        check(LEAST_SLOPE <= self.slope <= MOST_SLOPE, "slope", self.slope, f"from {LEAST_SLOPE} to {MOST_SLOPE}")
        reach = EDGE_LOGIT * (self.slope + 1)  # beyond it, every probability would become almost 0, or almost 1
        check(abs(self.intercept) <= reach, "intercept", self.intercept, f"from {-reach:.6g} to {reach:.6g} with this slope")
        self._check_corners()

    def _check_corners(self) -> None:
        """Check that the isotonic corners are probabilities in rising order."""
        for name in ("inputs", "outputs"):
            values = getattr(self, name)
            check(all(0 <= value <= 1 for value in values), name, values, "probabilities from 0 to 1")
        check(len(self.inputs) == len(self.outputs), "outputs", self.outputs, f"as many as inputs ({len(self.inputs)})")
        check(bool(self.inputs) or self.method != "isotonic", "inputs", self.inputs, "one corner or more")
        check(all(np.diff(self.inputs) > 0), "inputs", self.inputs, "rising")
        check(all(np.diff(self.outputs) >= 0), "outputs", self.outputs, "rising or equal")

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrate probabilities, an array of shape (n,) in [0, 1]."""
        probabilities = np.asarray(probabilities, dtype=float)
        if self.method == "none":
            return probabilities
        if self.method == "isotonic":
            # Adding a trace of the input keeps the order within steps, so no calibration changes what a threshold can decide.
            return (1 - EDGE) * np.interp(probabilities, self.inputs, self.outputs) + EDGE * probabilities
        return sigmoid(self.slope * logit(probabilities) + self.intercept)


def logit(probabilities: np.ndarray) -> np.ndarray:
    """Return log odds, finite even at 0 and 1: probabilities are clipped to [`EDGE`, 1 - `EDGE`]."""
    clipped = np.clip(np.asarray(probabilities, dtype=float), EDGE, 1 - EDGE)
    return np.log(clipped) - np.log1p(-clipped)


def fit_calibration(method: str, labels: np.ndarray, probabilities: np.ndarray) -> Calibration:
    """Fit a calibration by one of `METHODS`; return "none" if all labels are equal.

    Sources: Platt 1999, whose targets keep separable data finite; Zadrozny and Elkan 2002 (isotonic); Guo et al. 2017
    (temperature).
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=float)
    if method == "none" or labels.min() == labels.max():
        return Calibration()
    return _fit_isotonic(labels, probabilities) if method == "isotonic" else _fit_line(method, labels, probabilities)


def _fit_line(method: str, labels: np.ndarray, probabilities: np.ndarray) -> Calibration:
    """Fit a temperature (slope alone) or Platt's line by logistic regression on the logit, with Platt's smoothed targets."""
    from sklearn.linear_model import LogisticRegression

    positives, n = labels.sum(), len(labels)
    target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (n - positives + 2))
    column = logit(probabilities)[:, None]
    model = LogisticRegression(C=np.inf, fit_intercept=method == "platt", max_iter=1000, tol=1e-8)
    # Each row is used twice: as a positive with weight target, and as a negative with weight 1 - target.
    model.fit(np.concatenate([column, column]), np.repeat([1, 0], n), sample_weight=np.concatenate([target, 1 - target]))
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0]) if method == "platt" else 0.0
    if not LEAST_SLOPE <= slope <= MOST_SLOPE:  # the slope is clipped, so the intercept no longer fits
        slope = min(max(slope, LEAST_SLOPE), MOST_SLOPE)
        intercept = float(logit(target.mean()) - slope * column.mean()) if method == "platt" else 0.0
    return Calibration(method, slope, intercept)


def _fit_isotonic(labels: np.ndarray, probabilities: np.ndarray) -> Calibration:
    """Fit an isotonic map whose outputs stay half a row away from 0 and 1."""
    from sklearn.isotonic import IsotonicRegression

    half_a_row = 0.5 / len(labels)  # no finite sample supports a probability of 0 or 1
    model = IsotonicRegression(y_min=half_a_row, y_max=1 - half_a_row, out_of_bounds="clip").fit(probabilities, labels)
    return Calibration("isotonic", inputs=tuple(model.X_thresholds_.tolist()), outputs=tuple(model.y_thresholds_.tolist()))


def nested_calibration(method: str, labels: np.ndarray, probabilities: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Calibrate each fold with a map fitted on the other folds; return shape (n,)."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=float)
    calibrated = probabilities.copy()
    for inside in held_out(folds):
        calibrated[inside] = fit_calibration(method, labels[~inside], probabilities[~inside])(probabilities[inside])
    return calibrated


def compare_calibrations(labels: np.ndarray, probabilities: np.ndarray, folds: np.ndarray) -> pd.DataFrame:
    """Compare the calibration methods on held-out folds.

    Returns
    -------
    DataFrame
        Indexed by method: nested log_loss in nats, nested brier, and ``chosen``, True for the lowest log_loss.
    """
    from sklearn.metrics import brier_score_loss, log_loss

    rows = {}
    for method in METHODS:
        nested = nested_calibration(method, labels, probabilities, folds)
        loss = log_loss(labels, np.clip(nested, EDGE, 1 - EDGE), labels=[0, 1])
        rows[method] = {"log_loss": loss, "brier": brier_score_loss(labels, nested)}
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.assign(chosen=table.index == table.log_loss.idxmin()).rename_axis("calibration")


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """Compare predicted with observed shares of cancer, in bins with equal numbers of rows.

    Returns
    -------
    DataFrame
        One row per bin: n, positives, predicted (mean probability), observed, and its Wilson interval low, high.
    """
    table = pd.DataFrame({"cancer": np.asarray(labels), "probability": np.asarray(probabilities, dtype=float)})
    bins = pd.qcut(table.probability, min(N_BINS, len(table)), labels=False, duplicates="drop")
    rows = []
    for _, group in table.groupby(bins.fillna(0)):
        observed = proportion(group.cancer.sum(), len(group))
        counts = {"n": len(group), "positives": int(group.cancer.sum()), "predicted": group.probability.mean()}
        rows.append(counts | {"observed": observed.value, "low": observed.low, "high": observed.high})
    return pd.DataFrame(rows)
