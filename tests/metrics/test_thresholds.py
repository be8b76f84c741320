"""Facts about thresholds: how they are chosen, and how they are estimated on patients that did not choose them."""

from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import f1_score

from utils.metrics import thresholds
from utils.metrics.intervals import PatientBootstrap
from utils.metrics.scores import best_threshold, decide
from utils.metrics.thresholds import (
    CHOICES,
    cut_points,
    maximum_threshold,
    nested_decisions,
    patient_nested,
    pf1_curve,
    plateau_threshold,
    prevalence_shift,
    site_decisions,
    site_thresholds,
)

BOTH = pytest.mark.parametrize("choose", CHOICES.values(), ids=CHOICES)


def random_case(seed: int, n: int = 30, levels: int = 11) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities that tell something about them and are tied where there are few levels, and three groups."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, n)
    return labels, np.round((generator.random(n) + 0.5 * labels) / 1.5 * (levels - 1)) / (levels - 1), np.arange(n) % 3


def mean_over_neighbours(f1: list[float], rank: int) -> float:
    """Mean F1 over the ranks from a half to twice a rank, or by as much less as the last rank allows, one at a time."""
    n = len(f1)
    reach = min(Fraction(2), Fraction(n, rank))
    neighbours = [other for other in range(1, n + 1) if rank / reach <= other <= rank * reach]
    widths = [np.log((other + 1) / other) for other in neighbours]
    return sum(width * f1[other - 1] for width, other in zip(widths, neighbours, strict=True)) / sum(widths)


@pytest.mark.parametrize("levels", [4, 30, 10_000])
@pytest.mark.parametrize("seed", range(40))
def test_plateau_is_the_highest_mean_over_neighbours(seed, levels):
    labels, probabilities, _ = random_case(seed, n=1 + seed, levels=levels)
    ranked = sorted(probabilities, reverse=True)
    taken = [probabilities >= cut for cut in ranked]  # equal ones together
    f1 = [2 * labels[rows].sum() / (labels.sum() + rows.sum()) for rows in taken]
    ends = [rank for rank in range(1, len(ranked) + 1) if rank == len(ranked) or ranked[rank - 1] > ranked[rank]]
    means = np.array([mean_over_neighbours(f1, rank) for rank in ends])
    wanted = ends[int(np.flatnonzero(means >= means.max() - 1e-9)[0])]
    threshold = plateau_threshold(labels, probabilities)
    np.testing.assert_array_equal(decide(probabilities, threshold), probabilities >= ranked[wanted - 1])
    below = ranked[wanted] if wanted < len(ranked) else 0
    assert threshold == pytest.approx((ranked[wanted - 1] + below) / 2)


def test_plateau_loses_less_than_the_maximum_on_new_patients():
    generator, share, apart = np.random.default_rng(0), 0.1, 1.5
    lost = {name: [] for name in CHOICES}
    cuts = np.linspace(-1, 4, 1000)

    def true_f1(cut):  # of two normal distributions
        hits, false = share * norm.sf(cut - apart), (1 - share) * norm.sf(cut)
        return 2 * hits / (share + hits + false)

    for _ in range(300):
        labels = (generator.random(400) < share).astype(int)
        scores = generator.normal(apart * labels)
        for name, choose in CHOICES.items():
            lost[name].append(true_f1(cuts).max() - true_f1(choose(labels, scores)))
    gained = np.subtract(lost["maximum"], lost["plateau"])
    assert gained.mean() > 5 * gained.std() / np.sqrt(300)
    assert np.mean(lost["plateau"]) < 0.7 * np.mean(lost["maximum"])


@BOTH
@pytest.mark.parametrize("low", [0.5, 0.3, 1e-300, np.nextafter(1, 0), np.nextafter(0.25, 1)])
def test_threshold_parts_neighbouring_floats(choose, low):
    probabilities = np.array([low, np.nextafter(low, 2)])
    np.testing.assert_array_equal(decide(probabilities, choose([0, 1], probabilities)), [0, 1])


@BOTH
@pytest.mark.parametrize("seed", range(20))
def test_threshold_does_not_depend_on_the_order_of_rows(choose, seed):
    labels, probabilities, _ = random_case(seed, levels=5)
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    assert choose(labels[shuffled], probabilities[shuffled]) == choose(labels, probabilities)


@pytest.mark.parametrize("seed", range(10))
def test_maximum_is_the_best_threshold(seed):
    labels, probabilities, _ = random_case(seed)
    assert maximum_threshold(labels, probabilities) == best_threshold(labels, probabilities)[0]


