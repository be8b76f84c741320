"""A run's figures are those of scikit-learn and scipy, and held-out rows stay apart from those that trained a model."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_score, recall_score, roc_auc_score, roc_curve

from tests.helpers import TINY, make_config
from utils.core.files import write_json
from utils.evaluation import performance as evaluation
from utils.evaluation import training_rows
from utils.evaluation.performance import confusion, paper_table, performance, screening_figures
from utils.evaluation.training_rows import predict_training_rows
from utils.images.training_data import TrainingData
from utils.metrics.scores import decide
from utils.metrics.thresholds import CHOICES
from utils.runs.oof import oof_of_runs
from utils.runs.run import Run
from utils.training.folds import train_run


def make_breasts(n=120, seed=0, positives=0.25, levels=1000):
    """Two breasts a patient, two folds, probabilities that know something, some of them tied."""
    generator = np.random.default_rng(seed)
    cancer = (generator.random(n) < positives).astype(int)
    probability = np.round(np.clip(0.25 * cancer + 0.7 * generator.random(n), 0, 1) * levels) / levels
    patients = [f"p{i // 2}" for i in range(n)]
    table = pd.DataFrame({"patient_id": patients, "fold": np.arange(n) // 2 % 2, "cancer": cancer, "probability": probability})
    return table.assign(prediction_id=[f"{patient}_{'LR'[i % 2]}" for i, patient in enumerate(patients)])


def wilson(hits, n):
    """Wilson's interval, from the textbook."""
    z, share = norm.ppf(0.975), hits / n
    middle, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)


def numbers(text):
    """Value, low and high of an interval's text."""
    value, low, high = (float(part) for part in text.replace("[", "").replace("]", "").replace(",", "").split())
    return value, low, high


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_performance_is_scikit_learns_with_wilsons_intervals(threshold):
    breasts = make_breasts()
    labels, decisions = breasts.cancer, decide(breasts.probability, threshold)
    found = performance(breasts, decisions)
    metrics = {"accuracy": accuracy_score, "precision": precision_score, "recall": recall_score, "F1": f1_score}
    expected = {name: metric(labels, decisions) for name, metric in metrics.items()}
    expected["AUC"] = roc_auc_score(labels, breasts.probability)
    assert {name: interval.value for name, interval in found.items()} == pytest.approx(expected)
    hits = (labels * decisions).sum()
    shares = {
        "accuracy": ((labels == decisions).sum(), len(labels)),
        "precision": (hits, decisions.sum()),
        "recall": (hits, labels.sum()),
    }
    for name, share in shares.items():
        assert (found[name].low, found[name].high) == pytest.approx(wilson(*share)), name
    assert all(found[name].low < found[name].value < found[name].high for name in ("AUC", "F1"))


def test_interval_of_auc_counts_patients_not_rows():
    alone = make_breasts(60).assign(patient_id=range(60))
    copied = pd.concat([alone] * 4)  # the same 60 patients, four rows each: no new evidence
    once, often = (performance(table, decide(table.probability, 0.5))["AUC"] for table in (alone, copied))
    assert (once.low, once.high) == pytest.approx((often.low, often.high))


def test_nobody_called_back_has_no_precision_and_no_hits():
    found = performance(make_breasts(), np.zeros(120, dtype=int))
    assert np.isnan(found["precision"].value)
    assert (found["recall"].value, found["F1"].value) == (0, 0)


@pytest.fixture
def run_dir(tmp_path, settings):
    """A folder with a configuration alone."""
    write_json(tmp_path / "small" / "config.json", make_config(settings, "cnn").to_json())
    return tmp_path / "small"


