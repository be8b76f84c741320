"""95 % intervals from a bootstrap over patients, Wilson intervals of proportions, and verdicts on differences.

A patient's breasts are not independent, so the bootstrap draws patients, each with all their rows. All statistics of
one `PatientBootstrap` see the same draws, so the difference of two statistics is paired.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from utils.metrics.scores import area_under_roc, average_precision, probabilistic_f1

N_DRAWS = 2000
LEVEL = 0.95
CHUNK = 4_000_000  # resampled values in memory at a time


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval, of 95 % unless another level was asked for."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "undefined"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def signed(self) -> str:
        """Return "+value [+low, +high]", for differences."""
        if np.isnan(self.value):
            return "undefined"
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"

    @property
    def verdict(self) -> str:
        """Return what the first of two is: "better", "worse", or "not measurably different" if the interval includes 0."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "not measurably different"


def proportion(successes: int, n: int) -> Interval:
    """Return the share of successes with its 95 % Wilson interval, which holds for few events too.

    It assumes independent rows. A patient's two breasts are nearly independent if at most one is positive.

    Returns
    -------
    Interval
        NaN if ``n`` is 0.

    References
    ----------
    Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 22 (1927) 209.
    """
    from scipy.stats import binomtest

    if n == 0:
        return Interval(np.nan, np.nan, np.nan)
    interval = binomtest(int(successes), int(n)).proportion_ci(LEVEL, method="wilson")
    return Interval(successes / n, interval.low, interval.high)