@BOTH
@pytest.mark.parametrize("seed", range(4))
def test_nested_decisions_use_the_threshold_of_the_other_groups(seed, choose):
    labels, probabilities, groups = random_case(seed)
    decisions = nested_decisions(labels, probabilities, groups, choose)
    for group in range(3):
        threshold = choose(labels[groups != group], probabilities[groups != group])
        np.testing.assert_array_equal(decisions[groups == group], probabilities[groups == group] >= threshold)


@BOTH
@pytest.mark.parametrize("group", range(3))
@pytest.mark.parametrize("seed", range(4))
def test_flipping_a_groups_labels_leaves_its_own_decisions(seed, group, choose):
    labels, probabilities, groups = random_case(seed)
    flipped = np.where(groups == group, 1 - labels, labels)
    before, after = (nested_decisions(given, probabilities, groups, choose) for given in (labels, flipped))
    np.testing.assert_array_equal(before[groups == group], after[groups == group])


def test_flipping_a_groups_labels_reaches_the_other_groups():
    probabilities, groups = [0.9, 0.3, 0.9, 0.5], [0, 0, 1, 1]
    for labels, expected in (
        ([1, 0, 1, 0], [1, 0, 1, 0]),
        ([0, 1, 1, 0], [1, 0, 1, 1]),
        ([1, 0, 0, 1], [1, 1, 1, 0]),
    ):
        np.testing.assert_array_equal(nested_decisions(labels, probabilities, groups, maximum_threshold), expected)


def test_nested_decisions_of_one_group_are_all_zero():
    np.testing.assert_array_equal(nested_decisions([1, 0], [0.9, 0.1], [2, 2]), [0, 0])


def test_nested_decisions_accept_names_of_groups():
    labels, probabilities, groups = random_case(0)
    named = nested_decisions(labels, probabilities, np.array(["a", "b", "c"])[groups])
    np.testing.assert_array_equal(named, nested_decisions(labels, probabilities, groups))


@BOTH
def test_patient_nested_decides_no_patient_by_its_own_labels(choose):
    labels, probabilities, _ = random_case(2, levels=1000)
    patients = np.arange(30) // 2
    before, reached = patient_nested(labels, probabilities, patients, choose), False
    for patient in range(15):
        own = patients == patient
        after = patient_nested(np.where(own, 1 - labels, labels), probabilities, patients, choose)
        np.testing.assert_array_equal(before[own], after[own])
        reached |= (before != after).any()
    assert reached


def test_patient_nested_is_a_mean_over_whole_groups_of_patients(monkeypatch):
    seen = []
    labels, probabilities, _ = random_case(3, n=60, levels=1000)
    patients = np.arange(60) // 2

    def spy(_, found, groups, *rest):
        seen.append(dict(zip(found, groups, strict=True)))  # rows come sorted: tell them by their probability
        return decide(found, 0.5 if len(seen) % 2 else 2)

    monkeypatch.setattr(thresholds, "nested_decisions", spy)
    probabilities += np.arange(60) * 1e-9  # unique
    decisions = patient_nested(labels, probabilities, patients)
    np.testing.assert_allclose(decisions, decide(probabilities, 0.5) / 2)
    assert len(seen) == 10
    for dealt in seen:
        groups = np.array([dealt[probability] for probability in probabilities])
        np.testing.assert_array_equal(groups[::2], groups[1::2])
        np.testing.assert_array_equal(np.bincount(groups), [6] * 10)
    assert len({tuple(dealt.values()) for dealt in seen}) == 10