def test_paper_table_says_which_rows_were_held_out_and_which_trained_the_model(run_dir):
    held_out, trained = make_breasts(), make_breasts(40, seed=1)
    table = paper_table({"a": run_dir, "b": run_dir}, {"a": held_out, "b": held_out}, {"a": trained})
    assert list(zip(table.run, table.rows, strict=True)) == [("a", "held out"), ("a", "trained on"), ("b", "held out")]
    assert table.breasts.tolist() == [120, 40, 120]
    assert table.positives.tolist() == [held_out.cancer.sum(), trained.cancer.sum(), held_out.cancer.sum()]
    assert (table.architecture == "cnn").all() and (table["image size"] == "64 × 48").all()
    shown = [numbers(auc)[0] for auc in table.AUC]
    expected = [roc_auc_score(rows.cancer, rows.probability) for rows in (held_out, trained, held_out)]
    assert shown == pytest.approx(expected, abs=6e-4)


def test_paper_table_decides_held_out_rows_with_the_other_folds_and_training_rows_with_all_held_out_ones(run_dir):
    held_out, trained = make_breasts(), make_breasts(40, seed=1)
    table = paper_table({"a": run_dir}, {"a": held_out}, {"a": trained}).set_index("rows")
    decisions = np.zeros(120, dtype=int)
    for fold in (0, 1):
        inside = held_out.fold == fold
        others = held_out[~inside]
        threshold = CHOICES["plateau"](others.cancer, others.probability)
        decisions[inside] = held_out.probability[inside] >= threshold
    assert numbers(table.F1["held out"])[0] == pytest.approx(f1_score(held_out.cancer, decisions), abs=6e-4)
    naive = trained.probability >= CHOICES["plateau"](held_out.cancer, held_out.probability)
    assert numbers(table.F1["trained on"])[0] == pytest.approx(f1_score(trained.cancer, naive), abs=6e-4)


def test_decisions_of_held_out_rows_do_not_use_their_own_folds_labels(run_dir, monkeypatch):
    decided = []
    monkeypatch.setattr(evaluation, "performance", lambda table, decisions: decided.append(decisions) or {})
    held_out = make_breasts()
    inside = held_out.fold == 1
    flipped = held_out.assign(cancer=np.where(inside, 1 - held_out.cancer, held_out.cancer))
    for table in (held_out, flipped):
        paper_table({"a": run_dir}, {"a": table}, {})
    assert 0 < decided[0][inside].sum() < inside.sum()
    assert (decided[0][inside] == decided[1][inside]).all()
    assert (decided[0][~inside] != decided[1][~inside]).any()


@pytest.fixture(scope="module")
def trained_run(images, cache_dir, tmp_path_factory):
    """Two folds of a plain CNN, one epoch."""
    run_dir = tmp_path_factory.mktemp("evaluation") / "cnn"
    train_run(make_config(TINY, epochs=1), TrainingData(images, cache_dir, is_phantom=True), run_dir)
    return run_dir


def test_only_patients_that_trained_the_first_folds_model_are_asked_again(trained_run, images, cache_dir):
    folds = Run(trained_run).patients()
    breasts = predict_training_rows(trained_run, images, cache_dir)
    assert set(breasts.patient_id) == set(folds.patient_id[folds.fold != 0])
    train = images.drop_duplicates("prediction_id").set_index("prediction_id")
    assert breasts.prediction_id.is_unique and (breasts.cancer == train.cancer.loc[breasts.prediction_id].to_numpy()).all()
    assert set(breasts.prediction_id) == set(train.index[train.patient_id.isin(breasts.patient_id)])


def test_predictions_of_training_rows_are_another_models_than_out_of_fold(trained_run, images, cache_dir):
    seen, unseen = predict_training_rows(trained_run, images, cache_dir), oof_of_runs([trained_run])
    both = seen.merge(unseen, on="prediction_id")
    assert len(both) == len(seen)
    assert (np.abs(both.probability_x - both.probability_y) > 1e-4).mean() > 0.9


def test_no_more_training_patients_are_asked_than_allowed(trained_run, images, cache_dir, monkeypatch):
    monkeypatch.setattr(training_rows, "TRAINING_PATIENTS", 3)
    drawn = [set(predict_training_rows(trained_run, images, cache_dir, seed=seed).patient_id) for seed in range(4)]
    assert {len(patients) for patients in drawn} == {3}
    assert len(set.union(*drawn)) > 3


