import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from utils import predictions
from utils.environment import write_json
from utils.metrics import best_threshold, decide, nested_decisions, probabilistic_f1
from utils.models import ModelConfig
from utils.predictions import (
    SubmissionError,
    aggregate,
    complete,
    find_runs,
    find_threshold,
    one_image_per_breast,
    oof_of_runs,
    predict_runs,
    tune,
    validate_submission,
    write_submission,
)
from utils.training import OOF_COLUMNS, TrainConfig, train_run

IMAGES = pd.DataFrame({"prediction_id": ["b", "a", "b", "b", "a"], "probability": [0.1, 0.4, 0.5, 0.9, 0.2]})


@pytest.mark.parametrize(("method", "a", "b"), [("mean", 0.3, 0.5), ("max", 0.4, 0.9), ("top_k", 0.3, 0.7)])
def test_images_of_a_breast_become_one_probability(method, a, b):
    result = aggregate(IMAGES, method)
    assert result.index.tolist() == ["b", "a"]
    assert result.to_dict() == pytest.approx({"a": a, "b": b})


def test_unknown_aggregation_is_refused():
    with pytest.raises(SubmissionError, match="'median'; choose from mean, max, top_k"):
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


def test_runs_are_averaged_over_the_breasts_that_all_predicted(tmp_path):
    runs = [write_oof(tmp_path / "a"), write_oof(tmp_path / "b", shift=0.1, drop=6)]
    both, first, second = oof_of_runs(runs), oof_of_runs(runs[:1]), oof_of_runs(runs[1:])
    assert len(both) == 54
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


def test_runs_are_found_by_name_or_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "working_dir", lambda: tmp_path)
    assert find_runs() == []
    runs = [write_oof(tmp_path / "runs" / name) for name in ("a", "b")]
    assert find_runs() == runs
    assert find_runs(f"{runs[1]}, {runs[0]}") == runs[::-1] and find_runs([str(runs[0])]) == runs[:1]
    with pytest.raises(SubmissionError, match="absent holds no finished run"):
        find_runs(str(tmp_path / "absent"))


def test_threshold_of_other_runs_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "working_dir", lambda: tmp_path)
    runs = [write_oof(tmp_path / "a"), write_oof(tmp_path / "b", shift=0.1)]
    path = tmp_path / "threshold.json"
    write_json(path, tune(runs[:1]) | {"threshold": 0.123})
    assert find_threshold(runs[:1])["threshold"] == 0.123
    assert find_threshold(runs[1:]) == tune(runs[1:])  # found by chance: tuned anew
    with pytest.raises(SubmissionError, match="was tuned on"):  # named: an error
        find_threshold(runs[1:], str(path))
    with pytest.raises(SubmissionError, match="does not exist"):
        find_threshold(runs, str(tmp_path / "absent.json"))


def test_every_prediction_id_gets_one_finite_value(test_images):
    ids = test_images.prediction_id.unique()
    predicted = pd.Series({ids[0]: 0.7, ids[1]: np.nan, ids[2]: np.inf, ids[3]: 1.2, "unknown": 0.5})
    completed, filled = complete(predicted, test_images, prior=0.02)
    assert completed.index.tolist() == ids.tolist()
    assert completed.iloc[:4].tolist() == [0.7, 0.02, 0.02, 1.0] and (completed.iloc[4:] == 0.02).all()
    assert filled == [ids[1], ids[2], *ids[4:]]


@pytest.mark.parametrize(("threshold", "wanted"), [(0.5, {0, 1}), (None, {0.25, 0.75})])
def test_submission_is_written_with_probabilities_and_provenance(competition, test_images, tmp_path, threshold, wanted):
    ids = test_images.prediction_id.drop_duplicates()
    probabilities = pd.Series(np.where(np.arange(len(ids)) % 2, 0.25, 0.75), index=ids)
    path = tmp_path / "out" / "submission.csv"
    write_submission(path, tmp_path / "submissions", probabilities, threshold, competition, {"name": "a-b", "runs": ["a", "b"]})
    written = pd.read_csv(path, dtype={"prediction_id": str})
    assert list(written.columns) == ["prediction_id", "cancer"] and set(written.cancer) == wanted
    assert written.prediction_id.tolist() == ids.tolist()
    beside = pd.read_csv(path.with_name("probabilities.csv"), dtype={"prediction_id": str})
    assert list(beside.columns) == ["prediction_id", "probability"] and np.allclose(beside.probability, probabilities)
    provenance = json.loads(next((tmp_path / "submissions").glob("*-a-b.json")).read_text())
    assert provenance["runs"] == ["a", "b"] and provenance["threshold"] == threshold and "torch" in provenance["versions"]
    copy = next((tmp_path / "submissions").glob("*-a-b.csv"))
    assert copy.read_bytes() == path.read_bytes()


