"""Facts about calibration: what is fitted, what is chosen, and what is drawn of it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression

from tests.helpers import TUNED
from utils.core.formats import build
from utils.decision.calibration import (
    EDGE,
    METHODS,
    Calibration,
    compare_calibrations,
    fit_calibration,
    logit,
    nested_calibration,
    reliability,
)
from utils.decision.threshold import Threshold
from utils.metrics.intervals import proportion
from utils.metrics.scores import sigmoid

FITTED = METHODS[1:]


def random_case(seed: int, n: int = 300, slope: float = 1.0, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from calibrated logits, and probabilities of these logits times ``slope`` plus ``shift``."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(-1, 1.5, n)
    return (generator.random(n) < sigmoid(logits)).astype(int), sigmoid(slope * logits + shift)


def written_and_read(calibration: Calibration, folder) -> Calibration:
    """What comes back from a threshold.json."""
    replace(build(Threshold, TUNED), calibration=calibration).save(folder / "threshold.json")
    return Threshold.load(folder / "threshold.json").calibration


@pytest.mark.parametrize(("method", "start"), [("temperature", [1.0]), ("platt", [1.0, 0.0])])
@pytest.mark.parametrize(("slope", "shift"), [(1, 0), (3, 0), (0.3, -4)])
@pytest.mark.parametrize("seed", range(3))
def test_line_has_the_lowest_loss_of_all(method, start, slope, shift, seed):
    labels, probabilities = random_case(seed, slope=slope, shift=shift)
    positives, negatives = labels.sum(), (labels == 0).sum()
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))  # Platt's

    def loss(parameters):
        line = parameters[0] * logit(probabilities) + (parameters[1] if len(parameters) > 1 else 0)
        return np.mean(np.logaddexp(0, line) - targets * line)

    found, best = fit_calibration(method, labels, probabilities), minimize(loss, start, method="BFGS", options={"gtol": 1e-9})
    parameters = [found.slope, found.intercept][: len(start)]
    assert loss(parameters) - best.fun < 1e-9
    assert parameters == pytest.approx(best.x.tolist(), rel=1e-4, abs=1e-5)
    assert method == "platt" or found.intercept == 0


def pooled(labels: np.ndarray) -> np.ndarray:
    """Isotonic regression of labels sorted by score, by its min-max formula."""
    n = len(labels)
    return np.array([max(min(labels[a : b + 1].mean() for b in range(i, n)) for a in range(i + 1)) for i in range(n)])


@pytest.mark.parametrize("seed", range(3))
def test_isotonic_map_is_the_min_max_formula_within_half_a_row_of_0_and_1(seed):
    labels, probabilities = random_case(seed, n=40)
    order = np.argsort(probabilities)
    calibrated = fit_calibration("isotonic", labels, probabilities)(probabilities)
    expected = np.clip(pooled(labels[order]), 0.5 / 40, 1 - 0.5 / 40)
    np.testing.assert_allclose(calibrated[order], (1 - EDGE) * expected + EDGE * probabilities[order], atol=1e-12)


def test_isotonic_map_is_scikit_learns_on_new_probabilities_too():
    labels, probabilities = random_case(0)
    probabilities = probabilities.round(2)  # ties
    model = IsotonicRegression(y_min=0.5 / 300, y_max=1 - 0.5 / 300, out_of_bounds="clip").fit(probabilities, labels)
    new = np.linspace(0, 1, 501)
    expected = (1 - EDGE) * model.predict(new) + EDGE * new
    np.testing.assert_allclose(fit_calibration("isotonic", labels, probabilities)(new), expected, atol=1e-12)


def test_isotonic_map_keeps_the_order_within_its_steps():
    labels, probabilities = random_case(2)
    calibrated = fit_calibration("isotonic", labels, probabilities)(probabilities)
    np.testing.assert_array_equal(np.argsort(calibrated), np.argsort(probabilities))


@pytest.mark.parametrize("method", METHODS)
def test_map_survives_json(method, tmp_path):
    calibration = fit_calibration(method, *random_case(1))
    again = written_and_read(calibration, tmp_path)
    assert again == calibration
    new = np.linspace(0, 1, 101)
    np.testing.assert_array_equal(again(new), calibration(new))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_map_rises_and_stays_within_0_and_1(method, seed):
    calibrated = fit_calibration(method, *random_case(seed, slope=3))(np.linspace(0, 1, 1001))
    assert (np.diff(calibrated) >= 0).all() and calibrated.min() >= 0 and calibrated.max() <= 1
    assert len(np.unique(calibrated)) > 990  # no steps, so no two breasts are joined


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_worse_than_chance_keeps_its_order(method):
    labels, probabilities = random_case(0, n=500)
    calibrated = fit_calibration(method, labels, 1 - probabilities)(1 - probabilities)
    np.testing.assert_array_equal(np.argsort(calibrated), np.argsort(1 - probabilities))


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_worse_than_chance_becomes_the_prevalence(method):
    generator = np.random.default_rng(0)
    labels = (generator.random(2000) < 0.05).astype(int)
    calibrated = fit_calibration(method, labels, sigmoid(generator.normal(-4 - labels)))
    assert calibrated(sigmoid(np.array([-6.0, -4.0, -2.0]))) == pytest.approx([labels.mean()] * 3, rel=0.1)


@pytest.mark.parametrize("spread", [1e-9, 1e-7, 1e-3])
@pytest.mark.parametrize("method", METHODS)
def test_probabilities_that_are_almost_equal_still_give_a_calibration(method, spread, tmp_path):
    """A network of one epoch gives such; what is fitted must be what a threshold.json may hold."""
    labels, probabilities = random_case(0, n=200)
    calibration = fit_calibration(method, labels, 0.48 + spread * (probabilities - 0.5))
    assert written_and_read(calibration, tmp_path) == calibration


def test_none_changes_nothing():
    probabilities = np.array([0.0, 0.3, 1.0])
    np.testing.assert_array_equal(fit_calibration("none", [0, 1, 1], probabilities)(probabilities), probabilities)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("method", METHODS)
def test_one_class_calibrates_nothing(method, label):
    assert fit_calibration(method, [label] * 3, [0.1, 0.5, 0.9]) == Calibration()


@pytest.mark.parametrize("method", METHODS)
def test_certain_probabilities_stay_finite(method):
    calibrated = fit_calibration(method, [0, 1, 0, 1], [0.0, 0.0, 1.0, 1.0])(np.array([0.0, 1.0]))
    assert np.isfinite(calibrated).all()


@pytest.mark.parametrize("method", FITTED)
@pytest.mark.parametrize("fold", range(3))
def test_flipping_a_folds_labels_leaves_its_own_calibration(method, fold):
    labels, probabilities = random_case(2)
    folds = np.arange(300) % 3
    before = nested_calibration(method, labels, probabilities, folds)
    after = nested_calibration(method, np.where(folds == fold, 1 - labels, labels), probabilities, folds)
    np.testing.assert_array_equal(before[folds == fold], after[folds == fold])
    assert (before[folds != fold] != after[folds != fold]).any()


@pytest.mark.parametrize("method", FITTED)
def test_nested_calibration_is_fitted_on_the_other_folds(method):
    labels, probabilities = random_case(3)
    folds = np.array(["a", "b", "c"])[np.arange(300) % 3]
    nested = nested_calibration(method, labels, probabilities, folds)
    for fold in "abc":
        fitted = fit_calibration(method, labels[folds != fold], probabilities[folds != fold])
        np.testing.assert_array_equal(nested[folds == fold], fitted(probabilities[folds == fold]))


def test_one_fold_is_not_calibrated_on_itself():
    labels, probabilities = random_case(3, slope=3)
    np.testing.assert_array_equal(nested_calibration("platt", labels, probabilities, np.zeros(300)), probabilities)


@pytest.mark.parametrize("seed", [4, 6, 7])  # on 6 and 7 the lowest Brier score is another method's
def test_comparison_chooses_the_lowest_nested_log_loss(seed):
    labels, probabilities = random_case(seed, slope=3)
    folds = np.arange(300) % 4
    table = compare_calibrations(labels, probabilities, folds)
    assert table.index.tolist() == list(METHODS)
    for method, row in table.iterrows():
        nested = nested_calibration(method, labels, probabilities, folds)
        likelihood = np.clip(np.where(labels == 1, nested, 1 - nested), EDGE, 1 - EDGE)
        assert row.log_loss == pytest.approx(-np.log(likelihood).mean())
        assert row.brier == pytest.approx(np.mean((nested - labels) ** 2))
    assert table.index[table.chosen].tolist() == [table.log_loss.idxmin()] and not table.chosen["none"]


@pytest.mark.parametrize("seed", range(5))
def test_calibrated_data_are_not_mended_by_more_than_noise(seed):
    labels, probabilities = random_case(seed, n=3000)
    folds = np.arange(3000) % 5

    def losses(method):
        nested = nested_calibration(method, labels, probabilities, folds)
        return -np.log(np.where(labels == 1, nested, 1 - nested))

    for method in FITTED:
        gained = losses("none") - losses(method)
        assert gained.mean() < 3 * gained.std() / np.sqrt(3000)


@pytest.mark.parametrize("seed", range(3))
def test_temperature_mends_logits_that_are_three_times_too_large(seed):
    labels, probabilities = random_case(seed, n=3000, slope=3)
    calibration = fit_calibration("temperature", labels, probabilities)
    assert calibration.slope == pytest.approx(1 / 3, rel=0.15)
    table = compare_calibrations(labels, probabilities, np.arange(3000) % 5)
    assert table.log_loss["temperature"] < table.log_loss["none"] - 0.1 and not table.chosen["none"]


def test_platt_mends_a_shift_that_temperature_can_not():
    labels, probabilities = random_case(0, n=3000, shift=3)  # as a model that saw as many positives as negatives
    calibration = fit_calibration("platt", labels, probabilities)
    assert (calibration.slope, calibration.intercept) == (pytest.approx(1, rel=0.15), pytest.approx(-3, rel=0.15))
    table = compare_calibrations(labels, probabilities, np.arange(3000) % 5)
    assert table.log_loss["platt"] < table.log_loss["temperature"] - 0.05


def test_log_loss_of_the_comparison_is_finite_at_0_and_1():
    table = compare_calibrations([1, 0], [0.0, 0.0], [0, 0])  # one fold: nothing is calibrated
    assert table.log_loss["none"] == pytest.approx(-np.log(EDGE) / 2, rel=1e-6)


def test_reliability_is_a_table_of_sorted_tenths():
    labels, probabilities = random_case(6)
    rows = reliability(labels, probabilities)
    tenths = np.array_split(np.argsort(probabilities), 10)
    assert rows.n.tolist() == [30] * 10 and rows.positives.tolist() == [labels[tenth].sum() for tenth in tenths]
    np.testing.assert_allclose(rows.predicted, [probabilities[tenth].mean() for tenth in tenths])
    for row in rows.itertuples():
        wilson = proportion(row.positives, row.n)
        assert (row.observed, row.low, row.high) == (wilson.value, wilson.low, wilson.high)


def test_reliability_keeps_equal_probabilities_in_one_bin():
    labels = np.array([0, 1] * 10)
    assert reliability(labels, np.full(20, 0.3)).n.tolist() == [20]
    table = reliability(labels, np.repeat([0.1, 0.9], 10))
    direct = pd.DataFrame({"cancer": labels, "probability": np.repeat([0.1, 0.9], 10)}).groupby("probability").cancer.sum()
    assert table.predicted.tolist() == pytest.approx([0.1, 0.9]) and table.positives.tolist() == direct.tolist()


def test_reliability_of_fewer_rows_than_bins_has_a_bin_each():
    assert reliability([0, 1, 0], [0.1, 0.5, 0.9]).n.tolist() == [1, 1, 1]
