import json

import numpy as np
import pandas as pd
import pytest

from utils import cache, environment, inputs, predictions
from utils.environment import write_json
from utils.metrics import best_threshold, decide, nested_decisions, probabilistic_f1
from utils.predictions import (
    PredictionError,
    aggregate,
    describe_tuned,
    find_or_train_runs,
    find_runs,
    find_threshold,
    name_runs,
    one_image_per_breast,
    oof_of_runs,
    oof_summary,
    tune,
)
from utils.tables import assign_folds
from utils.training import OOF_COLUMNS

IMAGES = pd.DataFrame({"prediction_id": ["b", "a", "b", "b", "a"], "probability": [0.1, 0.4, 0.5, 0.9, 0.2]})


@pytest.mark.parametrize(("method", "a", "b"), [("mean", 0.3, 0.5), ("max", 0.4, 0.9), ("top_k", 0.3, 0.7)])
def test_images_of_a_breast_become_one_probability(method, a, b):
    result = aggregate(IMAGES, method)
    assert result.index.tolist() == ["b", "a"]
    assert result.to_dict() == pytest.approx({"a": a, "b": b})


def test_unknown_aggregation_is_refused():
    with pytest.raises(PredictionError, match="'median'; choose from mean, max, top_k"):
        aggregate(IMAGES, "median")


def test_one_image_per_breast_hides_how_many_there_are():
    kept = one_image_per_breast(IMAGES, seed=1)
    assert sorted(kept.prediction_id) == ["a", "b"]
    assert {len(one_image_per_breast(IMAGES, seed).merge(kept)) for seed in range(20)} > {2}  # the draw changes with the seed


def write_oof(run_dir, shift=0.0, n=60, drop=0):
    """A made-up finished run: n breasts of one image, two folds."""
    generator = np.random.default_rng(0)
    labels = (np.arange(n) % 3 == 0).astype(int)
    probability = np.clip(0.3 * labels + 0.5 * generator.random(n) + shift, 0.01, 0.99)
    table = pd.DataFrame(
        {"patient_id": [str(100 + i) for i in range(n)], "laterality": "L", "fold": np.arange(n) % 2, "cancer": labels}
    )
    table["prediction_id"], table["image_id"] = table.patient_id + "_L", [str(i) for i in range(n)]
    table["probability"], table["logit"] = probability, np.log(probability / (1 - probability))
    run_dir.mkdir(parents=True)
    table[OOF_COLUMNS].iloc[: n - drop].to_csv(run_dir / "oof.csv", index=False)
    write_json(run_dir / "config.json", {"prevalence": 0.25})
    return run_dir


def test_runs_of_other_breasts_are_not_averaged(tmp_path):
    runs = [write_oof(tmp_path / "a"), write_oof(tmp_path / "b", drop=6)]
    with pytest.raises(PredictionError, match="b predicted 54 breasts, .*a 60, and not the same ones"):
        oof_of_runs(runs)


def test_runs_are_averaged_per_breast(tmp_path):
    runs = [write_oof(tmp_path / "a"), write_oof(tmp_path / "b", shift=0.1)]
    both, first, second = oof_of_runs(runs), oof_of_runs(runs[:1]), oof_of_runs(runs[1:])
    assert len(both) == 60
    merged = first.merge(second, on="prediction_id").merge(both, on="prediction_id")
    assert np.allclose(merged.probability, (merged.probability_x + merged.probability_y) / 2)


def test_tuned_threshold_is_the_best_and_nested_is_fold_out(tmp_path):
    run = write_oof(tmp_path / "a")
    tuned, oof = tune([run]), oof_of_runs([run])
    threshold, pf1 = best_threshold(oof.cancer, oof.probability)
    assert (tuned["threshold"], tuned["pf1"]) == (threshold, pf1)
    assert pf1 == probabilistic_f1(oof.cancer, decide(oof.probability, threshold))
    nested = nested_decisions(oof.cancer, oof.probability, oof.fold)
    assert tuned["pf1_nested"]["value"] == probabilistic_f1(oof.cancer, nested)
    assert tuned["pf1_nested"]["low"] <= tuned["pf1_nested"]["value"] <= tuned["pf1_nested"]["high"]
    json.dumps(tuned, allow_nan=False)
    shown = describe_tuned(tuned | {"auc": {"value": None, "low": None, "high": None}}).value
    assert shown["threshold"] == threshold and "[" in shown["pf1_nested"] and "nan" in shown["auc"]


