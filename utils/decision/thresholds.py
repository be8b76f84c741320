"""Thresholds for the pF1 of hard decisions: chosen, and estimated on patients that did not choose them.

A threshold's pF1 on the data that chose it is too good. Nested estimates decide each group of patients with a threshold from
the others: folds, or random groups, which leave out how much the folds' models differ.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from utils.metrics.intervals import PatientBootstrap
from utils.metrics.scores import best_threshold, decide, half_way, probabilistic_f1

NEIGHBOURS = 2.0  # a plateau reaches from taking half as many breasts to twice as many
N_GROUPS, N_REPEATS = 10, 10  # of the patient-nested estimate
N_CUTS = 400  # of a drawn curve
Choose = Callable[[np.ndarray, np.ndarray], float]  # labels, probabilities -> threshold


def plateau_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Find the threshold whose neighbours are good too.

    A threshold's neighbours are those that take from half to twice as many rows; the highest mean pF1 over them, on a
    logarithmic scale, wins. On simulated scores of two normal distributions it lost less to the true best threshold than the
    raw maximum in six of seven settings, a quarter to two thirds of it (``python -m benchmarks.evaluation``).

    Parameters
    ----------
    labels, probabilities : array-like of shape (n,), n > 0

    Returns
    -------
    float
        As from `utils.metrics.scores.best_threshold`: half way between two probabilities.
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
    """Mean over ranks from a half to twice each rank, evenly in the rank's logarithm; narrower near the last rank."""
    n = len(values)
    rank = np.arange(1, n + 1)
    low = np.ceil(np.maximum(rank / NEIGHBOURS, rank * rank / n)).astype(int) - 1
    high = np.minimum(np.floor(rank * NEIGHBOURS).astype(int), n)
    width = np.log1p(1 / rank)
    sums, widths = (np.concatenate([[0], np.cumsum(column)]) for column in (width * values, width))
    return (sums[high] - sums[low]) / (widths[high] - widths[low])


def maximum_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The threshold of the highest pF1, exactly."""
    return best_threshold(labels, probabilities)[0]


CHOICES: dict[str, Choose] = {"plateau": plateau_threshold, "maximum": maximum_threshold}


def nested_decisions(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, choose: Choose = plateau_threshold
) -> np.ndarray:
    """Decide each group with the threshold that was chosen on the other groups.

    Parameters
    ----------
    labels, probabilities : array-like of shape (n,)
    groups : array-like of shape (n,)
        Folds, or other groups; a patient's rows must be in one.
    choose : function
        One of `CHOICES`.

    Returns
    -------
    ndarray of shape (n,), int
        Decisions that did not see their own labels; their pF1 is an honest estimate of a tuned pF1. With one group alone
        there is nothing to tune on, and all decisions are 0.
    """
    labels, probabilities, groups = (np.asarray(values) for values in (labels, probabilities, groups))
    decisions = np.zeros(len(labels), dtype=int)
    for group in np.unique(groups):
        inside = groups == group
        if not inside.all():
            decisions[inside] = decide(probabilities[inside], choose(labels[~inside], probabilities[~inside]))
    return decisions


def patient_nested(
    labels: np.ndarray,
    probabilities: np.ndarray,
    patients: np.ndarray,
    choose: Choose = plateau_threshold,
    seed: int = 0,
    sites: np.ndarray | None = None,
) -> np.ndarray:
    """Decide random tenths of the patients with the threshold of the other nine, ten times over.

    Parameters
    ----------
    labels, probabilities, patients : array-like of shape (n,)
    choose : function
        One of `CHOICES`.
    seed : int
    sites : array-like of shape (n,), optional
        Gives each site a threshold of its own.

    Returns
    -------
    ndarray of shape (n,), float in [0, 1]
        Mean decisions; their pF1 is the estimate.
    """
    order = np.argsort(-np.asarray(probabilities), kind="stable")  # sorting what is sorted, a hundred times, costs little
    labels, probabilities = np.asarray(labels)[order], np.asarray(probabilities)[order]
    sites = None if sites is None else np.asarray(sites)[order]
    codes, names = pd.factorize(np.asarray(patients))
    generator, n_groups = np.random.default_rng(seed), min(N_GROUPS, len(names))
    dealt = (generator.permutation(np.arange(len(names)) % n_groups)[codes[order]] for _ in range(N_REPEATS))
    decisions = np.empty(len(labels))
    decisions[order] = np.mean([_nested(labels, probabilities, groups, choose, sites) for groups in dealt], axis=0)
    return decisions


def _nested(labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, choose: Choose, sites: np.ndarray | None):
    if sites is None:
        return nested_decisions(labels, probabilities, groups, choose)
    return nested_site_decisions(labels, probabilities, groups, sites, choose)


def site_thresholds(
    labels: np.ndarray, probabilities: np.ndarray, sites: np.ndarray, choose: Choose = plateau_threshold
) -> dict[int, float]:
    """Choose a threshold for each site; sites with one class alone get none."""
    labels, probabilities, sites = np.asarray(labels), np.asarray(probabilities), np.asarray(sites)
    both = [site for site in np.unique(sites) if len(np.unique(labels[sites == site])) == 2]
    return {int(site): choose(labels[sites == site], probabilities[sites == site]) for site in both}


def site_decisions(probabilities: np.ndarray, sites: np.ndarray, thresholds: dict, otherwise: float) -> np.ndarray:
    """Decide with the threshold of each row's site, or with ``otherwise`` where a site has none."""
    return decide(probabilities, pd.Series(np.asarray(sites)).map(thresholds).astype(float).fillna(otherwise).to_numpy())


def nested_site_decisions(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, sites: np.ndarray, choose: Choose = plateau_threshold
) -> np.ndarray:
    """`nested_decisions` with a threshold for each site."""
    labels, probabilities, groups, sites = (np.asarray(values) for values in (labels, probabilities, groups, sites))
    decisions = np.zeros(len(labels), dtype=int)
    for group in np.unique(groups):
        inside = groups == group
        if not inside.all():
            others = labels[~inside], probabilities[~inside]
            thresholds, otherwise = site_thresholds(*others, sites[~inside], choose), choose(*others)
            decisions[inside] = site_decisions(probabilities[inside], sites[inside], thresholds, otherwise)
    return decisions


def cut_points(probabilities: np.ndarray, n_cuts: int = N_CUTS) -> np.ndarray:
    """Thresholds for a curve, falling: half way between neighbouring probabilities, denser where few rows are taken."""
    ranked = -np.unique(-np.asarray(probabilities, dtype=float))
    places = np.unique(np.geomspace(1, len(ranked), n_cuts).astype(int)) - 1
    return (ranked[places] + np.append(ranked, 0.0)[places + 1]) / 2


def cut_bins(probabilities: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Number of the first of the falling ``cuts`` that takes each probability; the last where none does."""
    return np.minimum(np.searchsorted(-cuts, -probabilities, "left"), len(cuts) - 1)


def pf1_curve(labels: np.ndarray, probabilities: np.ndarray, bootstrap: PatientBootstrap) -> pd.DataFrame:
    """Compute the pF1 of hard decisions at many thresholds, with its bootstrap band.

    Returns
    -------
    DataFrame
        threshold (falling), taken (share of rows), pf1, low, high; the band holds at each threshold by itself.
    """
    labels, probabilities = np.asarray(labels, dtype=float), np.asarray(probabilities, dtype=float)
    cuts = cut_points(probabilities)
    bins = cut_bins(probabilities, cuts)
    hits, taken = (
        np.cumsum(bootstrap.histograms(bins, len(cuts), values), axis=1) for values in (labels, np.ones(len(labels)))
    )
    drawn = 2 * hits / np.maximum(hits[:, -1:] + taken, 1)  # nothing drawn and nothing taken counts as 0
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    f1 = [probabilistic_f1(labels, decide(probabilities, cut)) for cut in cuts]
    share = [decide(probabilities, cut).mean() for cut in cuts]
    return pd.DataFrame({"threshold": cuts, "taken": share, "pf1": f1, "low": low, "high": high})


def prevalence_shift(labels: np.ndarray, probabilities: np.ndarray, threshold: float, prevalences: np.ndarray) -> pd.DataFrame:
    """Say what a threshold is worth where cancer is rarer or more common, and which would be best there.

    Sensitivity and specificity stay as they are; the shares of positives and negatives move.

    Parameters
    ----------
    labels, probabilities : array-like of shape (n,)
    threshold : float
        The chosen one.
    prevalences : array-like
        In (0, 1).

    Returns
    -------
    DataFrame
        prevalence, pf1 at ``threshold``, best_threshold and best_pf1, both tuned on these very rows.
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
