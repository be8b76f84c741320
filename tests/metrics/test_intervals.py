"""Facts about the bootstrap over patients, the intervals of proportions, and the words for a difference."""

import numpy as np
import pytest
from scipy.stats import multinomial, norm
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from utils.metrics import intervals
from utils.metrics.intervals import Interval, PatientBootstrap, proportion
from utils.metrics.scores import probabilistic_f1

KINDS = ["auc", "average_precision", "pf1"]


def random_case(seed: int, n: int = 40, levels: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities of few levels, so that many are tied, and patients of one to several rows."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, n)
    labels[:2] = 0, 1
    return labels, generator.integers(0, levels, n) / (levels - 1), generator.integers(0, n // 3, n)


def row_weights(bootstrap: PatientBootstrap) -> np.ndarray:
    """How often each row was drawn: shape (n_draws, n)."""
    return bootstrap._counts[:, bootstrap._codes].astype(int)


def by_hand(function, labels, probabilities, bootstrap) -> np.ndarray:
    """A metric on each draw's rows, repeated as often as they were drawn; NaN where only one class was."""
    found = []
    for weights in row_weights(bootstrap):
        drawn = np.repeat(labels, weights)
        both = 0 < drawn.sum() < len(drawn)
        found.append(function(drawn, np.repeat(probabilities, weights)) if both else np.nan)
    return np.array(found)


@pytest.mark.parametrize("levels", [6, 10_000])
@pytest.mark.parametrize("seed", range(5))
def test_auc_of_each_draw_is_scikit_learns_on_repeated_rows(seed, levels):
    labels, probabilities, patients = random_case(seed, levels=levels)
    bootstrap = PatientBootstrap(patients, 30, seed)
    expected = by_hand(roc_auc_score, labels, probabilities, bootstrap)
    np.testing.assert_allclose(bootstrap.auc_draws(labels, probabilities), expected, rtol=1e-12)


@pytest.mark.parametrize("levels", [6, 10_000])
@pytest.mark.parametrize("seed", range(5))
def test_average_precision_of_each_draw_is_scikit_learns_on_repeated_rows(seed, levels):
    labels, probabilities, patients = random_case(seed, levels=levels)
    bootstrap = PatientBootstrap(patients, 30, seed)
    expected = by_hand(average_precision_score, labels, probabilities, bootstrap)
    np.testing.assert_allclose(bootstrap.average_precision_draws(labels, probabilities), expected, rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_pf1_of_each_draw_is_that_of_repeated_rows(seed):
    labels, probabilities, patients = random_case(seed)
    bootstrap = PatientBootstrap(patients, 30, seed)
    probabilities = 2 * probabilities - 0.5  # some to be clipped
    expected = by_hand(probabilistic_f1, labels, probabilities, bootstrap)
    np.testing.assert_allclose(bootstrap.pf1_draws(labels, probabilities), expected, rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_pf1_of_decisions_in_each_draw_is_scikit_learns_weighted_f1(seed):
    labels, probabilities, patients = random_case(seed)
    decisions, bootstrap = (probabilities >= 0.6).astype(int), PatientBootstrap(patients, 30, seed)
    expected = [f1_score(labels, decisions, sample_weight=weights) for weights in row_weights(bootstrap)]
    np.testing.assert_allclose(bootstrap.pf1_draws(labels, decisions), expected, rtol=1e-12)


def test_counts_above_a_bytes_do_not_overflow():
    labels, probabilities, patients = random_case(0, n=1500, levels=3)
    bootstrap = PatientBootstrap(patients, 3)
    for function, draws in ((roc_auc_score, bootstrap.auc_draws), (average_precision_score, bootstrap.average_precision_draws)):
        np.testing.assert_allclose(
            draws(labels, probabilities), by_hand(function, labels, probabilities, bootstrap), rtol=1e-12
        )


def test_sums_are_those_of_repeated_rows():
    labels, probabilities, patients = random_case(1)
    bootstrap = PatientBootstrap(patients, 20)
    weights = row_weights(bootstrap)
    np.testing.assert_allclose(
        bootstrap.sums(labels, probabilities), np.stack([weights @ labels, weights @ probabilities], axis=1)
    )


def test_histograms_are_those_of_repeated_rows():
    labels, probabilities, patients = random_case(2)
    bootstrap, bins = PatientBootstrap(patients, 20), np.random.default_rng(0).integers(0, 5, 40)
    expected = [np.bincount(np.repeat(bins, weights), np.repeat(labels, weights), 7) for weights in row_weights(bootstrap)]
    np.testing.assert_allclose(bootstrap.histograms(bins, 7, labels), expected)


def test_a_patients_rows_are_drawn_together_and_as_many_patients_as_there_are():
    patients = np.array(["b", "a", "b", "c", "a", "b"])
    weights = row_weights(PatientBootstrap(patients, 2000))
    by_patient = weights[:, [0, 1, 3]]
    np.testing.assert_array_equal(weights, by_patient[:, [0, 1, 0, 2, 1, 0]])
    np.testing.assert_array_equal(by_patient.sum(axis=1), 3)
    np.testing.assert_allclose(np.cov(by_patient.T), multinomial(3, [1 / 3] * 3).cov(), atol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_interval_is_the_plain_metric_with_percentiles_of_the_draws(kind):
    labels, probabilities, patients = random_case(3)
    bootstrap = PatientBootstrap(patients, 200, seed=4)
    reference = {"auc": roc_auc_score, "average_precision": average_precision_score, "pf1": probabilistic_f1}[kind]
    found, draws = getattr(bootstrap, kind)(labels, probabilities), by_hand(reference, labels, probabilities, bootstrap)
    assert found.value == pytest.approx(reference(labels, probabilities))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(draws, (2.5, 97.5))))


@pytest.mark.parametrize("kind", ["auc", "pf1"])
def test_difference_is_taken_draw_by_draw(kind):
    labels, first, patients = random_case(5)
    second, bootstrap = random_case(6)[1], PatientBootstrap(patients, 200)
    reference = {"auc": roc_auc_score, "pf1": probabilistic_f1}[kind]
    found = getattr(bootstrap, f"{kind}_difference")(labels, first, second)
    draws = by_hand(reference, labels, first, bootstrap) - by_hand(reference, labels, second, bootstrap)
    assert found.value == pytest.approx(reference(labels, first) - reference(labels, second))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(draws, (2.5, 97.5))))


def test_same_order_on_another_scale_does_not_differ_at_all():
    labels, scores, patients = random_case(0)
    found = PatientBootstrap(patients, 100).auc_difference(labels, scores, 3 * scores + 1)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_undefined_draws_do_not_count_and_the_level_sets_the_tails():
    draws = np.append(np.arange(101.0), [np.nan] * 50)
    for level, low, high in ((0.95, 2.5, 97.5), (0.8, 10, 90)):
        found = PatientBootstrap(["a"], 1).interval(7.0, draws, level)
        assert (found.value, found.low, found.high) == pytest.approx((7, low, high))


@pytest.mark.filterwarnings("error")
def test_draws_with_one_class_are_nan_for_auc_and_do_not_count():
    bootstrap = PatientBootstrap(["a", "b"], 50)
    one_class = (row_weights(bootstrap) == 0).any(axis=1)
    assert 0 < one_class.sum() < 50
    np.testing.assert_array_equal(np.isnan(bootstrap.auc_draws([1, 0], [0.9, 0.1])), one_class)
    assert bootstrap.auc([1, 0], [0.9, 0.1]) == Interval(1, 1, 1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", [0, 1])
def test_auc_of_one_class_is_nan_throughout(label):
    found = PatientBootstrap(["a", "b", "c"]).auc([label] * 3, [0.1, 0.5, 0.9])
    assert np.isnan([found.value, found.low, found.high]).all()


@pytest.mark.filterwarnings("error")
def test_average_precision_of_a_draw_without_positives_is_nan():
    bootstrap = PatientBootstrap(["a", "b"], 50)
    without = row_weights(bootstrap)[:, 0] == 0
    np.testing.assert_array_equal(np.isnan(bootstrap.average_precision_draws([1, 0], [0.9, 0.1])), without)


@pytest.mark.filterwarnings("error")
def test_pf1_without_positives_or_predictions_is_zero():
    bootstrap = PatientBootstrap(["a", "b", "c"], 50)
    assert bootstrap.pf1([0, 0, 0], [0.1, 0.5, 0.9]) == Interval(0, 0, 0)
    assert bootstrap.pf1([0, 0, 0], [0, 0, 0]) == Interval(0, 0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_repeated_rows_of_a_patient_do_not_shrink_the_interval(kind):
    labels, probabilities, _ = random_case(3)

    def width(times, patients):
        rows = np.tile(labels, times), np.tile(probabilities, times)
        found = getattr(PatientBootstrap(patients, 500), kind)(*rows)
        return found.high - found.low

    once = width(1, np.arange(40))
    assert width(4, np.tile(np.arange(40), 4)) == pytest.approx(once)
    assert width(4, np.arange(160)) < 0.7 * once  # as if independent


def test_draws_depend_on_the_seed_alone():
    first, again, other = (PatientBootstrap(np.arange(30), 20, seed)._counts for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_draws_do_not_depend_on_the_size_of_the_chunks(monkeypatch):
    labels, probabilities, patients = random_case(3)

    def everything():
        bootstrap = PatientBootstrap(patients, 50)
        found = [getattr(bootstrap, f"{kind}_draws")(labels, probabilities) for kind in KINDS]
        return np.stack([*found, *bootstrap.sums(labels).T, *bootstrap.histograms(patients, 13, labels).T])

    whole = everything()
    monkeypatch.setattr(intervals, "CHUNK", 40 * 7)
    np.testing.assert_allclose(everything(), whole, rtol=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (3, 10), (1, 1), (492, 23826)])
def test_proportion_has_wilsons_interval(successes, n):
    found, z, share = proportion(successes, n), norm.ppf(0.975), successes / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    assert found.value == share
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=1e-12)


def test_proportion_of_nothing_is_nan():
    found = proportion(0, 0)
    assert np.isnan([found.value, found.low, found.high]).all()


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.2, "better"),
        (-0.2, -0.01, "worse"),
        (-0.1, 0.1, "not measurably different"),
        (0.0, 0.1, "not measurably different"),
        (-0.1, 0.0, "not measurably different"),
        (np.nan, np.nan, "not measurably different"),
    ],
)
def test_verdict_is_what_the_interval_leaves_out(low, high, words):
    assert Interval(0.05, low, high).verdict == words