def test_runs_are_found_by_name_or_everywhere_but_not_those_for_show(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "working_dir", lambda: tmp_path)
    monkeypatch.setattr(predictions, "KAGGLE_INPUT", tmp_path / "input")
    for kind in ("kit/outputs/demo/runs", "kit/outputs/runs-phantom", "competition/train_images"):
        write_oof(tmp_path / "input" / kind / "c")
    assert find_runs() == []
    runs = [write_oof(tmp_path / "runs" / name) for name in ("a", "b")]
    assert find_runs() == runs
    assert find_runs(f"{runs[1]}, {runs[0]}") == runs[::-1] and find_runs([str(runs[0])]) == runs[:1]
    with pytest.raises(PredictionError, match="absent holds no finished run"):
        find_runs(str(tmp_path / "absent"))


def test_threshold_of_other_runs_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "working_dir", lambda: tmp_path)
    runs = [write_oof(tmp_path / "a"), write_oof(tmp_path / "b", shift=0.1)]
    path = tmp_path / "threshold.json"
    write_json(path, tune(runs[:1]) | {"threshold": 0.123})
    assert find_threshold(runs[:1])["threshold"] == 0.123
    assert find_threshold(runs[1:]) == tune(runs[1:])  # found by chance: tuned anew
    with pytest.raises(PredictionError, match="was tuned on"):  # named: an error
        find_threshold(runs[1:], str(path))
    with pytest.raises(PredictionError, match="does not exist"):
        find_threshold(runs, str(tmp_path / "absent.json"))
    oof = runs[0] / "oof.csv"
    oof.write_text(oof.read_text().replace("0.01", "0.02"))  # trained again
    assert find_threshold(runs[:1])["threshold"] != 0.123


def test_runs_in_folders_of_one_name_are_told_apart(tmp_path):
    runs = [tmp_path / "a" / "cnn", tmp_path / "b" / "cnn", tmp_path / "rnn"]
    assert name_runs(runs) == {str(runs[0]): runs[0], str(runs[1]): runs[1], "rnn": runs[2]}


def test_summary_sets_the_run_beside_metadata_alone(tmp_path, images):
    run = tmp_path / "perfect"
    folded = assign_folds(images, 2, 0)
    perfect = folded.assign(probability=folded.cancer * 0.8 + 0.1, logit=0.0)
    run.mkdir()
    perfect[OOF_COLUMNS].to_csv(run / "oof.csv", index=False)
    summary = oof_summary(run, folded)
    assert summary.loc["perfect", "AUC [95 %]"].startswith("1.000")
    assert (summary.breasts == images.prediction_id.nunique()).all()
    assert not summary.loc["metadata alone", "AUC [95 %]"].startswith("1.000")


def test_without_data_or_runs_an_example_is_trained_once_on_the_phantom(tmp_path, monkeypatch, capsys):
    for module in (environment, inputs, predictions, cache):
        monkeypatch.setattr(module, "working_dir", lambda: tmp_path)
    monkeypatch.setattr(inputs, "find_competition", lambda: None)
    monkeypatch.setattr(predictions, "KAGGLE_INPUT", tmp_path / "input")
    runs = find_or_train_runs("", smoke_test=True)
    assert runs == [tmp_path / "runs-smoke" / "cnn-example"]
    assert "No finished run found" in capsys.readouterr().out
    assert find_or_train_runs("", smoke_test=True) == runs
    assert "No finished run found" not in capsys.readouterr().out


def test_with_data_but_without_runs_the_next_step_is_named(tmp_path, monkeypatch, competition):
    monkeypatch.setattr(environment, "working_dir", lambda: tmp_path)
    monkeypatch.setattr(predictions, "KAGGLE_INPUT", tmp_path / "input")
    monkeypatch.setattr(predictions, "find_competition", lambda: competition)
    with pytest.raises(PredictionError, match="No finished run under .*runs: run train.ipynb first"):
        find_or_train_runs("")
