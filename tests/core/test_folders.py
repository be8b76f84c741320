"""Facts about where the competition is found, and what a path parameter means."""

import pytest

from utils.core import folders
from utils.core.errors import KitError
from utils.core.folders import competition_folder, copies_dir, find_competition, named_folder, resolve

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


def test_missing_folder_is_said_to_be_missing(tmp_path):
    (tmp_path / "file").touch()
    assert named_folder(tmp_path, "cache_dir") == tmp_path
    with pytest.raises(KitError, match=rf"^cache_dir {tmp_path}/nowhere does not exist\. Correct the path\.$"):
        named_folder(tmp_path / "nowhere", "cache_dir")
    with pytest.raises(KitError, match="file is not a folder"):
        named_folder(tmp_path / "file", "cache_dir")
    with pytest.raises(KitError, match="competition_dir .*nowhere does not exist"):
        competition_folder(tmp_path / "nowhere")


@pytest.fixture
def project(elsewhere, monkeypatch):
    """A project with notebooks/ and data/own, in whose notebooks/ the process is."""
    (elsewhere / "project" / "data" / "own").mkdir(parents=True)
    (elsewhere / "project" / "notebooks").mkdir()
    monkeypatch.chdir(elsewhere / "project" / "notebooks")
    return elsewhere / "project"


@pytest.mark.parametrize("path", ["data/own", "outputs/runs/new", "new.csv", "data/../data/own"])
def test_readmes_paths_mean_the_same_in_notebooks(project, monkeypatch, path):
    from_notebooks = resolve(path)
    monkeypatch.chdir(project)
    assert from_notebooks == resolve(path) == (project / path).resolve()


@pytest.mark.parametrize("path", ["./new.csv", "../data/own", "../outputs", "here"])
def test_path_that_exists_in_notebooks_or_begins_with_a_dot_starts_there(project, path):
    (project / "notebooks" / "here").mkdir()
    (project / "here").mkdir()
    assert resolve(path) == (project / "notebooks" / path).resolve()


def test_other_paths_mean_what_they_mean_in_a_shell(project, tmp_path, monkeypatch):
    assert resolve(tmp_path / "new") == tmp_path / "new"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert resolve("~/new") == tmp_path / "home" / "new"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resolve("data/own") == tmp_path / "elsewhere" / "data" / "own"


def test_only_real_submissions_are_kept_in_the_projects_folder(elsewhere):
    submission = elsewhere / "demo" / "submission.csv"
    assert copies_dir(submission, is_for_show=False) == elsewhere / "project" / "submissions"
    assert copies_dir(submission, is_for_show=True) == elsewhere / "demo" / "submissions"


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
