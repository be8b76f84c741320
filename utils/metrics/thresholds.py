"""Thresholds for the pF1 of hard decisions: how to choose them, and how to estimate their pF1 on held-out patients.

A threshold's pF1 is too high on the data that chose it. Nested estimates decide each group of patients with a threshold
from the others. Groups are folds, or random groups, which ignore how much the folds' models differ.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from utils.metrics.intervals import PatientBootstrap
from utils.metrics.scores import best_threshold, decide, half_way, probabilistic_f1

NEIGHBOURS = 2.0  # neighbours take from half to twice as many breasts
N_GROUPS, N_REPEATS = 10, 10  # of the patient-nested estimate
N_CUTS = 400  # of a drawn curve
Choose = Callable[[np.ndarray, np.ndarray], float]  # labels, probabilities -> threshold


def plateau_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the threshold with the highest mean pF1 over its neighbours, which take half to twice as many rows (log scale).

    On simulated scores from two normal distributions, in six of seven settings its pF1 fell short of the best possible by only
    a quarter to two thirds as much as the raw maximum's (``python -m benchmarks.evaluation``).
    """
    labels, probabilities = np.asarray(labels, dtype=float), np.asarray(probabilities, dtype=float)
    order = np.argsort(-probabilities, kind="stable")
    ranked, taken = probabilities[order], np.arange(1, len(labels) + 1)
    f1 = 2 * np.cumsum(labels[order]) / (labels.sum() + taken)
    ends = np.searchsorted(-ranked, -ranked, "right")  # equal probabilities are taken together
    smooth = _mean_over_neighbours(f1[ends - 1])
    end = ends[int(np.argmax(np.where(taken == ends, smooth, -1)))]
    return half_way(ranked[end - 1], ranked[end] if end < len(ranked) else 0.0)


def _mean_over_neighbours(values: np.ndarray) -> np.ndarray:
    """Return the mean over ranks from half to twice each rank, evenly in log rank; the range narrows near the last rank."""
    n = len(values)
    rank = np.arange(1, n + 1)
    low = np.ceil(np.maximum(rank / NEIGHBOURS, rank * rank / n)).astype(int) - 1
    high = np.minimum(np.floor(rank * NEIGHBOURS).astype(int), n)
    width = np.log1p(1 / rank)
    sums, widths = (np.concatenate([[0], np.cumsum(column)]) for column in (width * values, width))
    return (sums[high] - sums[low]) / (widths[high] - widths[low])


def maximum_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the threshold with exactly the highest pF1."""
    return best_threshold(labels, probabilities)[0]


CHOICES: dict[str, Choose] = {"plateau": plateau_threshold, "maximum": maximum_threshold}


def held_out(groups: np.ndarray) -> Iterator[np.ndarray]:
    """Yield a boolean mask of each group's rows; nothing if there is only one group, since no other rows could decide it."""
    names, numbers = np.unique(groups, return_inverse=True)
    if len(names) > 1:
        yield from (numbers == number for number in range(len(names)))


def nested_decisions(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray,
    choose: Choose = plateau_threshold,
    sites: np.ndarray | None = None,
) -> np.ndarray:
    """Decide each group with the threshold chosen on the other groups.

    Parameters
    ----------
    labels, probabilities : array-like of shape (n,)
    groups : array-like of shape (n,)
        Folds or other groups; all rows of a patient must be in one group.
    choose : callable
        One of `CHOICES`.
    sites : array-like of shape (n,), optional
        If given, each site gets its own threshold.

    Returns
    -------
    ndarray of shape (n,), int
        Decisions independent of their own labels, so that their pF1 is an honest estimate of a tuned pF1. All 0 if there is
        only one group.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    sites = None if sites is None else np.asarray(sites)
    decisions = np.zeros(len(labels), dtype=int)
    for inside in held_out(groups):
        others = labels[~inside], probabilities[~inside]
        threshold = choose(*others)
        if sites is None:
            decisions[inside] = decide(probabilities[inside], threshold)
        else:
            each = site_thresholds(*others, sites[~inside], choose)
            decisions[inside] = site_decisions(probabilities[inside], sites[inside], each, threshold)
    return decisions


def patient_nested(
    labels: np.ndarray,
    probabilities: np.ndarray,
    patients: np.ndarray,
    choose: Choose = plateau_threshold,
    seed: int = 0,
    sites: np.ndarray | None = None,
) -> np.ndarray:
    """Decide random tenths of the patients with the threshold from the other nine, and average over ten repeats.

    Parameters
    ----------
    labels, probabilities, patients : array-like of shape (n,)
    choose : callable
        One of `CHOICES`.
    seed : int
        Seed of the random groups.
    sites : array-like of shape (n,), optional
        If given, each site gets its own threshold.

    Returns
    -------
    ndarray of shape (n,), float in [0, 1]
        Mean decisions, whose pF1 is the estimate.
    """
    order = np.argsort(-np.asarray(probabilities), kind="stable")  # sorted once, since the repeated sorts below are then cheap
    labels, probabilities = np.asarray(labels)[order], np.asarray(probabilities)[order]
    sites = None if sites is None else np.asarray(sites)[order]
    codes, names = pd.factorize(np.asarray(patients))
    generator, n_groups = np.random.default_rng(seed), min(N_GROUPS, len(names))
    dealt = (generator.permutation(np.arange(len(names)) % n_groups)[codes[order]] for _ in range(N_REPEATS))
    decisions = np.empty(len(labels))
    decisions[order] = np.mean([nested_decisions(labels, probabilities, groups, choose, sites) for groups in dealt], axis=0)
    return decisions


def site_thresholds(
    labels: np.ndarray, probabilities: np.ndarray, sites: np.ndarray, choose: Choose = plateau_threshold
) -> dict[int, float]:
    """Choose a threshold for each site; sites with a single class get none."""
    labels, probabilities, sites = np.asarray(labels), np.asarray(probabilities), np.asarray(sites)
    both = [site for site in np.unique(sites) if len(np.unique(labels[sites == site])) == 2]
    return {int(site): choose(labels[sites == site], probabilities[sites == site]) for site in both}


def site_decisions(probabilities: np.ndarray, sites: np.ndarray, thresholds: dict, otherwise: float) -> np.ndarray:
    """Decide with the threshold of each row's site, or with ``otherwise`` if the site has none."""
    return decide(probabilities, pd.Series(np.asarray(sites)).map(thresholds).astype(float).fillna(otherwise).to_numpy())