SAMPLE = pd.DataFrame({"prediction_id": ["1_L", "1_R"], "cancer": [0.02, 0.02]})


@pytest.mark.parametrize(
    ("submission", "message"),
    [
        (SAMPLE.rename(columns={"cancer": "Cancer"}), "columns are"),
        (SAMPLE.head(1), "1 missing: 1_R"),
        (pd.concat([SAMPLE, SAMPLE.head(1)]), "repeated: 1_L"),
        (SAMPLE.assign(prediction_id=["1_L", "2_L"]), "1 not in sample_submission.csv: 2_L"),
        (SAMPLE.assign(cancer=[0.5, np.nan]), "without a value in .0, 1.: 1_R"),
        (SAMPLE.assign(cancer=[-0.1, math.inf]), "2 without a value"),
    ],
)
def test_invalid_submission_is_refused_with_the_ids(submission, message):
    validate_submission(SAMPLE, SAMPLE)
    with pytest.raises(SubmissionError, match=message):
        validate_submission(submission, SAMPLE)


def test_invalid_submission_writes_nothing(competition, tmp_path):
    with pytest.raises(SubmissionError):
        write_submission(tmp_path / "submission.csv", tmp_path / "s", pd.Series({"1_L": 0.5}), 0.5, competition, {})
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def trained(images, cache_dir, tmp_path_factory):
    """Two short runs, one per image and one per breast."""
    from conftest import TINY

    runs = []
    for architecture in ("cnn", "rnn"):
        model = ModelConfig(architecture, TINY.image_height, TINY.image_width, encoders=("cnn",))
        runs.append(tmp_path_factory.mktemp("runs") / architecture)
        train_run(TrainConfig(model, TINY, n_folds=2, epochs=1, batch_size=8), images, cache_dir, runs[-1])
    return runs


@pytest.fixture
def broken_competition(competition, tmp_path):
    """The phantom's test set with one image of a breast unreadable, and all images of another."""
    import shutil

    folder = tmp_path / "broken"
    shutil.copytree(competition, folder)
    return folder


def test_runs_predict_every_breast_of_the_test(trained, test_images, competition, tmp_path):
    averaged = predict_runs(trained, test_images, competition, tmp_path / "cache", "mean", 1)
    alone = [predict_runs([run], test_images, competition, tmp_path / "cache", "mean", 1) for run in trained]
    assert set(averaged.index) == set(test_images.prediction_id)
    assert np.allclose(averaged, (alone[0] + alone[1].loc[alone[0].index]).loc[averaged.index] / 2)


def test_unreadable_images_fall_back_to_the_breast_then_to_the_prior(trained, test_images, broken_competition, tmp_path):
    counts = test_images.groupby("prediction_id").size()
    partly, wholly = counts.index[counts > 1][:2]
    lost = [test_images[test_images.prediction_id == partly].head(1), test_images[test_images.prediction_id == wholly]]
    for row in pd.concat(lost).itertuples():
        (broken_competition / "test_images" / row.patient_id / f"{row.image_id}.dcm").write_bytes(b"broken")
    predicted = predict_runs(trained, test_images, broken_competition, tmp_path / "cache", "mean", 1)
    completed, filled = complete(predicted, test_images, prior=0.02)
    assert filled == [wholly] and completed[wholly] == 0.02 and completed[partly] != 0.02
    assert len(completed) == len(counts)


def test_wholly_unreadable_test_set_still_gives_a_submission(trained, test_images, broken_competition, tmp_path):
    for path in (broken_competition / "test_images").rglob("*.dcm"):
        path.unlink()
    predicted = predict_runs(trained, test_images, broken_competition, tmp_path / "cache", "mean", 1)
    completed, filled = complete(predicted, test_images, prior=0.02)
    assert (completed == 0.02).all() and len(filled) == len(completed)


def test_run_of_another_preprocessing_is_refused(trained, test_images, competition, tmp_path):
    import shutil

    run = tmp_path / "old"
    shutil.copytree(trained[0], run)
    content = json.loads((run / "config.json").read_text())
    write_json(run / "config.json", content | {"settings_hash": "0123456789ab"})
    with pytest.raises(SubmissionError, match="trained on preprocessing 0123456789ab"):
        predict_runs([run], test_images, competition, tmp_path / "cache", "mean", 1)


def test_changing_the_preprocessing_version_refuses_old_runs(trained, monkeypatch):
    from utils.training import load_config

    config = load_config(trained[0])
    newer = replace(config, preprocessing=replace(config.preprocessing, version=config.preprocessing.version + 1))
    with pytest.raises(SubmissionError, match="train it again"):
        predictions.check_preprocessing(trained[0], newer)