def test_patient_nested_is_between_0_and_1_and_depends_on_the_seed_alone():
    labels, probabilities, _ = random_case(1, n=200, levels=1000)
    patients = np.arange(200) // 2
    first, again, other = (patient_nested(labels, probabilities, patients, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and first.min() >= 0 and first.max() <= 1
    assert ((first > 0) & (first < 1)).any()  # some lie between the thresholds


@BOTH
def test_patient_nested_of_few_patients_leaves_each_out(choose):
    labels, probabilities, _ = random_case(7, n=6, levels=1000)
    expected = [decide(probabilities[row], choose(np.delete(labels, row), np.delete(probabilities, row))) for row in range(6)]
    np.testing.assert_array_equal(patient_nested(labels, probabilities, np.arange(6), choose), expected)


@BOTH
def test_each_site_gets_the_threshold_of_its_rows(choose):
    labels, probabilities, sites = random_case(4)
    labels[sites == 2] = 0  # without positives
    found = site_thresholds(labels, probabilities, sites, choose)
    assert found == {site: choose(labels[sites == site], probabilities[sites == site]) for site in (0, 1)}


def test_site_without_a_threshold_takes_the_other_one():
    decisions = site_decisions([0.3, 0.3, 0.3, 0.3], [1, 2, 3, 1], {1: 0.2, 2: 0.4}, otherwise=0.25)
    np.testing.assert_array_equal(decisions, [1, 0, 1, 1])
    np.testing.assert_array_equal(site_decisions([0.3, 0.2], [1, 2], {}, otherwise=0.25), [1, 0])


@BOTH
def test_nested_site_decisions_use_the_sites_threshold_of_the_other_groups(choose):
    labels, probabilities, groups = random_case(5, n=60)
    sites = np.where(np.arange(60) < 40, 1, 2)
    labels[(sites == 2) & (groups != 0)] = 0  # groups 1 and 2 alone show no positive at site 2
    decisions = nested_decisions(labels, probabilities, groups, choose, sites)
    for row in range(60):
        others = groups != groups[row]
        like = others & (sites == sites[row]) if sites[row] == 1 or groups[row] != 0 else others
        assert decisions[row] == (probabilities[row] >= choose(labels[like], probabilities[like]))


@pytest.mark.parametrize("group", range(3))
def test_flipping_a_groups_labels_leaves_its_own_decisions_by_site(group):
    labels, probabilities, groups = random_case(6, n=60)
    sites = np.arange(60) // 30
    flipped = np.where(groups == group, 1 - labels, labels)
    before, after = (nested_decisions(given, probabilities, groups, sites=sites) for given in (labels, flipped))
    np.testing.assert_array_equal(before[groups == group], after[groups == group])


@pytest.mark.parametrize("levels", [5, 1000])
def test_cut_points_part_all_probabilities_where_they_are_few(levels):
    _, probabilities, _ = random_case(0, levels=levels)
    known = np.unique(probabilities)[::-1]
    cuts = cut_points(probabilities, n_cuts=10_000)
    np.testing.assert_allclose(cuts, (known + np.append(known[1:], 0)) / 2)


def test_cut_points_are_few_fall_and_lie_closer_where_few_rows_are_taken():
    probabilities = np.random.default_rng(0).random(5000)
    cuts = cut_points(probabilities, n_cuts=100)
    taken = np.array([decide(probabilities, cut).sum() for cut in cuts])
    assert 50 < len(cuts) <= 100 and (np.diff(cuts) < 0).all()
    assert taken[0] == 1 and taken[-1] == 5000 and (taken <= 100).sum() > (taken > 1000).sum()


@pytest.mark.parametrize("levels", [5, 1000])
def test_pf1_curve_and_its_band_are_those_of_each_cut_by_itself(levels):
    labels, probabilities, _ = random_case(1, levels=levels)
    bootstrap = PatientBootstrap(np.arange(30) // 2, n_draws=60)
    weights = bootstrap._counts[:, bootstrap._codes].astype(int)
    curve = pf1_curve(labels, probabilities, bootstrap)
    np.testing.assert_array_equal(curve.threshold, cut_points(probabilities))
    for row in curve.itertuples():
        decisions = probabilities >= row.threshold
        assert row.taken == pytest.approx(decisions.mean())
        assert row.pf1 == pytest.approx(f1_score(labels, decisions))
        drawn = [2 * (counts @ (labels * decisions)) / (counts @ labels + counts @ decisions) for counts in weights]
        assert (row.low, row.high) == pytest.approx(tuple(np.percentile(drawn, (2.5, 97.5))))


@pytest.mark.filterwarnings("error")
def test_pf1_band_counts_draws_without_positives_as_zero():
    labels = np.zeros(40, int)
    labels[0] = 1
    curve = pf1_curve(labels, np.linspace(0, 1, 40), PatientBootstrap(np.arange(40), n_draws=100))
    assert (curve.low == 0).all() and np.isfinite(curve.high).all()


@pytest.mark.parametrize("prevalence", [0.005, 0.02, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_prevalence_shift_is_f1_of_reweighted_rows(seed, prevalence):
    labels, probabilities, _ = random_case(seed)
    row = prevalence_shift(labels, probabilities, 0.6, [prevalence]).iloc[0]
    weights = np.where(labels == 1, prevalence / labels.sum(), (1 - prevalence) / (labels == 0).sum())

    def f1(cut):
        return f1_score(labels, probabilities >= cut, sample_weight=weights, zero_division=0)

    assert row.pf1 == pytest.approx(f1(0.6))
    assert row.best_pf1 == pytest.approx(max(f1(cut) for cut in probabilities))
    assert f1(row.best_threshold) == pytest.approx(row.best_pf1)


def test_rarer_cancer_wants_a_higher_threshold():
    generator = np.random.default_rng(0)
    labels = (np.arange(4000) % 4 == 0).astype(int)
    probabilities = 1 / (1 + np.exp(-generator.normal(1.5 * labels)))
    table = prevalence_shift(labels, probabilities, 0.6, [0.01, 0.1, 0.5])
    assert (table.best_threshold.diff().dropna() < 0).all() and (table.best_pf1 >= table.pf1).all()