def test_interval_prints_with_three_digits_and_signs_where_asked():
    interval = Interval(0.12345, -0.1, 0.2)
    assert str(interval) == "0.123 [-0.100, 0.200]"
    assert interval.signed == "+0.123 [-0.100, +0.200]"
    assert str(Interval(np.nan, np.nan, np.nan)) == "undefined"


def test_ratio_of_each_draw_is_that_of_repeated_rows():
    generator = np.random.default_rng(3)
    top, bottom, patients = generator.random(30), generator.integers(0, 3, 30), generator.integers(0, 12, 30)
    bootstrap = PatientBootstrap(patients, 200, 0)
    draws = [np.repeat(top, weights).sum() / np.repeat(bottom, weights).sum() for weights in row_weights(bootstrap)]
    found = bootstrap.ratio(top, bottom)
    assert found.value == pytest.approx(top.sum() / bottom.sum())
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(draws, (2.5, 97.5))))
    assert np.isnan(bootstrap.ratio(top, np.zeros(30)).value)


def test_share_that_no_draw_can_change_has_wilsons_interval_over_patients():
    patients = np.repeat(np.arange(8), 5)
    bootstrap, ones = PatientBootstrap(patients), np.ones(40)
    assert bootstrap.share(ones, ones) == proportion(8, 8) and bootstrap.share(ones * 0, ones) == proportion(0, 8)
    hits = (patients < 2).astype(int)
    assert bootstrap.share(hits, ones) == bootstrap.ratio(hits, ones)
