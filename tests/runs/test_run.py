"""Facts about which folders of a run are its folds."""

import pytest

from tests.helpers import TINY, make_config
from utils.core.files import write_json
from utils.runs.run import Run


def make_run(run_dir, *names):
    write_json(run_dir / "config.json", make_config(TINY, n_folds=12).to_json())
    for name in names:
        (run_dir / name).mkdir()
        (run_dir / name / "oof.csv").write_text("")
    return Run(run_dir)


def test_folds_come_by_number_and_only_those_that_have_the_file(tmp_path):
    run = make_run(tmp_path, "fold10", "fold2", "fold0")
    (tmp_path / "fold1").mkdir()
    (tmp_path / "fold3" / "oof.csv").mkdir(parents=True)
    assert [folder.name for folder in run.finished_folds()] == ["fold0", "fold2", "fold10"]


SUFFIXED = ["fold0_backup", "fold0_1", "fold1_0", "fold0 copy", "fold0.old", "fold0~", "fold1\n", "fold1e1"]
NOT_NUMBERED = ["fold", "folds", "fold_best", "fold-1", "fold+1", "fold 1", "fold01", "fold٣", "Copy of fold0", ".fold1"]
BEYOND = ["fold12", "fold999"]


@pytest.mark.parametrize("copy", SUFFIXED + NOT_NUMBERED + BEYOND)
def test_copy_of_a_fold_is_no_fold(tmp_path, copy):
    assert [folder.name for folder in make_run(tmp_path, "fold0", copy).finished_folds()] == ["fold0"]


def test_folds_of_a_run_whose_configuration_says_nothing_are_those_with_a_number(tmp_path):
    run = make_run(tmp_path, "fold0", "fold7", "fold7_1")
    (tmp_path / "config.json").write_text("{")
    assert [folder.name for folder in run.finished_folds()] == ["fold0", "fold7"]