class PatientBootstrap:
    """Draw patients with replacement, and compute statistics of all their rows.

    Methods named ``*_draws`` return an array of shape (n_draws,), with NaN where the statistic is undefined. Intervals
    ignore those draws.

    Parameters
    ----------
    patients : array-like of shape (n,)
        Patient of each row.
    """

    def __init__(self, patients: np.ndarray, n_draws: int = N_DRAWS, seed: int = 0):
        self._codes, names = pd.factorize(np.asarray(patients))
        self._counts = _draw(len(names), n_draws, seed)

    def interval(self, value: float, draws: np.ndarray, level: float = LEVEL) -> Interval:
        """Return ``value`` with the percentiles of its finite draws."""
        draws = draws[np.isfinite(draws)]
        tail = 50 * (1 - level)
        low, high = np.percentile(draws, (tail, 100 - tail)) if len(draws) else (np.nan, np.nan)
        return Interval(float(value), float(low), float(high))

    def auc(self, labels: np.ndarray, probabilities: np.ndarray) -> Interval:
        """Return the area under the ROC curve."""
        return self.interval(area_under_roc(labels, probabilities), self.auc_draws(labels, probabilities))

    def average_precision(self, labels: np.ndarray, probabilities: np.ndarray) -> Interval:
        """Return the area under the precision-recall curve, as a sum of steps."""
        value = average_precision(labels, probabilities)
        return self.interval(value, self.average_precision_draws(labels, probabilities))

    def pf1(self, labels: np.ndarray, probabilities: np.ndarray) -> Interval:
        """Return the pF1 of probabilities or hard decisions. A draw without positives counts as 0, as in the metric."""
        return self.interval(probabilistic_f1(labels, probabilities), self.pf1_draws(labels, probabilities))

    def auc_difference(self, labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> Interval:
        """Return the AUC of the first predictions minus that of the second, paired."""
        value = area_under_roc(labels, first) - area_under_roc(labels, second)
        return self.interval(value, self.auc_draws(labels, first) - self.auc_draws(labels, second))

    def pf1_difference(self, labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> Interval:
        """Return the pF1 of the first decisions minus that of the second, paired."""
        value = probabilistic_f1(labels, first) - probabilistic_f1(labels, second)
        return self.interval(value, self.pf1_draws(labels, first) - self.pf1_draws(labels, second))

    def ratio(self, top: np.ndarray, bottom: np.ndarray) -> Interval:
        """Return the sum of ``top`` divided by the sum of ``bottom``, over the rows whose ``top`` is not NaN.

        With ones as ``bottom`` it is a mean. For the paired difference of two ratios with the same ``bottom``, pass the
        difference as ``top``.
        """
        top, bottom = np.asarray(top, dtype=float), np.asarray(bottom, dtype=float)
        top, bottom = np.nan_to_num(top), bottom * ~np.isnan(top)
        value = top.sum() / bottom.sum() if bottom.sum() else np.nan
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.interval(value, np.divide(*self.sums(top, bottom).T))

    def share(self, hits: np.ndarray, trials: np.ndarray) -> Interval:
        """Return the share of hits in trials, both counted per row; rows whose hits are NaN are left out.

        If all or no trials are hits, all draws are equal. The interval is then Wilson's for one trial per patient.
        """
        found = self.ratio(hits, trials)
        if found.value not in (0, 1):
            return found
        patients = self._counts.shape[1]
        return proportion(patients * int(found.value), patients)

    def pf1_draws(self, labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """Return the pF1 of each draw."""
        labels = np.asarray(labels, dtype=float)
        probabilities = np.clip(np.asarray(probabilities, dtype=float), 0, 1)
        positives, predicted, hits = self.sums(labels, probabilities, labels * probabilities).T
        return 2 * hits / np.maximum(positives + predicted, np.finfo(float).tiny)

    def auc_draws(self, labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """Return the AUC of each draw."""
        labels, order, first, last = _ranked(labels, probabilities)
        positive = np.flatnonzero(labels)
        parts = []
        for weights in self._weights(order):
            negatives = _cumulated(weights * (labels == 0))  # (draws, n + 1): drawn negatives before each rank
            wins = (negatives[:, first[positive]] + negatives[:, last[positive]]) / 2  # a tie counts half
            drawn = weights[:, positive]
            with np.errstate(invalid="ignore", divide="ignore"):
                parts.append(1 - (drawn * wins).sum(axis=1) / (drawn.sum(axis=1) * negatives[:, -1].astype(float)))
        return np.concatenate(parts)

    def average_precision_draws(self, labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """Return the average precision of each draw."""
        labels, order, _, last = _ranked(labels, probabilities)
        positive = np.flatnonzero(labels)
        parts = []
        for weights in self._weights(order):
            hits, taken = _cumulated(weights * labels), _cumulated(weights)
            drawn, ends = weights[:, positive], last[positive]
            with np.errstate(invalid="ignore", divide="ignore"):
                precision = np.where(drawn > 0, hits[:, ends] / taken[:, ends], 0)
                parts.append((drawn * precision).sum(axis=1) / drawn.sum(axis=1))
        return np.concatenate(parts)

    def sums(self, *columns: np.ndarray) -> np.ndarray:
        """Sum columns over the drawn rows: shape (n_draws, number of columns)."""
        patients = self._counts.shape[1]
        by_patient = np.stack([np.bincount(self._codes, np.asarray(column, float), patients) for column in columns], axis=1)
        return np.concatenate([counts @ by_patient for counts in self._patient_weights()])

    def histograms(self, bins: np.ndarray, n_bins: int, values: np.ndarray) -> np.ndarray:
        """Sum ``values`` of the drawn rows within each bin.

        Parameters
        ----------
        bins : ndarray of shape (n,), int in [0, n_bins)
        values : ndarray of shape (n,)

        Returns
        -------
        ndarray of shape (n_draws, n_bins)
        """
        shape = (n_bins, self._counts.shape[1])
        by_patient = sparse.csr_matrix((np.asarray(values, dtype=float), (bins, self._codes)), shape=shape)
        return np.concatenate([(by_patient @ counts.T).T for counts in self._patient_weights()])

    def _weights(self, order: np.ndarray) -> Iterator[np.ndarray]:
        """Yield how often each row was drawn, rows in ``order``, some draws at a time: shape (draws, n), uint8."""
        codes = self._codes[order]
        return (self._counts[chunk].take(codes, axis=1) for chunk in _chunks(len(self._counts), len(codes)))

    def _patient_weights(self) -> Iterator[np.ndarray]:
        """Yield how often each patient was drawn, some draws at a time: shape (draws, patients), float."""
        return (self._counts[chunk].astype(float) for chunk in _chunks(*self._counts.shape))


def _chunks(n_draws: int, width: int) -> Iterator[slice]:
    """Cut draws of ``width`` values into slices of at most `CHUNK` values; a slice has at least one draw."""
    size = max(1, CHUNK // max(width, 1))
    return (slice(start, min(start + size, n_draws)) for start in range(0, n_draws, size))


def _draw(n: int, n_draws: int, seed: int) -> np.ndarray:
    """Count how often each of n patients is in each draw of n: shape (n_draws, n), uint8."""
    generator, counts = np.random.default_rng(seed), np.empty((n_draws, n), dtype=np.uint8)
    for chunk in _chunks(n_draws, n):
        draws = chunk.stop - chunk.start
        drawn = generator.integers(0, n, (draws, n)) + n * np.arange(draws)[:, None]
        counts[chunk] = np.bincount(drawn.ravel(), minlength=draws * n).reshape(draws, n)
    return counts


def _ranked(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return labels (bool) and row numbers by falling probability, and start and end of each row's group of ties."""
    labels, probabilities = np.asarray(labels).astype(bool), np.asarray(probabilities, dtype=float)
    order = np.argsort(-probabilities, kind="stable")
    ranked = -probabilities[order]
    return labels[order], order, np.searchsorted(ranked, ranked, "left"), np.searchsorted(ranked, ranked, "right")


def _cumulated(weights: np.ndarray) -> np.ndarray:
    """Return cumulative sums along the columns, starting at 0: shape (draws, n + 1)."""
    sums = np.zeros((weights.shape[0], weights.shape[1] + 1), dtype=np.int32)
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums
