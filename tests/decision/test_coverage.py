"""A thousand made-up data sets, whose truth is known in closed form: intervals cover it, and nested estimates are unbiased.

A patient has cancer in one breast at most; scores are normal, shifted where there is cancer, and alike within a patient.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from scipy.stats import norm

from utils.metrics.intervals import PatientBootstrap
from utils.metrics.scores import decide, probabilistic_f1
from utils.metrics.thresholds import CHOICES, nested_decisions, patient_nested, plateau_threshold

N_SETS, N_PATIENTS, N_DRAWS = 1000, 200, 400
SHARE = 0.2  # of breasts with cancer: 80 a set
SHIFTS = (1.5, 1.2)  # of two models, in standard deviations
WITHIN, BETWEEN = 0.5, 0.6  # correlation of a patient's breasts, and of the models
CUT = 1.3  # near the best threshold
N_GROUPS = 10


def true_auc(shift: float) -> float:
    """AUC of two normal distributions of variance 1."""
    return norm.cdf(shift / np.sqrt(2))


def true_pf1(sensitivity: float, false_positives: float) -> float:
    """F1 of decisions on endlessly many patients."""
    return 2 * SHARE * sensitivity / (SHARE + SHARE * sensitivity + (1 - SHARE) * false_positives)


def true_pf1_at(cuts: np.ndarray) -> float:
    """F1 on endlessly many patients, an equal share of whom is decided by each cut."""
    return true_pf1(np.mean(norm.sf(cuts - np.array(SHIFTS[0]))), np.mean(norm.sf(cuts)))


def data_sets() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Labels, patients, and the scores of two models, of N_SETS data sets."""
    generator = np.random.default_rng(0)
    patients = np.repeat(np.arange(N_PATIENTS), 2)

    def noise():
        common, own = generator.normal(size=(N_PATIENTS, 1)), generator.normal(size=(N_PATIENTS, 2))
        return np.sqrt(WITHIN) * common + np.sqrt(1 - WITHIN) * own

    for _ in range(N_SETS):
        labels = np.zeros((N_PATIENTS, 2), dtype=int)
        ill = np.flatnonzero(generator.random(N_PATIENTS) < 2 * SHARE)
        labels[ill, generator.integers(0, 2, len(ill))] = 1
        shared = noise()
        scores = (shift * labels + np.sqrt(BETWEEN) * shared + np.sqrt(1 - BETWEEN) * noise() for shift in SHIFTS)
        yield labels.ravel(), patients, *(score.ravel() for score in scores)


TRUTHS = {
    "AUC": true_auc(SHIFTS[0]),
    "difference of AUC": true_auc(SHIFTS[0]) - true_auc(SHIFTS[1]),
    "pF1 at a fixed threshold": true_pf1_at(np.array(CUT)),
}


@pytest.fixture(scope="module")
def intervals():
    """Low and high ends by kind: arrays of shape (N_SETS, 2)."""
    found = {kind: [] for kind in TRUTHS}
    for seed, (labels, patients, first, second) in enumerate(data_sets()):
        bootstrap = PatientBootstrap(patients, N_DRAWS, seed)
        draws = bootstrap.auc_draws(labels, first), bootstrap.auc_draws(labels, second)
        of_set = {
            "AUC": draws[0],
            "difference of AUC": draws[0] - draws[1],  # as `auc_difference` takes it
            "pF1 at a fixed threshold": bootstrap.pf1_draws(labels, decide(first, CUT)),
        }
        for kind, values in of_set.items():
            interval = bootstrap.interval(0.0, values)
            found[kind].append((interval.low, interval.high))
    return {kind: np.array(ends) for kind, ends in found.items()}


@pytest.mark.parametrize("kind", TRUTHS)
def test_95_percent_intervals_cover_the_truth_in_93_to_97_percent_of_data_sets(intervals, kind):
    low, high = intervals[kind].T
    assert 0.93 <= np.mean((low <= TRUTHS[kind]) & (TRUTHS[kind] <= high)) <= 0.97
    for beside in (np.mean(TRUTHS[kind] < low), np.mean(TRUTHS[kind] > high)):  # both ends miss: neither is too far out
        assert 0.005 < beside < 0.05


def test_rows_that_count_twice_make_intervals_that_cover_too_seldom():
    """The simulation can tell: 95 % intervals, a factor of the root of 2 too narrow, cover the truth in 83 %."""
    covered = []
    for seed, (labels, _, first, _) in enumerate(islice(data_sets(), 100)):
        bootstrap = PatientBootstrap(np.arange(4 * N_PATIENTS), 200, seed)
        found = bootstrap.auc(np.tile(labels, 2), np.tile(first, 2))
        covered.append(found.low <= TRUTHS["AUC"] <= found.high)
    assert 0.75 < np.mean(covered) < 0.91


@pytest.fixture(scope="module")
def errors():
    """Estimates of a tuned pF1 minus the true pF1 of the thresholds that they used: naive and nested, by choice."""
    found = {name: [] for name in CHOICES}
    generator = np.random.default_rng(1)
    for labels, patients, scores, _ in data_sets():
        groups = generator.permutation(np.arange(N_PATIENTS) % N_GROUPS)[patients]
        for name, choose in CHOICES.items():
            cut = choose(labels, scores)
            cuts = np.array([choose(labels[groups != group], scores[groups != group]) for group in range(N_GROUPS)])
            naive = probabilistic_f1(labels, decide(scores, cut)) - true_pf1_at(cut)
            nested = probabilistic_f1(labels, nested_decisions(labels, scores, groups, choose)) - true_pf1_at(cuts)
            found[name].append((naive, nested))
    return {name: np.array(rows) for name, rows in found.items()}


def in_standard_errors(values: np.ndarray) -> float:
    """Mean beside the standard error that the number of simulations leaves it."""
    return values.mean() / (values.std(ddof=1) / np.sqrt(len(values)))


@pytest.mark.parametrize("name", CHOICES)
def test_nested_estimate_of_a_tuned_pf1_is_unbiased(errors, name):
    _, nested = errors[name].T
    assert abs(in_standard_errors(nested)) < 3
    assert abs(nested.mean()) < 0.005


@pytest.mark.parametrize(("name", "at_least"), [("maximum", 15), ("plateau", 3)])
def test_pf1_on_the_data_that_chose_the_threshold_is_too_good(errors, name, at_least):
    naive, nested = errors[name].T
    assert in_standard_errors(naive) > at_least
    assert naive.mean() > 4 * abs(nested.mean())


def test_ten_times_other_groups_give_the_same_estimate_with_less_noise():
    differences, estimates = [], []
    generator = np.random.default_rng(2)
    for labels, patients, scores, _ in islice(data_sets(), 200):
        one, other = (generator.permutation(np.arange(N_PATIENTS) % N_GROUPS)[patients] for _ in range(2))
        once, again = (
            probabilistic_f1(labels, nested_decisions(labels, scores, groups, plateau_threshold)) for groups in (one, other)
        )
        repeated = probabilistic_f1(labels, patient_nested(labels, scores, patients))
        differences.append(repeated - once)
        estimates.append((once - again) / np.sqrt(2))
    assert abs(in_standard_errors(np.array(differences))) < 3
    assert np.std(differences) < 1.2 * np.std(estimates)  # what is left is the noise of the one deal
