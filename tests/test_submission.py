import json
import math
import shutil
from functools import partialmethod

import numpy as np
import pandas as pd
import pytest
from conftest import TINY

from utils import submission
from utils.cache import CacheSettings
from utils.calibration import Calibration
from utils.environment import write_json
from utils.models import ModelConfig
from utils.submission import (
    SubmissionError,
    check_run,
    check_sample,
    complete,
    predict_runs,
    validate_submission,
    write_submission,
)
from utils.training import TrainConfig, train_run
from utils.tuning import tune


def test_every_prediction_id_gets_one_finite_value(test_images):
    ids = test_images.prediction_id.unique()
    predicted = pd.Series({ids[0]: 0.7, ids[1]: np.nan, ids[2]: np.inf, ids[3]: 1.2, "unknown": 0.5})
    completed, filled = complete(predicted, test_images, prior=0.02)
    assert completed.index.tolist() == ids.tolist()
    assert completed.iloc[:4].tolist() == [0.7, 0.02, 0.02, 1.0] and (completed.iloc[4:] == 0.02).all()
    assert filled == [ids[1], ids[2], *ids[4:]]


@pytest.mark.parametrize("hard", [True, False])
def test_submission_is_written_with_probabilities_and_provenance(competition, test_images, tmp_path, hard):
    ids = test_images.prediction_id.drop_duplicates()
    probabilities = pd.Series(np.where(np.arange(len(ids)) % 2, 0.25, 0.75), index=ids)
    decisions = (probabilities < 0.5).astype(int)  # the threshold is not this function's: it takes decisions as they are
    path, provenance = tmp_path / "out" / "submission.csv", {"name": "a-b", "runs": ["a", "b"]}
    given = decisions.sample(frac=1, random_state=0) if hard else None
    write_submission(path, tmp_path / "submissions", probabilities, given, competition, provenance)
    written = pd.read_csv(path, dtype={"prediction_id": str})
    assert list(written.columns) == ["prediction_id", "cancer"] and written.prediction_id.tolist() == ids.tolist()
    assert written.cancer.tolist() == (decisions if hard else probabilities).tolist()
    beside = pd.read_csv(path.with_name("probabilities.csv"), dtype={"prediction_id": str})
    assert list(beside.columns) == ["prediction_id", "probability"] and np.allclose(beside.probability, probabilities)
    provenance = json.loads(next((tmp_path / "submissions").glob("*-a-b.json")).read_text())
    assert provenance["runs"] == ["a", "b"] and provenance["hard"] == hard and "torch" in provenance["versions"]
    copy = next((tmp_path / "submissions").glob("*-a-b.csv"))
    assert copy.read_bytes() == path.read_bytes()


SAMPLE = pd.DataFrame({"prediction_id": ["1_L", "1_R"], "cancer": [0.02, 0.02]})


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (SAMPLE.rename(columns={"cancer": "Cancer"}), "columns are"),
        (SAMPLE.head(1), "1 missing: 1_R"),
        (pd.concat([SAMPLE, SAMPLE.head(1)]), "repeated: 1_L"),
        (SAMPLE.assign(prediction_id=["1_L", "2_L"]), "1 not in sample_submission.csv: 2_L"),
        (SAMPLE.assign(cancer=[0.5, np.nan]), "without a value in .0, 1.: 1_R"),
        (SAMPLE.assign(cancer=[-0.1, math.inf]), "2 without a value"),
    ],
)
def test_invalid_submission_is_refused_with_the_ids(broken, message):
    validate_submission(SAMPLE, SAMPLE)
    with pytest.raises(SubmissionError, match=message):
        validate_submission(broken, SAMPLE)


def test_invalid_submission_writes_nothing(competition, tmp_path):
    with pytest.raises(SubmissionError):
        write_submission(tmp_path / "submission.csv", tmp_path / "s", pd.Series({"1_L": 0.5}), None, competition, {})
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def trained(images, cache_dir, tmp_path_factory):
    """Two short runs, one per image and one per breast."""
    runs = []
    for architecture in ("cnn", "rnn"):
        model = ModelConfig(architecture, TINY.image_height, TINY.image_width, encoders=("cnn",))
        runs.append(tmp_path_factory.mktemp("runs") / architecture)
        train_run(TrainConfig(model, TINY, n_folds=2, epochs=1, batch_size=8), images, cache_dir, runs[-1])
    return runs


@pytest.fixture
def broken_competition(competition, tmp_path):
    """The phantom's test set with one image of a breast unreadable, and all images of another."""
    folder = tmp_path / "broken"
    shutil.copytree(competition, folder)
    return folder


@pytest.fixture(scope="module")
def tuned(trained):
    """As of threshold.json, with a calibration that keeps probabilities as they are."""
    return tune(trained) | {"calibration": Calibration().to_json()}


@pytest.fixture(scope="module")
def alone(trained, tuned, test_images, competition, tmp_path_factory):
    """What each run predicts by itself: shape (breasts, runs)."""
    folder = tmp_path_factory.mktemp("alone")
    return pd.concat([predict_runs([run], test_images, competition, folder, tuned, 1) for run in trained], axis=1)