def read_off_roc(breasts):
    """Sensitivity at 90 % specificity and specificity at 90 % sensitivity: the best point of each straight piece of the ROC."""
    false, true, _ = roc_curve(breasts.cancer, breasts.probability, drop_intermediate=False)
    sensitivity = max(y for y in _crossings(false, true, 0.1))
    specificity = max(1 - x for x in _crossings(true, false, 0.9))
    return sensitivity, specificity


def _crossings(x, y, at):
    for (x0, y0), (x1, y1) in zip(zip(x, y, strict=True), zip(x[1:], y[1:], strict=False), strict=False):
        if x0 <= at <= x1:
            yield from [y0, y1] if x0 == x1 else [y0 + (at - x0) / (x1 - x0) * (y1 - y0)]


@pytest.mark.parametrize("levels", [1000, 5])
@pytest.mark.parametrize("seed", range(4))
def test_operating_points_are_read_off_the_roc_curve(seed, levels):
    breasts = make_breasts(seed=seed, levels=levels)
    figures = screening_figures(breasts, decide(breasts.probability, 0.5))["value [95 %]"]
    found = [numbers(figures[name]) for name in ("sensitivity at 90 % specificity", "specificity at 90 % sensitivity")]
    assert [value for value, _, _ in found] == pytest.approx(read_off_roc(breasts), abs=6e-4)
    assert all(low < value < high for value, low, high in found)


def test_specificity_is_the_highest_where_exactly_nine_of_ten_cancers_are_found():
    cancer = np.array([1] * 9 + [0] * 5 + [1] + [0] * 5)  # nine cancers before any healthy breast
    breasts = pd.DataFrame({"patient_id": range(20), "cancer": cancer, "probability": np.linspace(0.9, 0.1, 20)})
    figures = screening_figures(breasts, decide(breasts.probability, 0.5))["value [95 %]"]
    assert numbers(figures["specificity at 90 % sensitivity"])[0] == read_off_roc(breasts)[1] == 1


def test_draws_without_cancer_do_not_count_as_perfect():
    """Of four patients with one cancer, a third of the draws have none; in all others the cancer comes last."""
    breasts = pd.DataFrame({"patient_id": range(4), "cancer": [0, 0, 1, 0], "probability": [0.9, 0.8, 0.1, 0.7]})
    figures = screening_figures(breasts, decide(breasts.probability, 0.5))["value [95 %]"]
    assert numbers(figures["specificity at 90 % sensitivity"]) == (0, 0, 0)


def test_screening_figures_count_breasts():
    breasts = make_breasts()
    decisions = decide(breasts.probability, 0.5)
    figures = screening_figures(breasts, decisions)["value [95 %]"]
    hits, called, cancers = (breasts.cancer * decisions).sum(), decisions.sum(), breasts.cancer.sum()
    expected = {
        "recall rate": (called, 120),
        "cancers found per breast": (hits, 120),
        "positive predictive value": (hits, called),
        "missed": (cancers - hits, cancers),
    }
    for name, (count, n) in expected.items():
        assert numbers(figures[name]) == pytest.approx((count / n, *wilson(count, n)), abs=6e-4), name


@pytest.mark.parametrize("threshold", [0.5, 0.0, 2.0])
def test_confusion_is_scikit_learns_even_where_all_or_nobody_is_called_back(threshold):
    breasts = make_breasts()
    decisions = decide(breasts.probability, threshold)
    table = confusion(breasts, decisions)
    assert table.to_numpy().tolist() == confusion_matrix(breasts.cancer, decisions, labels=[1, 0]).tolist()
    assert table.index.tolist() == ["cancer", "no cancer"] and table.columns.tolist() == ["called back", "left alone"]


def test_confusion_goes_by_place_not_by_index():
    breasts = make_breasts()
    decisions = decide(breasts.probability, 0.5)
    shuffled = breasts.sample(frac=1, random_state=0)
    assert confusion(shuffled, decisions[shuffled.index]).equals(confusion(breasts, decisions))
