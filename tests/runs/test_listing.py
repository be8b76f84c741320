"""Facts about the table of runs: what it shows, and that a broken run does not end it."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.helpers import TINY, make_config
from tests.runs.test_oof import write_oof
from utils.core.errors import KitError
from utils.core.files import read_json, write_json
from utils.decision.tuning import tune
from utils.runs.code import code_versions, warn_of_other_code
from utils.runs.listing import find_run_folders, list_runs

ROOT = Path(__file__).resolve().parents[2]
NOTES = {"prevalence": 0.25, "data_hash": "abcdef123456", "versions": {"code": "123456789abc", "commit": "1a2b3c"}}


def write_history(folder, epochs):
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({"fold": 0, "epoch": range(epochs), "seconds": 10.0})
    table.to_csv(folder / "history.csv", index=False)


def make_run(run_dir, started=0, notes=None, **changes):
    """A run of two folds and three epochs, whose folds are finished."""
    write_oof(run_dir)
    write_json(run_dir / "config.json", make_config(TINY, **changes).to_json() | NOTES | (notes or {}))
    os.utime(run_dir / "config.json", (started, started))
    oof = pd.read_csv(run_dir / "oof.csv")
    for fold, rows in oof.groupby("fold"):
        write_history(run_dir / f"fold{fold}", 3)
        rows.to_csv(run_dir / f"fold{fold}" / "oof.csv", index=False)
    return run_dir


@pytest.fixture
def runs(tmp_path):
    """Two runs, the second started first."""
    return [make_run(tmp_path / "a", started=2000), make_run(tmp_path / "b", started=1000, learning_rate=0.01)]


def test_runs_are_listed_newest_last_with_the_settings_in_which_they_differ(runs):
    table, unreadable = list_runs(find_run_folders([runs[0].parent]))
    assert unreadable == {} and table.index.tolist() == ["b", "a"]
    assert table.columns.tolist() == ["learning_rate", "folds", "AUC [95 %]", "pf1_nested [95 %]", "seconds", "started"]
    assert table.learning_rate.tolist() == ["0.01", "0.001"] and table.seconds.tolist() == ["60", "60"]


def test_scores_are_those_of_the_tuned_run(runs):
    table, tuned = list_runs(runs)[0], tune(runs[:1])
    assert table.loc["a", ["AUC [95 %]", "pf1_nested [95 %]"]].tolist() == [str(tuned.auc), str(tuned.pf1_nested)]


@pytest.mark.parametrize(
    ("notes", "column", "shown"),
    [
        ({"versions": {"code": "fedcba987654"}}, "code", ["123456", "fedcba"]),
        ({"data_hash": "0123456789abcdef"}, "data", ["abcdef", "012345"]),
    ],
)
def test_other_code_and_other_data_are_differences(tmp_path, notes, column, shown):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", notes=notes)]
    assert list_runs(runs)[0][column].tolist() == shown


def test_weights_of_one_name_are_told_apart_by_their_folders(tmp_path):
    paths = [str(tmp_path / name / "weights.safetensors") for name in "ab"]
    models = [{"weights_path": path} for path in paths]
    runs = [make_run(tmp_path / name, model=model) for name, model in zip("ab", models, strict=True)]
    assert list_runs(runs)[0].weights_path.tolist() == paths


def test_folds_that_calls_may_choose_are_no_difference(tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", folds=(0,))]
    assert list_runs(runs)[0].columns[0] == "folds" and list_runs(runs)[0].folds.tolist() == ["2/2", "2/2"]


def test_unfinished_run_shows_its_epochs_and_no_score(tmp_path):
    run = make_run(tmp_path / "a", patch_epochs=5)
    for path in (run / "oof.csv", run / "fold1" / "oof.csv"):
        path.unlink()
    write_history(run / "fold1", 1)
    row = list_runs([run])[0].loc["a"]
    assert row.folds == "1/2, fold1 1/3 epochs" and row.seconds == "40" and row["AUC [95 %]"] == ""
    (run / "fold1" / "history.csv").unlink()
    write_history(run / "fold1" / "patches", 4)
    assert list_runs([run])[0].folds["a"] == "1/2, fold1 4/5 epochs of patches"


def test_one_fold_has_no_nested_estimate(tmp_path):
    run = make_run(tmp_path / "a")
    (run / "fold1" / "oof.csv").unlink()
    (run / "oof.csv").write_bytes((run / "fold0" / "oof.csv").read_bytes())
    row = list_runs([run])[0].loc["a"]
    assert row["AUC [95 %]"] != "" and row["pf1_nested [95 %]"] == ""


@pytest.mark.parametrize("name", ["config.json", "oof.csv", "fold0/history.csv"])
def test_unreadable_run_is_one_line_with_the_reason(runs, name):
    (runs[1] / name).write_bytes(b"\x80\n{")
    table, unreadable = list_runs(runs)
    assert table.index.tolist() == ["a"] and list(unreadable) == ["b"]
    assert str(runs[1] / name) in unreadable["b"] and "\n" not in unreadable["b"]


def test_only_unreadable_runs_make_an_empty_table(runs):
    for run in runs:
        (run / "config.json").write_text("{")
    table, unreadable = list_runs(runs)
    assert table.empty and list(unreadable) == ["a", "b"]


def test_folder_that_is_missing_is_refused(tmp_path):
    with pytest.raises(KitError, match="absent does not exist"):
        find_run_folders([tmp_path / "absent"])


def test_command_prints_the_table_and_the_broken_run(runs, tmp_path):
    make_run(tmp_path / "c")
    (tmp_path / "c" / "config.json").write_text("[]")
    command = [sys.executable, "-m", "utils.runs", str(tmp_path)]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300).stdout
    assert "learning_rate" in printed and "pf1_nested" in printed and "c can't be listed. " in printed
    assert "Warning: trained with code other than today's (commit " in printed


def test_runs_of_todays_code_or_of_none_that_is_known_do_not_warn(runs, capsys):
    for run, versions in zip(runs, (code_versions(), {}), strict=True):
        write_json(run / "config.json", read_json(run / "config.json") | {"versions": versions})
    warn_of_other_code(runs)
    assert capsys.readouterr().out == ""


def test_runs_of_other_code_are_named_with_their_commits(runs, capsys):
    write_json(runs[0] / "config.json", read_json(runs[0] / "config.json") | {"versions": code_versions()})
    warn_of_other_code(runs)
    said = capsys.readouterr().out
    assert said.startswith("Warning: trained with code other") and ": b (commit 1a2b3c). " in said
