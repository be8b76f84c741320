import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from utils.submission import Draft, SubmissionError, complete, validate_submission, write_prior

ROOT = Path(__file__).resolve().parent.parent


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
    decisions = (probabilities < 0.5).astype(int)  # the threshold is not the draft's: it takes decisions as they are
    path = tmp_path / "out" / "submission.csv"
    shuffled = decisions.sample(frac=1, random_state=0)
    draft = Draft(path, test_images, competition, 0.02, (lambda completed: shuffled) if hard else None)
    draft.finish(probabilities, tmp_path / "submissions", {"name": "a-b", "runs": ["a", "b"]})
    written = pd.read_csv(path, dtype={"prediction_id": str})
    assert list(written.columns) == ["prediction_id", "cancer"] and written.prediction_id.tolist() == ids.tolist()
    assert written.cancer.tolist() == (decisions if hard else probabilities).tolist()
    beside = pd.read_csv(path.with_name("probabilities.csv"), dtype={"prediction_id": str})
    assert list(beside.columns) == ["prediction_id", "probability"] and np.allclose(beside.probability, probabilities)
    provenance = json.loads(next((tmp_path / "submissions").glob("*-a-b.json")).read_text())
    assert provenance["runs"] == ["a", "b"] and provenance["hard"] == hard and "torch" in provenance["versions"]
    assert provenance["unpredicted"] == []
    copy = next((tmp_path / "submissions").glob("*-a-b.csv"))
    assert copy.read_bytes() == path.read_bytes()


def test_prior_is_a_valid_submission_before_anything_is_predicted(competition, test_images, tmp_path):
    write_prior(tmp_path / "submission.csv", competition)
    written = pd.read_csv(tmp_path / "submission.csv", dtype={"prediction_id": str})
    assert written.prediction_id.tolist() == test_images.prediction_id.drop_duplicates().tolist()
    assert np.allclose(written.cancer, 492 / 23_826)


def test_no_competition_has_no_prior(tmp_path):
    write_prior(tmp_path / "submission.csv", None)
    assert not list(tmp_path.iterdir())


def test_draft_keeps_the_prior_of_what_is_not_predicted_yet(competition, test_images, tmp_path):
    ids = test_images.prediction_id.unique()
    draft = Draft(tmp_path / "submission.csv", test_images, competition, 0.02)
    for known in (1, 2):
        draft.update(pd.Series(0.7, index=ids[:known]))
        written = pd.read_csv(draft.path, dtype={"prediction_id": str})
        assert written.cancer.tolist() == [0.7] * known + [0.02] * (len(ids) - known)


def test_unpredicted_breasts_are_named_in_the_provenance(competition, test_images, tmp_path):
    ids = test_images.prediction_id.unique()
    draft = Draft(tmp_path / "submission.csv", test_images, competition, 0.02)
    draft.finish(pd.Series(0.7, index=ids[1:]), tmp_path / "s", {"name": "a"})
    assert json.loads(next((tmp_path / "s").glob("*.json")).read_text())["unpredicted"] == [ids[0]]


def test_light_modules_write_the_prior_without_torch():
    code = "import sys; import utils.deadline, utils.submission; sys.exit('torch' in sys.modules or 'cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


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


def test_invalid_submission_writes_nothing(competition, test_images, tmp_path):
    draft = Draft(tmp_path / "submission.csv", test_images, competition, 0.02, lambda completed: completed * 2 + 1)
    with pytest.raises(SubmissionError, match="without a value"):
        draft.finish(pd.Series(dtype=float), tmp_path / "s", {})
    assert not list(tmp_path.iterdir())


def test_ids_are_checked_before_the_prediction(competition, tmp_path):
    folder = tmp_path / "competition"
    folder.mkdir()
    shutil.copy(competition / "sample_submission.csv", folder)
    pd.read_csv(competition / "test.csv", dtype=str).iloc[8:].to_csv(folder / "test.csv", index=False)
    with pytest.raises(SubmissionError, match="missing"):
        write_prior(tmp_path / "submission.csv", folder)
