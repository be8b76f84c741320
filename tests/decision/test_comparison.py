"""Facts about runs beside each other: a better one is found, noise is not, and an ensemble has to earn its weights."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from utils.decision.comparison import Ensemble, align, compare_runs, search_ensemble
from utils.metrics.intervals import Interval, PatientBootstrap
from utils.metrics.scores import area_under_roc, probabilistic_f1, sigmoid
from utils.metrics.thresholds import CHOICES, patient_nested
from utils.runs.oof import PredictionError

NOTHING = "not measurably different"
N = 600
LABELS = (np.arange(N) % 4 == 0).astype(int)


def run_of(logits: np.ndarray) -> pd.DataFrame:
    """A run's breasts, two of each patient, in three folds."""
    patients = np.arange(N) // 2
    table = pd.DataFrame({"prediction_id": [f"b{i}" for i in range(N)], "patient_id": [f"p{i}" for i in patients]})
    return table.assign(fold=patients % 3, cancer=LABELS, probability=sigmoid(logits))


def noise(seed: int, size: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, size, N)


def run_with(signal: float, seed: int) -> pd.DataFrame:
    """A run whose logits lie ``signal`` standard deviations higher where there is cancer."""
    return run_of(signal * LABELS + noise(seed))


def verdicts(runs: dict, **options) -> list[str]:
    row = compare_runs(runs, **options).iloc[0]
    return [row["by AUC"], row["by pf1_patient_nested"]]


def test_clearly_better_run_is_better_and_the_other_worse():
    good, weak = run_with(2.5, 0), run_with(0.5, 1)
    assert verdicts({"good": good, "weak": weak}) == ["better", "better"]
    assert verdicts({"weak": weak, "good": good}) == ["worse", "worse"]


@pytest.mark.parametrize("seed", range(5))
def test_copy_with_noise_is_no_better_and_no_worse(seed):
    logits = 1.5 * LABELS + noise(seed)
    copies = {"a": run_of(logits + noise(100 + seed, 0.3)), "b": run_of(logits + noise(200 + seed, 0.3))}
    assert verdicts(copies) == [NOTHING, NOTHING]


def test_small_gain_on_the_same_noise_shows_where_two_intervals_overlap():
    worse, better = (run_of(signal * LABELS + noise(0)) for signal in (1.5, 1.8))
    bootstrap = PatientBootstrap(better.patient_id)
    assert bootstrap.auc(LABELS, better.probability).low < bootstrap.auc(LABELS, worse.probability).high
    assert verdicts({"a": better, "b": worse})[0] == "better"


@pytest.mark.parametrize("choice", CHOICES)
def test_differences_are_paired_and_taken_at_bonferronis_level(choice):
    runs = {name: run_with(1.5, seed) for seed, name in enumerate("abc")}
    table = compare_runs(runs, seed=2, choice=choice)
    assert list(zip(table.run, table.other, strict=True)) == [("a", "b"), ("a", "c"), ("b", "c")]
    bootstrap, level = PatientBootstrap(runs["a"].patient_id, seed=2), 1 - 0.05 / 6  # three pairs, two measures
    tail = 100 * (1 - level) / 2
    for row in table.itertuples(index=False):
        one, other = runs[row.run], runs[row.other]
        first, second = (bootstrap.auc_draws(LABELS, run.probability) for run in (one, other))
        low, high = np.percentile(first - second, (tail, 100 - tail))
        value = area_under_roc(LABELS, one.probability) - area_under_roc(LABELS, other.probability)
        assert Interval(value, low, high).signed == row.AUC
        one, other = (patient_nested(LABELS, run.probability, run.patient_id, CHOICES[choice], 2) for run in (one, other))
        low, high = np.percentile(bootstrap.pf1_draws(LABELS, one) - bootstrap.pf1_draws(LABELS, other), (tail, 100 - tail))
        value = probabilistic_f1(LABELS, one) - probabilistic_f1(LABELS, other)
        assert Interval(value, low, high).signed == row[4]
    assert (table.breasts == N).all() and (table.positives == LABELS.sum()).all()


def test_more_runs_widen_the_interval_of_each_pair():
    runs = {name: run_with(1.5, seed) for seed, name in enumerate("abcd")}

    def ends(table):
        low, high = table.iloc[0]["AUC"].split("[")[1].rstrip("]").split(", ")
        return float(low), float(high)

    alone, among = ends(compare_runs(dict(list(runs.items())[:2]))), ends(compare_runs(runs))
    assert among[0] < alone[0] and among[1] > alone[1]


def test_runs_are_matched_by_breast_not_by_row():
    run = run_with(1.5, 0)
    table = compare_runs({"a": run, "b": run.sample(frac=1, random_state=0)})
    assert table.AUC[0] == "+0.000 [+0.000, +0.000]" and table["pf1_patient_nested"][0] == "+0.000 [+0.000, +0.000]"


def test_only_breasts_that_all_runs_predicted_count():
    run = run_with(1.5, 0)
    aligned = align({"a": run.iloc[100:], "b": run.iloc[::-1], "c": run.iloc[:500]})
    for table in aligned.values():
        pd.testing.assert_frame_equal(table, run.iloc[100:500].reset_index(drop=True))
    assert compare_runs({"a": run.iloc[100:], "b": run}).breasts[0] == 500


