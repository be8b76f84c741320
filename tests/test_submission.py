import json
import math
import shutil
from functools import partialmethod

import numpy as np
import pandas as pd
import pytest
from conftest import TINY

from utils.cache import CacheSettings
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
    run = tmp_path / "old"
    shutil.copytree(trained[0], run)
    content = json.loads((run / "config.json").read_text())
    write_json(run / "config.json", content | {"settings_hash": "0123456789ab"})
    with pytest.raises(SubmissionError, match="trained on preprocessing 0123456789ab"):
        predict_runs([run], test_images, competition, tmp_path / "cache", "mean", 1)


def test_run_of_an_older_preprocessing_version_is_refused(trained, monkeypatch):
    check_run(trained[0], is_phantom=True)
    monkeypatch.setattr(CacheSettings, "__init__", partialmethod(CacheSettings.__init__, version=99))
    with pytest.raises(SubmissionError, match="version 2, which this kit .version 99. does not do"):
        check_run(trained[0], is_phantom=True)


def test_phantom_model_never_predicts_real_images(trained, test_images, broken_competition, tmp_path):
    run = tmp_path / "phantom-run"
    shutil.copytree(trained[0], run)
    write_json(run / "config.json", json.loads((run / "config.json").read_text()) | {"phantom": True})
    (broken_competition / "phantom.json").unlink()  # now it passes for real
    with pytest.raises(SubmissionError, match="trained on the phantom, but the images are real"):
        predict_runs([run], test_images, broken_competition, tmp_path / "cache", "mean", 1)


def test_ids_are_checked_before_the_prediction(competition, test_images):
    check_sample(test_images, competition)
    with pytest.raises(SubmissionError, match="missing"):
        check_sample(test_images.iloc[8:], competition)
