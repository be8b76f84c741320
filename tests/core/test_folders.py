"""Facts about where the competition is found."""

import pytest

from utils.core import folders
from utils.core.folders import copies_dir, find_competition

KAGGLE_OLD, KAGGLE_NEW, AT_HOME, AT_HOME_FLAT = FOLDERS = [
    f"input/{folders.COMPETITION}",
    f"input/competitions/{folders.COMPETITION}",
    f"project/data/{folders.COMPETITION}",
    "project/data",
]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A Kaggle input folder and a project, both empty."""
    monkeypatch.setattr(folders, "KAGGLE_INPUT", tmp_path / "input")
    monkeypatch.setattr(folders, "PROJECT", tmp_path / "project")
    return tmp_path


def put_competition(root, folder: str) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / "test.csv").touch()


@pytest.mark.parametrize("folder", FOLDERS)
def test_competition_is_found_where_test_csv_is(elsewhere, folder):
    put_competition(elsewhere, folder)
    assert find_competition() == elsewhere / folder


@pytest.mark.parametrize("first, second", [(KAGGLE_OLD, AT_HOME), (KAGGLE_NEW, AT_HOME_FLAT), (AT_HOME, AT_HOME_FLAT)])
def test_kaggles_folder_comes_before_the_projects(elsewhere, first, second):
    put_competition(elsewhere, second)
    put_competition(elsewhere, first)
    assert find_competition() == elsewhere / first


def test_no_competition_is_none(elsewhere):
    assert find_competition() is None
    (elsewhere / KAGGLE_OLD).mkdir(parents=True)  # an empty folder is no competition
    (elsewhere / AT_HOME / "test.csv").mkdir(parents=True)  # nor is a folder of that name
    assert find_competition() is None


def test_only_real_submissions_are_kept_in_the_projects_folder(elsewhere):
    submission = elsewhere / "demo" / "submission.csv"
    assert copies_dir(submission, is_for_show=False) == elsewhere / "project" / "submissions"
    assert copies_dir(submission, is_for_show=True) == elsewhere / "demo" / "submissions"
