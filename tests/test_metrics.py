"""Facts about the metrics, thresholds and bootstrap intervals."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, fbeta_score, roc_auc_score

from utils import metrics
from utils.metrics import (
    Interval,
    area_under_roc,
    auc_difference,
    auc_interval,
    best_threshold,
    decide,
    nested_decisions,
    pf1_interval,
    probabilistic_f1,
    sigmoid,
    summarise,
)

INTERVALS = [auc_interval, pf1_interval]


def random_case(seed: int, n: int | None = None, levels: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities of few levels, so that many are tied."""
    generator = np.random.default_rng(seed)
    n = n or int(generator.integers(1, 15))
    return generator.integers(0, 2, n), generator.integers(0, levels, n) / (levels - 1)


def looped_pf1(labels, probabilities, beta: float = 1.0) -> float:
    """The competition page's formula, one term at a time."""
    true_count = c_tp = c_fp = 0.0
    for label, probability in zip(labels, probabilities, strict=True):
        probability = min(max(probability, 0), 1)
        true_count += label
        c_tp += probability if label else 0
        c_fp += 0 if label else probability
    if c_tp == 0 or true_count == 0:
        return 0.0
    precision, recall = c_tp / (c_tp + c_fp), c_tp / true_count
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(10))
def test_pf1_is_the_competitions_formula(seed, beta):
    generator = np.random.default_rng(seed)
    labels, probabilities = generator.integers(0, 2, 12), generator.uniform(-0.5, 1.5, 12)
    assert probabilistic_f1(labels, probabilities, beta) == pytest.approx(looped_pf1(labels, probabilities, beta), rel=1e-12)


def test_pf1_of_soft_probabilities_by_hand():
    assert probabilistic_f1([1, 0, 1], [0.5, 0.25, 0.25]) == pytest.approx(2 * 0.75 / (2 + 1))


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_pf1_of_hard_decisions_is_the_usual_f_score(seed, beta):
    generator = np.random.default_rng(seed)
    labels, decisions = generator.integers(0, 2, 20), generator.integers(0, 2, 20)
    assert probabilistic_f1(labels, decisions, beta) == pytest.approx(fbeta_score(labels, decisions, beta=beta))


@pytest.mark.parametrize(
    "labels, probabilities, expected",
    [
        ([0, 0], [0.3, 0.7], 0.0),
        ([0, 0], [0, 0], 0.0),
        ([1, 1], [0, 0], 0.0),
        ([1, 0], [0, 1], 0.0),
        ([1, 0], [1, 0], 1.0),
        ([1, 1], [1, 1], 1.0),
        ([1, 0], [7, -3], 1.0),
        ([1, 0], [2, 2], 2 / 3),
        ([1], [1], 1.0),
    ],
)
def test_pf1_edge_cases(labels, probabilities, expected):
    assert probabilistic_f1(labels, probabilities) == pytest.approx(expected)
    assert isinstance(probabilistic_f1(labels, probabilities), float)


def test_pf1_rises_with_a_positives_and_falls_with_a_negatives_probability():
    assert probabilistic_f1([1, 0], [0.5, 0.4]) < probabilistic_f1([1, 0], [0.6, 0.4])
    assert probabilistic_f1([1, 0], [0.5, 0.4]) > probabilistic_f1([1, 0], [0.5, 0.5])


def test_sigmoid_is_the_logistic_function_and_never_overflows():
    logits = np.array([-3.0, 0.0, 0.5, 20.0])
    np.testing.assert_allclose(sigmoid(logits), 1 / (1 + np.exp(-logits)), rtol=1e-12)
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(sigmoid(np.array([-1e6, 1e6])), [0, 1])


def test_decide_takes_the_threshold_itself():
    np.testing.assert_array_equal(decide([0.2, 0.3, 0.4], 0.3), [0, 1, 1])


def brute_force(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, float]:
    """Decisions and F1 of the best cut, the highest of equals, over all that take at least one."""
    cuts = sorted(set(probabilities), reverse=True)
    scores = [f1_score(labels, probabilities >= cut, zero_division=0) for cut in cuts]
    return (probabilities >= cuts[int(np.argmax(scores))]).astype(int), max(scores)