def cut_points(probabilities: np.ndarray, n_cuts: int = N_CUTS) -> np.ndarray:
    """Return decreasing thresholds for a curve: midpoints between adjacent probabilities, denser where few rows are taken."""
    ranked = -np.unique(-np.asarray(probabilities, dtype=float))
    places = np.unique(np.geomspace(1, len(ranked), n_cuts).astype(int)) - 1
    return (ranked[places] + np.append(ranked, 0.0)[places + 1]) / 2


def cut_bins(probabilities: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Return the index of the first decreasing cut that takes each probability, or the last index if none does."""
    return np.minimum(np.searchsorted(-cuts, -probabilities, "left"), len(cuts) - 1)


def pf1_curve(labels: np.ndarray, probabilities: np.ndarray, bootstrap: PatientBootstrap) -> pd.DataFrame:
    """Compute the pF1 of hard decisions at many thresholds, with a 95 % bootstrap band.

    Returns
    -------
    DataFrame
        threshold (decreasing), taken (share of rows), pf1, low, high. The band is pointwise.
    """
    labels, probabilities = np.asarray(labels, dtype=float), np.asarray(probabilities, dtype=float)
    cuts = cut_points(probabilities)
    bins = cut_bins(probabilities, cuts)
    hits, taken = (
        np.cumsum(bootstrap.histograms(bins, len(cuts), values), axis=1) for values in (labels, np.ones(len(labels)))
    )
    drawn = 2 * hits / np.maximum(hits[:, -1:] + taken, 1)  # 0 if nothing is drawn and nothing is taken
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    f1 = [probabilistic_f1(labels, decide(probabilities, cut)) for cut in cuts]
    share = [decide(probabilities, cut).mean() for cut in cuts]
    return pd.DataFrame({"threshold": cuts, "taken": share, "pf1": f1, "low": low, "high": high})


def prevalence_shift(labels: np.ndarray, probabilities: np.ndarray, threshold: float, prevalences: np.ndarray) -> pd.DataFrame:
    """Compute a threshold's pF1, and the best threshold, at other prevalences of cancer.

    Sensitivity and specificity stay constant; only the shares of positives and negatives change.

    Parameters
    ----------
    labels, probabilities : array-like of shape (n,)
    threshold : float
        The chosen threshold.
    prevalences : array-like
        In (0, 1).

    Returns
    -------
    DataFrame
        prevalence, pf1 at ``threshold``, best_threshold and best_pf1; the best ones are tuned on these same rows.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    cuts = np.append(cut_points(probabilities), threshold)
    taken = [decide(probabilities, cut) for cut in cuts]
    sensitivity = np.array([decisions[labels == 1].mean() for decisions in taken])
    false_positives = np.array([decisions[labels == 0].mean() for decisions in taken])
    rows = []
    for share in prevalences:
        f1 = 2 * share * sensitivity / (share + share * sensitivity + (1 - share) * false_positives)
        best = int(np.argmax(f1))
        rows.append({"prevalence": share, "pf1": f1[-1], "best_threshold": cuts[best], "best_pf1": f1[best]})
    return pd.DataFrame(rows)