def test_runs_without_a_common_breast_are_refused():
    run = run_with(1.5, 0)
    with pytest.raises(PredictionError, match="The runs a, b share no breast"):
        compare_runs({"a": run.iloc[:300], "b": run.iloc[300:]})


@pytest.mark.parametrize("function", [compare_runs, search_ensemble])
def test_runs_of_other_labels_are_refused(function):
    run = run_with(1.5, 0)
    with pytest.raises(PredictionError, match="The labels of b differ from those of a"):
        function({"a": run, "b": run.assign(cancer=[1 - run.cancer[0], *run.cancer[1:]])})


def test_search_puts_its_weight_on_the_good_run_where_others_are_noise():
    found = search_ensemble({"noise": run_of(noise(1)), "good": run_with(2, 0), "more noise": run_of(noise(2))})
    assert list(found.weights) == ["noise", "good", "more noise"] and sum(found.weights.values()) == pytest.approx(1)
    assert found.weights["good"] >= 0.8
    assert found.gain_over_average.low > 0 and found.is_worth_it
    assert found.gain_over_best.low <= 0 <= found.gain_over_best.high


@pytest.mark.parametrize("seed", range(3))
def test_copies_gain_nothing_over_the_best_run_or_the_average(seed):
    logits = 1.5 * LABELS + noise(seed)
    found = search_ensemble({name: run_of(logits + noise(10 * seed + i, 0.1)) for i, name in enumerate("abc", start=1)})
    for gain in (found.gain_over_best, found.gain_over_average):
        assert gain.low <= 0 <= gain.high and abs(gain.value) < 0.005
    assert not found.is_worth_it


def test_two_weak_runs_that_err_apart_gain_over_the_best():
    found = search_ensemble({"a": run_with(1, 0), "b": run_with(1, 1)})
    assert found.gain_over_best.low > 0 and found.gain_over_best.value > 0.03
    assert all(0.3 < weight < 0.7 for weight in found.weights.values())
    assert not found.is_worth_it  # the plain average does as well
    assert found.describe()["the ensemble is"].tolist() == ["better", NOTHING]


def greedy_by_hand(columns: np.ndarray, rows: np.ndarray) -> list[int]:
    """Caruana's selection with replacement, twenty steps, on some rows; the best of all steps is kept."""
    steps, best = [], (-1.0, [])
    for _ in range(20):
        tried = [steps + [run] for run in range(len(columns))]
        aucs = [roc_auc_score(LABELS[rows], columns[some][:, rows].sum(axis=0)) for some in tried]
        steps = tried[int(np.argmax(aucs))]
        best = max(best, (max(aucs), steps), key=lambda found: found[0])  # the first of equals
    return best[1]


def test_each_folds_weights_and_best_run_are_chosen_on_the_others():
    runs = {str(seed): run_with(1, seed) for seed in range(3)}
    found, bootstrap, fold = search_ensemble(runs, seed=1), PatientBootstrap(runs["0"].patient_id, seed=1), runs["0"].fold
    columns, ensemble, best = np.stack([run.probability for run in runs.values()]), np.zeros(N), np.zeros(N)
    for inside in ((fold == number).to_numpy() for number in range(3)):
        steps = greedy_by_hand(columns, ~inside)
        ensemble[inside], best[inside] = columns[steps][:, inside].mean(axis=0), columns[steps[0], inside]
    expected = [bootstrap.auc_difference(LABELS, ensemble, other) for other in (best, columns.mean(axis=0))]
    for gain, wanted in zip((found.gain_over_best, found.gain_over_average), expected, strict=True):
        assert (gain.value, gain.low, gain.high) == pytest.approx((wanted.value, wanted.low, wanted.high), abs=1e-12)
    chosen = np.bincount(greedy_by_hand(columns, np.full(N, True)), minlength=3)
    assert list(found.weights.values()) == pytest.approx(list(chosen / chosen.sum()))


def test_weights_chosen_among_noise_gain_on_their_own_data_alone():
    runs = {str(seed): run_of(noise(seed)) for seed in range(8)}
    found = search_ensemble(runs)
    columns = np.stack([run.probability for run in runs.values()])
    weighted, average = np.average(columns, axis=0, weights=list(found.weights.values())), columns.mean(axis=0)
    assert area_under_roc(LABELS, weighted) - area_under_roc(LABELS, average) > 0.02
    assert found.gain_over_average.low <= 0 and not found.is_worth_it


def test_with_one_fold_there_is_nothing_to_choose_on():
    runs = {name: run_with(1, seed).assign(fold=0) for seed, name in enumerate("ab")}
    assert search_ensemble(runs).gain_over_best == Interval(0, 0, 0)


def test_single_run_is_its_own_ensemble():
    found = search_ensemble({"a": run_with(1, 0)})
    assert found.weights == {"a": 1} and found.gain_over_best == found.gain_over_average == Interval(0, 0, 0)


@pytest.mark.parametrize(("low", "worth"), [(0.001, True), (0.0, False), (-0.001, False)])
def test_ensemble_is_worth_it_only_beyond_noise(low, worth):
    assert Ensemble({}, Interval(0.1, 0.05, 0.2), Interval(0.01, low, 0.02)).is_worth_it == worth