@pytest.mark.parametrize("seed", range(30))
def test_best_threshold_is_the_best_of_all(seed):
    labels, probabilities = random_case(seed)
    decisions, f1 = brute_force(labels, probabilities)
    threshold, pf1 = best_threshold(labels, probabilities)
    assert pf1 == pytest.approx(f1, abs=1e-12)
    np.testing.assert_array_equal(decide(probabilities, threshold), decisions)
    assert probabilistic_f1(labels, decide(probabilities, threshold)) == pytest.approx(pf1, abs=1e-12)


@pytest.mark.parametrize(
    "labels, probabilities, expected",
    [
        ([1, 0], [0.8, 0.4], 0.6),  # half way
        ([1, 0, 1, 0], [0.9, 0.7, 0.5, 0.1], 0.3),
        ([1, 0, 0, 1], [0.9, 0.8, 0.7, 0.6], 0.85),  # 2/3 with one taken and with all: the highest
        ([1, 1], [0.8, 0.4], 0.2),  # all taken: half way to 0
        ([1, 1], [0.0, 0.0], 0.0),
        ([0, 1, 0], [0.5, 0.5, 0.5], 0.25),
    ],
)
def test_best_threshold_by_hand(labels, probabilities, expected):
    assert best_threshold(labels, probabilities)[0] == pytest.approx(expected)


@pytest.mark.parametrize("low", [0.5, 0.3, 1e-300, np.nextafter(1, 0), np.nextafter(0.25, 1)])
def test_best_threshold_parts_neighbouring_floats(low):
    probabilities = np.array([low, np.nextafter(low, 2)])
    threshold, pf1 = best_threshold([0, 1], probabilities)
    assert pf1 == 1
    np.testing.assert_array_equal(decide(probabilities, threshold), [0, 1])


@pytest.mark.parametrize("low", [0.5, 0.3, 0.1, 0.7])
def test_threshold_parts_neighbouring_float32_probabilities(low):
    for _ in range(2):  # rounding to even spares every other float
        probabilities = np.array([low, np.nextafter(np.float32(low), np.float32(2))], dtype=np.float32)
        threshold, _ = best_threshold([0, 1], probabilities)
        np.testing.assert_array_equal(decide(probabilities, threshold), [0, 1])
        low = probabilities[1]


def folded_case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, probabilities = random_case(seed, n=30, levels=11)
    return labels, probabilities, np.arange(30) % 3


@pytest.mark.parametrize("seed", range(8))
def test_nested_decisions_use_the_threshold_of_the_other_folds(seed):
    labels, probabilities, folds = folded_case(seed)
    decisions = nested_decisions(labels, probabilities, folds)
    for fold in range(3):
        threshold, _ = best_threshold(labels[folds != fold], probabilities[folds != fold])
        np.testing.assert_array_equal(decisions[folds == fold], probabilities[folds == fold] >= threshold)


@pytest.mark.parametrize("fold", range(3))
@pytest.mark.parametrize("seed", range(4))
def test_flipping_a_folds_labels_leaves_its_own_decisions(seed, fold):
    labels, probabilities, folds = folded_case(seed)
    before = nested_decisions(labels, probabilities, folds)
    after = nested_decisions(np.where(folds == fold, 1 - labels, labels), probabilities, folds)
    np.testing.assert_array_equal(before[folds == fold], after[folds == fold])


def test_flipping_a_folds_labels_reaches_the_other_folds():
    probabilities, folds = [0.9, 0.3, 0.9, 0.5], [0, 0, 1, 1]
    np.testing.assert_array_equal(nested_decisions([1, 0, 1, 0], probabilities, folds), [1, 0, 1, 0])
    np.testing.assert_array_equal(nested_decisions([0, 1, 1, 0], probabilities, folds), [1, 0, 1, 1])
    np.testing.assert_array_equal(nested_decisions([1, 0, 0, 1], probabilities, folds), [1, 1, 1, 0])


def test_nested_decisions_of_one_fold_are_all_zero():
    np.testing.assert_array_equal(nested_decisions([1, 0], [0.9, 0.1], [2, 2]), [0, 0])


def test_nested_decisions_accept_names_of_folds():
    labels, probabilities, folds = folded_case(0)
    named = np.array(["a", "b", "c"])[folds]
    np.testing.assert_array_equal(
        nested_decisions(labels, probabilities, named), nested_decisions(labels, probabilities, folds)
    )


