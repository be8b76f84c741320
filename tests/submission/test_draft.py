import json
import math
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from utils.submission.draft import (
    PRIOR,
    Draft,
    SubmissionError,
    _claim_name,
    complete,
    validate_submission,
    warning_only,
    write_prior,
)

ROOT = Path(__file__).resolve().parents[2]


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


def test_prior_that_can_not_be_written_is_refused_in_one_line(competition, tmp_path):
    with pytest.raises(SubmissionError, match="can't be written .*give another submission_path"):
        write_prior(tmp_path, competition)
    (tmp_path / "file").touch()
    with pytest.raises(SubmissionError, match="can't be written"):
        write_prior(tmp_path / "file" / "submission.csv", competition)


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
    code = "import sys, utils.submission.deadline, utils.submission.draft; sys.exit(bool({'torch', 'cv2'} & {*sys.modules}))"
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
        draft.finish(pd.Series(0.7, index=test_images.prediction_id[:1]), tmp_path / "s", {})
    assert not list(tmp_path.iterdir())


def by_threshold(threshold):
    return lambda probabilities: (probabilities >= threshold).astype(int)


def test_breasts_not_yet_predicted_keep_the_prior_until_the_last_update_decides_them(competition, test_images, tmp_path):
    ids = test_images.prediction_id.unique()
    draft = Draft(tmp_path / "submission.csv", test_images, competition, 0.02, by_threshold(0.5))
    predicted = pd.Series([0.7, 0.3], index=ids[:2])
    assert draft.update(predicted).cancer.tolist() == [1, 0] + [0.02] * (len(ids) - 2)
    draft.finish(predicted, tmp_path / "s", {})
    assert pd.read_csv(draft.path).cancer.tolist() == [1, 0] + [0] * (len(ids) - 2)


@pytest.mark.parametrize(("prior", "positive"), [(0.0, 1), (0.02, 1), (0.25, 2), (1.0, 8)])
def test_highest_ranked_are_positive_where_no_probability_reaches_the_threshold(
    competition, test_images, tmp_path, prior, positive
):
    ids = test_images.prediction_id.unique()
    draft = Draft(tmp_path / "submission.csv", test_images, competition, prior, by_threshold(0.5))
    probabilities = pd.Series(np.arange(len(ids)) / 100, index=ids)
    submission = draft.finish(probabilities, tmp_path / "s", {})
    assert submission.cancer.tolist() == [0] * (len(ids) - positive) + [1] * positive
    assert pd.read_csv(draft.path, dtype={"cancer": str}).cancer.isin(["0", "1"]).all()
    (note,) = json.loads(next((tmp_path / "s").glob("*.json")).read_text())["notes"]
    assert note == f"No probability reaches the threshold: the {positive} highest of 8 are submitted as positive."


def test_no_state_of_a_draft_is_all_zero(competition, test_images, tmp_path):
    ids = test_images.prediction_id.unique()
    draft = Draft(tmp_path / "submission.csv", test_images, competition, 0.02, by_threshold(0.5))
    for known in range(len(ids) + 1):
        assert draft.update(pd.Series(0.01, index=ids[:known])).cancer.sum() > 0
        assert draft.finish(pd.Series(0.01, index=ids[:known]), tmp_path / "s", {}).cancer.sum() > 0


@pytest.mark.parametrize("threshold", [0.5, 0.01])
@pytest.mark.parametrize("predicted", [{}, {"unknown": 0.7}, {0: np.nan}])
def test_prior_stays_where_nothing_could_be_predicted(competition, test_images, tmp_path, capsys, threshold, predicted):
    ids = test_images.prediction_id.unique()
    draft = Draft(tmp_path / "submission.csv", test_images, competition, 0.02, by_threshold(threshold))
    index = [ids[key] if isinstance(key, int) else key for key in predicted]
    submission = draft.finish(pd.Series(predicted.values(), index=index, dtype=float), tmp_path / "s", {})
    assert (submission.cancer == 0.02).all() and "every breast has the prior" in capsys.readouterr().out


def test_probabilities_of_zero_alone_give_way_to_the_prior(competition, test_images, tmp_path):
    draft = Draft(tmp_path / "submission.csv", test_images, competition, 0.02)
    submission = draft.finish(pd.Series(0.0, index=test_images.prediction_id.unique()), tmp_path / "s", {})
    assert (submission.cancer == 0.02).all() and (submission.probability == 0).all()
    (note,) = json.loads(next((tmp_path / "s").glob("*.json")).read_text())["notes"]
    assert note == "All probabilities are 0: every breast has the prior."


