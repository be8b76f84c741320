"""Facts about the metrics, and about the threshold with the highest pF1."""

import numpy as np
import pytest
from sklearn.metrics import fbeta_score

from utils.metrics.scores import area_under_roc, average_precision, best_threshold, decide, probabilistic_f1, sigmoid


def random_case(seed: int, n: int | None = None, levels: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities of few levels, so that many are tied."""
    generator = np.random.default_rng(seed)
    n = n or int(generator.integers(1, 15))
    return generator.integers(0, 2, n), generator.integers(0, levels, n) / (levels - 1)


def official_pf1(labels: list, predictions: list, beta: float) -> float:
    """The competition's own code, from its evaluation page, line for line; Python's numbers raise where it divides by 0."""
    y_true_count = 0
    ctp = 0
    cfp = 0

    for idx in range(len(labels)):
        prediction = min(max(predictions[idx], 0), 1)
        if labels[idx]:
            y_true_count += 1
            ctp += prediction
        else:
            cfp += prediction

    beta_squared = beta * beta
    c_precision = ctp / (ctp + cfp)
    c_recall = ctp / y_true_count
    if c_precision > 0 and c_recall > 0:
        return (1 + beta_squared) * (c_precision * c_recall) / (beta_squared * c_precision + c_recall)
    return 0


PREDICTIONS = {
    "soft": lambda generator, n: generator.random(n),
    "hard": lambda generator, n: generator.integers(0, 2, n),
    "beyond 0 and 1": lambda generator, n: generator.uniform(-0.5, 1.5, n),
    "tiny": lambda generator, n: 10.0 ** generator.uniform(-300, 0, n),
    "nothing predicted": lambda generator, n: np.zeros(n),
}
SHARES = (0.5, 0.1, 0.0, 1.0)  # of positives


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_pf1_is_the_competitions_own_code_on_a_thousand_cases(kind):
    generator = np.random.default_rng(0)
    defined = []
    for case in range(1000 // len(PREDICTIONS)):
        n, beta = generator.integers(1, 40), generator.choice([0.5, 1.0, 2.0])
        labels = (generator.random(n) < SHARES[case % len(SHARES)]).astype(int)
        probabilities = PREDICTIONS[kind](generator, n)
        found = probabilistic_f1(labels, probabilities, beta)
        try:
            expected = official_pf1(labels.tolist(), probabilities.tolist(), float(beta))
            defined.append(case)
        except ZeroDivisionError:  # no positives, or nothing predicted: the page does not say, and we give 0
            expected = 0
        assert abs(found - expected) <= 1e-12, (labels, probabilities, beta)
    assert len(defined) == 0 if kind == "nothing predicted" else 100 < len(defined) < 200  # both kinds of case were there


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
    scores = [2 * labels[probabilities >= cut].sum() / (labels.sum() + (probabilities >= cut).sum()) for cut in cuts]
    return (probabilities >= cuts[int(np.argmax(scores))]).astype(int), max(scores)


@pytest.mark.parametrize("seed", range(300))
def test_best_threshold_is_the_best_of_all_cut_points(seed):
    labels, probabilities = random_case(seed, levels=(6, 1000)[seed % 2])
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


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", [0, 1])
def test_auc_of_one_class_is_nan(label):
    assert np.isnan(area_under_roc([label, label], [0.1, 0.9]))


@pytest.mark.filterwarnings("error")
def test_average_precision_without_positives_is_zero():
    assert average_precision([0, 0], [0.1, 0.9]) == 0