@pytest.mark.parametrize("label", [0, 1])
def test_auc_of_one_class_is_nan(label):
    assert np.isnan(area_under_roc([label, label], [0.1, 0.9]))


def test_summary_agrees_with_scikit_learn():
    labels, probabilities = random_case(5, n=40)
    decisions = probabilities >= 0.4
    summary = summarise(labels, probabilities, 0.4)
    assert summary["auc"] == pytest.approx(roc_auc_score(labels, probabilities))
    assert summary["average_precision"] == pytest.approx(average_precision_score(labels, probabilities))
    assert summary["f1"] == pytest.approx(f1_score(labels, decisions))
    assert summary["probabilistic_f1"] == pytest.approx(f1_score(labels, decisions))
    assert summary["accuracy"] == pytest.approx((labels == decisions).mean())
    assert summary["precision"] == pytest.approx(labels[decisions].mean())
    assert summary["recall"] == pytest.approx(decisions[labels == 1].mean())
    assert (summary["n"], summary["positives"]) == (40, labels.sum())


@pytest.mark.filterwarnings("error")
def test_summary_without_positives_is_quiet_and_zero():
    summary = summarise([0, 0], [0.1, 0.9], 0.5)
    assert np.isnan(summary.pop("auc"))
    assert summary == {
        "average_precision": 0,
        "accuracy": 0.5,
        "precision": 0,
        "recall": 0,
        "f1": 0,
        "probabilistic_f1": 0,
        "n": 2,
        "positives": 0,
    }


@pytest.fixture
def statistic_of(monkeypatch):
    """Give the function of row weights that an interval is built on, in place of the interval."""

    def build(interval, labels, probabilities):
        monkeypatch.setattr(metrics, "_interval", lambda value, statistic, patients, seed: statistic)
        return interval(labels, probabilities, np.arange(len(labels)))

    return build


@pytest.mark.parametrize("seed", range(10))
def test_weighted_auc_matches_scikit_learn(statistic_of, seed):
    labels, probabilities = random_case(seed, n=20)
    labels[:2] = 0, 1
    weights = np.random.default_rng(seed).integers(0, 4, (3, 20)).astype(float)
    weights[:, :2] = 1
    expected = [roc_auc_score(labels, probabilities, sample_weight=row) for row in weights]
    np.testing.assert_allclose(statistic_of(auc_interval, labels, probabilities)(weights), expected, rtol=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_weighted_pf1_is_that_of_repeated_rows(statistic_of, seed):
    labels, probabilities = random_case(seed, n=20)
    counts = np.random.default_rng(seed).integers(0, 4, (3, 20))
    expected = [looped_pf1(np.repeat(labels, row), np.repeat(probabilities, row)) for row in counts]
    np.testing.assert_allclose(statistic_of(pf1_interval, labels, probabilities)(counts.astype(float)), expected, rtol=1e-12)


def test_weighted_pf1_clips_and_counts_empty_draws_as_zero(statistic_of):
    weighted = statistic_of(pf1_interval, [1, 0, 0], [1.5, -1, 0])
    weights = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 0]], dtype=float)
    np.testing.assert_array_equal(weighted(weights), [1, 0, 0])


def test_bootstrap_draws_whole_patients_as_many_as_there_are():
    seen = []
    patients = np.array(["b", "a", "b", "c", "a", "b"])
    metrics._interval(0.0, lambda weights: seen.append(weights) or weights.sum(axis=1), patients, seed=0)
    weights = np.concatenate(seen)
    assert weights.shape == (metrics.N_BOOTSTRAP, 6)
    by_patient = weights[:, [0, 1, 3]]
    np.testing.assert_array_equal(weights, by_patient[:, [0, 1, 0, 2, 1, 0]])
    np.testing.assert_array_equal(by_patient.sum(axis=1), 3)
    np.testing.assert_allclose(by_patient.mean(axis=0), 1, atol=0.1)
    np.testing.assert_allclose(by_patient.var(axis=0), 2 / 3, atol=0.1)  # of a multinomial: n p (1 - p)