def test_submission_of_positives_alone_is_noted(competition, test_images, tmp_path):
    draft = Draft(tmp_path / "submission.csv", test_images, competition, 0.02, by_threshold(0.5))
    submission = draft.finish(pd.Series(0.7, index=test_images.prediction_id.unique()), tmp_path / "s", {})
    assert (submission.cancer == 1).all()
    (note,) = json.loads(next((tmp_path / "s").glob("*.json")).read_text())["notes"]
    assert note.startswith("All 8 predicted breasts reach the threshold")


@pytest.fixture
def finish(competition, test_images, tmp_path):
    """Write a last update into tmp_path, and its copies into tmp_path/s; gives the names of the copies."""
    draft = Draft(tmp_path / "submission.csv", test_images, competition, 0.02)

    def write(provenance, probability=0.7):
        submission = draft.finish(pd.Series(probability, index=test_images.prediction_id.unique()), tmp_path / "s", provenance)
        assert (submission.cancer == probability).all() and (pd.read_csv(draft.path).cancer == probability).all()
        return sorted(path.name for path in (tmp_path / "s").glob("*"))

    return write


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("cnn", "cnn"),
        ("-".join(["tf_efficientnetv2_s_1536x768"] * 20), "tf_efficientnetv2_s_1536x768-tf"),
        ("乳" * 300, "乳" * 33),
        ("é" * 300, "é" * 50),
        ("my rnn/../x\\y\n", "my_rnn_.._x_y_"),
        ("\udcff\0", "_"),
        ("", "submission"),
        (None, "None"),
        (Path("a/b"), "a_b"),
    ],
)
def test_any_name_makes_a_short_plain_file_name(finish, tmp_path, name, kept):
    names = finish({"name": name})
    assert len(names) == 3 and all(len(name.encode()) < 150 for name in names)
    assert all(name[16:].startswith(kept) for name in names)
    assert json.loads(next((tmp_path / "s").glob("*.json")).read_text())["name"] == (name if name is None else str(name))


def test_submissions_of_the_same_second_are_all_kept(finish, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.submission.draft.time.strftime", lambda form: "20261125-120000")
    for probability in (0.2, 0.4, 0.6):
        names = finish({"name": "cnn", "probability": probability}, probability)
    assert len(names) == 9
    for path in (tmp_path / "s").glob("*.json"):
        expected = json.loads(path.read_text())["probability"]
        assert (pd.read_csv(path.with_suffix(".csv")).cancer == expected).all()
        assert (pd.read_csv(path.with_name(f"{path.stem}_probabilities.csv")).probability == expected).all()
    assert [path.stem[15:] for path in sorted((tmp_path / "s").glob("*.json"))] == ["-cnn", "-cnn_2", "-cnn_3"]


@pytest.mark.parametrize("left", ["-cnn.csv", "-cnn_probabilities.csv", "-cnn.json"])
def test_any_file_of_a_name_keeps_it_taken(finish, tmp_path, monkeypatch, left):
    monkeypatch.setattr("utils.submission.draft.time.strftime", lambda form: "20261125-120000")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / f"20261125-120000{left}").write_text("mine")
    assert len(finish({"name": "cnn"})) == 4
    assert (tmp_path / "s" / f"20261125-120000{left}").read_text() == "mine"


def test_names_are_claimed_once_by_many_at_the_same_moment(tmp_path):
    with ThreadPoolExecutor(8) as threads:
        names = list(threads.map(lambda _: _claim_name(tmp_path, "a"), range(40)))
    assert len(set(names)) == 40


def test_provenance_holds_what_json_does_not_know(finish, tmp_path):
    unusual = {
        "nan": math.nan,
        "bounds": (np.float32(0.5), -math.inf),
        "counts": np.arange(2),
        1: {Path("a/b")},
        "series": pd.Series([np.int64(3)]),
        "moment": np.datetime64("2026-11-25"),
        "flag": np.bool_(True),
    }
    assert len(finish({"name": "cnn", "tuned": unusual})) == 3
    assert json.loads(next((tmp_path / "s").glob("*.json")).read_text())["tuned"] == {
        "nan": None,
        "bounds": [0.5, None],
        "counts": [0, 1],
        "1": ["a/b"],
        "series": [3],
        "moment": "2026-11-25",
        "flag": True,
    }


def test_copies_that_can_not_be_kept_cost_a_warning_alone(finish, tmp_path, capsys):
    (tmp_path / "s").write_text("a file where the folder should be")
    finish({"name": "cnn"})
    assert "Warning: The submission was written, but its copies are incomplete." in capsys.readouterr().out


