"""Facts about the phantom's hidden test."""

import hashlib

import pandas as pd
import pytest

from utils.core.errors import KitError
from utils.dicom.file import DicomError, read_dicom
from utils.phantom.competition import TEST_COLUMNS, TRUTH_FOLDER, is_phantom_competition
from utils.phantom.hidden_test import EXTRA_COLUMN, NEW_MACHINES, make_hidden_test
from utils.tables.competition import image_paths, read_images, read_sample_submission

SMALL = {"n_patients": 3, "height": 64, "n_train_patients": 1}


@pytest.fixture(scope="module")
def hidden(tmp_path_factory):
    return make_hidden_test(tmp_path_factory.mktemp("hidden") / "competition", **SMALL)


@pytest.fixture(scope="module")
def rows(hidden) -> pd.DataFrame:
    return read_images(hidden.folder, "test")


def is_readable(path) -> bool:
    try:
        read_dicom(path)
    except DicomError:
        return False
    return True


def test_models_of_the_phantom_may_predict_it(hidden):
    assert is_phantom_competition(hidden.folder)


def test_its_machines_are_in_no_training_table(hidden, rows):
    assert set(NEW_MACHINES) <= set(rows.machine_id)
    assert not set(NEW_MACHINES) & set(read_images(hidden.folder, "train").machine_id)


def test_ages_are_missing_for_a_whole_patient_and_for_one_image(rows):
    missing = rows.age.isna().groupby(rows.patient_id, sort=False).agg(["sum", "size"])
    assert (missing["sum"] == missing["size"]).any()
    assert (missing["sum"] == 1).any()


def test_a_breast_has_a_single_view(rows):
    assert (rows.groupby("prediction_id").size() == 1).any()


def test_test_csv_has_a_column_more(hidden):
    assert pd.read_csv(hidden.folder / "test.csv").columns.tolist() == [*TEST_COLUMNS, EXTRA_COLUMN]


def test_sample_submission_agrees_with_test_csv(hidden, rows):
    assert read_sample_submission(hidden.folder).prediction_id.tolist() == rows.prediction_id.drop_duplicates().tolist()


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # of the file that is cut off
def test_exactly_the_named_breasts_are_unreadable(hidden, rows):
    readable = pd.Series([is_readable(path) for path in image_paths(rows, hidden.folder, "test")])
    by_breast = readable.groupby(rows.prediction_id).agg(["any", "all"])
    assert set(by_breast.index[~by_breast["any"]]) == set(hidden.unreadable)
    assert set(by_breast.index[by_breast["any"] & ~by_breast["all"]]) == {hidden.partly_readable}
    assert hidden.images == len(rows)


def test_files_are_cut_off_empty_and_absent(hidden, rows):
    paths = pd.Series(image_paths(rows, hidden.folder, "test"), index=rows.prediction_id)
    cut_off, empty, absent = (paths.loc[[name]] for name in hidden.unreadable)
    assert all(path.stat().st_size > 500 for path in cut_off)
    assert all(path.stat().st_size == 0 for path in empty)
    assert not any(path.exists() for path in absent)


def test_training_images_are_there_and_the_answers_are_not(hidden):
    train = read_images(hidden.folder, "train")
    assert all(path.is_file() for path in image_paths(train, hidden.folder, "train"))
    assert not (hidden.folder / TRUTH_FOLDER).exists()


def test_same_seed_gives_the_same_files_and_another_does_not(hidden, tmp_path):
    def digest(folder):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        parts = [str(path.relative_to(folder)).encode() + path.read_bytes() for path in files]
        return hashlib.sha256(b"".join(parts)).hexdigest()

    again, other = (make_hidden_test(tmp_path / str(seed), seed=seed, **SMALL).folder for seed in (0, 1))
    assert digest(again) == digest(hidden.folder) != digest(other)


def test_too_few_patients_are_refused(tmp_path):
    with pytest.raises(KitError, match="at least 3 patients, not 2: give --patients"):
        make_hidden_test(tmp_path / "x", n_patients=2)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="mine exists: delete it or choose another folder"):
        make_hidden_test(tmp_path / "mine", **SMALL)