def test_interval_is_the_middle_95_percent_of_the_finite_draws():
    def statistic(weights):
        values = np.arange(len(weights), dtype=float)
        values[900:] = np.nan
        return values

    interval = metrics._interval(7.0, statistic, ["a", "b"], seed=0)
    assert (interval.value, interval.low, interval.high) == pytest.approx((7, 0.025 * 899, 0.975 * 899))


@pytest.mark.parametrize("interval", INTERVALS)
def test_interval_contains_the_value(interval):
    labels, probabilities = random_case(11, n=60)
    found = interval(labels, probabilities, np.arange(60))
    assert found.low < found.value < found.high


def test_interval_values_are_the_plain_metrics():
    labels, probabilities = random_case(11, n=60)
    assert auc_interval(labels, probabilities, np.arange(60)).value == pytest.approx(roc_auc_score(labels, probabilities))
    assert pf1_interval(labels, probabilities, np.arange(60)).value == pytest.approx(looped_pf1(labels, probabilities))


@pytest.mark.parametrize("interval", INTERVALS)
def test_repeated_rows_of_a_patient_do_not_shrink_the_interval(interval):
    labels, probabilities = random_case(3, n=40)
    once = interval(labels, probabilities, np.arange(40))
    repeated = interval(np.tile(labels, 4), np.tile(probabilities, 4), np.tile(np.arange(40), 4))
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high))
    as_if_independent = interval(np.tile(labels, 4), np.tile(probabilities, 4), np.arange(160))
    assert as_if_independent.high - as_if_independent.low < 0.7 * (once.high - once.low)


@pytest.mark.parametrize("interval", INTERVALS)
def test_interval_depends_on_the_seed_alone(interval):
    labels, probabilities = random_case(3, n=40, levels=1000)
    first, again, other = (interval(labels, probabilities, np.arange(40), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("interval", INTERVALS)
def test_interval_does_not_depend_on_the_chunk_size(interval, monkeypatch):
    labels, probabilities = random_case(3, n=40)
    whole = interval(labels, probabilities, np.arange(40))
    monkeypatch.setattr(metrics, "CHUNK", 40 * 7)
    assert interval(labels, probabilities, np.arange(40)) == whole


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", [0, 1])
def test_auc_interval_of_one_class_is_nan(label):
    found = auc_interval([label] * 3, [0.1, 0.5, 0.9], ["a", "b", "c"])
    assert np.isnan([found.value, found.low, found.high]).all()


@pytest.mark.filterwarnings("error")
def test_auc_interval_skips_draws_with_one_class():
    found = auc_interval([1, 0], [0.9, 0.1], ["a", "b"])
    assert (found.value, found.low, found.high) == (1, 1, 1)


@pytest.mark.filterwarnings("error")
def test_pf1_interval_without_positives_is_zero():
    assert pf1_interval([0, 0, 0], [0.1, 0.5, 0.9], ["a", "b", "c"]) == Interval(0, 0, 0)


def test_interval_prints_with_three_digits():
    assert str(Interval(0.12345, 0.1, 0.2)) == "0.123 [0.100, 0.200]"


def test_auc_difference_draws_the_same_patients_for_both():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    patients, scores = np.arange(300) // 2, labels + rng.normal(0, 2, 300)
    same = auc_difference(labels, scores, 3 * scores + 1, patients)  # another scale, the same order
    assert (same.value, same.low, same.high) == (0, 0, 0)
    worse = auc_difference(labels, scores, rng.normal(size=300), patients)
    assert worse.value == pytest.approx(area_under_roc(labels, scores) - 0.5, abs=0.08) and worse.low > 0


def test_auc_difference_has_the_interval_of_a_bootstrap_done_by_hand():
    rng = np.random.default_rng(1)
    labels, patients = rng.integers(0, 2, 60), np.arange(60) // 3
    first, second = labels + rng.normal(0, 1, 60), labels + rng.normal(0, 2, 60)
    rows = [np.flatnonzero(patients == patient) for patient in range(20)]
    by_hand = []
    for _ in range(2000):
        drawn = np.concatenate([rows[patient] for patient in rng.integers(0, 20, 20)])
        by_hand.append(area_under_roc(labels[drawn], first[drawn]) - area_under_roc(labels[drawn], second[drawn]))
    interval = auc_difference(labels, first, second, patients)
    assert (interval.low, interval.high) == pytest.approx(np.percentile(by_hand, [2.5, 97.5]), abs=0.02)
