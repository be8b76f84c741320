"""Facts about where the competition is found."""

import pytest

from utils.core import folders
from utils.core.folders import find_competition, resolve

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


@pytest.mark.parametrize("place", ["", "datasets/owner", "notebooks/owner"])
def test_an_inputs_path_holds_wherever_kaggle_mounts_it(elsewhere, place):
    file = elsewhere / "input" / place / "pretrained-x" / "x.safetensors"
    file.parent.mkdir(parents=True)
    file.touch()
    assert resolve(elsewhere / "input" / "pretrained-x" / "x.safetensors") == file


def test_a_path_that_is_nowhere_stays_as_it_was_given(elsewhere):
    (elsewhere / "input" / "datasets" / "owner").mkdir(parents=True)
    for missing in ("input/pretrained-x/x.safetensors", "project/x"):
        assert resolve(elsewhere / missing) == elsewhere / missing