def test_provenance_that_can_not_be_written_leaves_the_copies(finish, capsys):
    endless = {"name": "cnn"}
    endless["self"] = endless
    assert [name[15:] for name in finish(endless)] == ["-cnn.csv", "-cnn_probabilities.csv"]
    assert "RecursionError" in capsys.readouterr().out


def test_full_disk_at_the_last_update_leaves_the_one_before(competition, test_images, tmp_path, monkeypatch, capsys):
    def full(path, table):
        raise OSError(28, "No space left on device")

    ids = test_images.prediction_id.unique()
    draft = Draft(tmp_path / "submission.csv", test_images, competition, 0.02)
    draft.update(pd.Series(0.7, index=ids))
    before = draft.path.read_bytes()
    monkeypatch.setattr("utils.submission.draft.write_csv", full)
    draft.finish(pd.Series(0.8, index=ids), tmp_path / "s", {})
    assert draft.path.read_bytes() == before and not list((tmp_path / "s").iterdir())
    assert "The last update failed" in capsys.readouterr().out
    draft.path.unlink()
    with pytest.raises(OSError, match="No space left"):
        draft.finish(pd.Series(0.8, index=ids), tmp_path / "s", {})


def test_error_after_the_submission_becomes_a_warning(capsys):
    with warning_only("The figure can't be shown."):
        raise ValueError("no bins")
    assert capsys.readouterr().out == "Warning: The figure can't be shown. (ValueError: no bins)\n"


def test_ids_are_checked_before_the_prediction(competition, tmp_path):
    folder = tmp_path / "competition"
    folder.mkdir()
    shutil.copy(competition / "sample_submission.csv", folder)
    pd.read_csv(competition / "test.csv", dtype=str).iloc[8:].to_csv(folder / "test.csv", index=False)
    with pytest.raises(SubmissionError, match="missing"):
        write_prior(tmp_path / "submission.csv", folder)


@pytest.fixture
def own(competition, tmp_path):
    """A folder of own images: test.csv alone."""
    folder = tmp_path / "own"
    folder.mkdir()
    shutil.copy(competition / "test.csv", folder)
    return folder


def test_test_table_says_which_ids_are_wanted_where_there_is_no_sample(own, competition, test_images, tmp_path):
    Draft(tmp_path / "submission.csv", test_images, own, PRIOR).update(pd.Series(dtype=float))
    sample = pd.read_csv(competition / "sample_submission.csv", dtype=str)
    assert pd.read_csv(tmp_path / "submission.csv", dtype=str).prediction_id.tolist() == sample.prediction_id.tolist()


def test_own_images_have_no_prior_and_files_of_an_earlier_folder_stay(own, tmp_path, capsys):
    (tmp_path / "probabilities.csv").write_text("mine")
    write_prior(tmp_path / "submission.csv", own)
    assert "your own images, and probabilities.csv is the result" in capsys.readouterr().out
    assert not (tmp_path / "submission.csv").exists() and (tmp_path / "probabilities.csv").read_text() == "mine"


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_own_images_may_all_be_negative_and_an_unreadable_breast_has_no_probability(own, test_images, tmp_path, value, capsys):
    ids = test_images.prediction_id.unique()
    draft = Draft(tmp_path / "submission.csv", test_images, own, 0.02, by_threshold(0.5))
    draft.finish(pd.Series(value, index=ids[1:]), tmp_path / "s", {})
    assert (pd.read_csv(draft.path).cancer == 0).all()
    probability = pd.read_csv(tmp_path / "probabilities.csv").set_index("prediction_id").probability
    assert np.isnan(probability[ids[0]]) and (probability[ids[1:]] == value).all() and probability.index.tolist() == [*ids]
    note = f"1 of 8 breasts could not be predicted and count as the prior: {ids[0]}. probabilities.csv leaves them empty."
    assert note in capsys.readouterr().out


def test_last_message_says_submit_only_where_there_is_a_competition(own, competition, test_images, tmp_path):
    path = tmp_path / "submission.csv"
    of_competition = Draft(path, test_images, competition, 0.02).what_next(tmp_path)
    of_own = [Draft(path, test_images, own, 0.02, decide).what_next(tmp_path) for decide in (by_threshold(0.5), None)]
    assert of_competition.startswith(f"Submit {path}.")
    for said in of_own:
        assert "Submit" not in said and said.startswith(f"{tmp_path / 'probabilities.csv'} has one probability per breast")
        assert "2.0% have cancer" in said
    assert ["threshold" in said for said in of_own] == [True, False]