@pytest.mark.parametrize("weights", [[1, 1], [1, 3], [0, 2]])
def test_runs_predict_every_breast_of_the_test_averaged_by_their_weights(
    trained, tuned, alone, test_images, competition, tmp_path, weights
):
    found = predict_runs(trained, test_images, competition, tmp_path / "cache", tuned | {"weights": weights}, 1)
    assert set(found.index) == set(test_images.prediction_id)
    assert np.allclose(found, np.average(alone.loc[found.index], axis=1, weights=weights))
    assert not np.allclose(*alone.to_numpy().T)


def test_weights_stay_with_their_runs_in_another_order(trained, tuned, alone, test_images, competition, tmp_path):
    weighted = tuned | {"weights": [1, 3]}
    found = predict_runs(trained[::-1], test_images, competition, tmp_path / "cache", weighted, 1)
    assert np.allclose(found, np.average(alone.loc[found.index], axis=1, weights=[1, 3]))


def test_predictions_are_calibrated_as_threshold_json_says(trained, tuned, alone, test_images, competition, tmp_path):
    calibration = Calibration("platt", slope=2.0, intercept=-1.0)
    changed = tuned | {"calibration": calibration.to_json()}
    found = predict_runs(trained, test_images, competition, tmp_path / "cache", changed, 1)
    odds = (alone.mean(axis=1) / (1 - alone.mean(axis=1))).loc[found.index]
    assert np.allclose(found / (1 - found), odds**2 / np.e)


def test_breast_that_one_run_could_not_read_is_the_other_runs(trained, tuned, monkeypatch):
    by_run = dict(zip(trained, (pd.Series({"a": 0.2, "b": 0.4}), pd.Series({"b": 0.8})), strict=True))
    monkeypatch.setattr(submission, "predict_test", lambda run, *_: by_run[run])
    found = predict_runs(trained, None, None, None, tuned | {"weights": [1, 3]}, 1)
    assert found.to_dict() == pytest.approx({"a": 0.2, "b": 0.7})


def test_run_without_weight_is_not_predicted(trained, tuned, monkeypatch):
    asked = []
    monkeypatch.setattr(submission, "predict_test", lambda run, *_: asked.append(run) or pd.Series({"a": 0.2}))
    predict_runs(trained, None, None, None, tuned | {"weights": [0, 3]}, 1)
    assert asked == trained[1:]


def test_unreadable_images_fall_back_to_the_breast_then_to_the_prior(trained, tuned, test_images, broken_competition, tmp_path):
    counts = test_images.groupby("prediction_id").size()
    partly, wholly = counts.index[counts > 1][:2]
    lost = [test_images[test_images.prediction_id == partly].head(1), test_images[test_images.prediction_id == wholly]]
    for row in pd.concat(lost).itertuples():
        (broken_competition / "test_images" / row.patient_id / f"{row.image_id}.dcm").write_bytes(b"broken")
    predicted = predict_runs(trained, test_images, broken_competition, tmp_path / "cache", tuned, 1)
    completed, filled = complete(predicted, test_images, prior=0.02)
    assert filled == [wholly] and completed[wholly] == 0.02 and completed[partly] != 0.02
    assert len(completed) == len(counts)


def test_wholly_unreadable_test_set_still_gives_a_submission(trained, tuned, test_images, broken_competition, tmp_path):
    for path in (broken_competition / "test_images").rglob("*.dcm"):
        path.unlink()
    predicted = predict_runs(trained, test_images, broken_competition, tmp_path / "cache", tuned, 1)
    completed, filled = complete(predicted, test_images, prior=0.02)
    assert (completed == 0.02).all() and len(filled) == len(completed)


def test_run_of_another_preprocessing_is_refused(trained, tuned, test_images, competition, tmp_path):
    run = tmp_path / "old"
    shutil.copytree(trained[0], run)
    content = json.loads((run / "config.json").read_text())
    write_json(run / "config.json", content | {"settings_hash": "0123456789ab"})
    with pytest.raises(SubmissionError, match="trained on preprocessing 0123456789ab"):
        predict_runs([run], test_images, competition, tmp_path / "cache", tuned, 1)


def test_run_of_an_older_preprocessing_version_is_refused(trained, monkeypatch):
    check_run(trained[0], is_phantom=True)
    monkeypatch.setattr(CacheSettings, "__init__", partialmethod(CacheSettings.__init__, version=99))
    with pytest.raises(SubmissionError, match="version 2, which this kit .version 99. does not do"):
        check_run(trained[0], is_phantom=True)


def test_phantom_model_never_predicts_real_images(trained, tuned, test_images, broken_competition, tmp_path):
    run = tmp_path / "phantom-run"
    shutil.copytree(trained[0], run)
    write_json(run / "config.json", json.loads((run / "config.json").read_text()) | {"phantom": True})
    (broken_competition / "phantom.json").unlink()  # now it passes for real
    with pytest.raises(SubmissionError, match="trained on the phantom, but the images are real"):
        predict_runs([run], test_images, broken_competition, tmp_path / "cache", tuned, 1)


def test_ids_are_checked_before_the_prediction(competition, test_images):
    check_sample(test_images, competition)
    with pytest.raises(SubmissionError, match="missing"):
        check_sample(test_images.iloc[8:], competition)
