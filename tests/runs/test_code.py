"""Facts about the hash of the code that trains."""

import shutil

import pytest

from utils.core.folders import PROJECT
from utils.runs import code as training_code
from utils.runs.code import changed_versions, code_versions


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """A copy of the kit's modules, to be edited."""
    shutil.copytree(PROJECT / "utils", tmp_path / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(training_code, "PROJECT", tmp_path)
    return tmp_path / "utils"


def edit(path):
    path.write_text(path.read_text(encoding="utf-8") + "\nCHANGED = True\n", encoding="utf-8")


@pytest.mark.parametrize(
    "module", ["training/folds", "training/fitting", "networks/losses", "images/cached", "runs/folder", "metrics/__init__"]
)
def test_edit_of_a_module_that_trains_changes_the_hash(kit, module):
    before = code_versions()
    edit(kit / f"{module}.py")
    assert code_versions()["code"] != before["code"] and "code was" in changed_versions(before)


@pytest.mark.parametrize(
    "module", ["submission/draft", "evaluation/report", "kaggle/preflight", "decision/tuning", "rehearsal/stage"]
)
def test_edit_of_another_module_does_not(kit, module):
    before = code_versions()
    edit(kit / f"{module}.py")
    assert code_versions() == before and changed_versions(before) == ""


def test_line_ends_of_windows_do_not_change_the_hash(kit):
    before = code_versions()
    path = kit / "training" / "folds.py"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert code_versions() == before


def test_run_of_an_earlier_version_is_compared_by_what_it_notes():
    assert changed_versions({}) == "" and changed_versions({"commit": "1"}).startswith("commit was 1 and is")
