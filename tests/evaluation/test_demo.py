import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from tests.runs.test_oof import write_oof
from utils.core.folders import PROJECT
from utils.decision.tuning import tune
from utils.evaluation.demo import HiddenLabels, demo_table, read_submission
from utils.phantom.competition import read_truth


def test_table_has_a_row_per_architecture_and_scores_each_on_the_hidden_labels(competition, tmp_path):
    runs = [write_oof(tmp_path / "cnn"), write_oof(tmp_path / "resnet50", shift=0.1)]
    for run in runs:
        pd.DataFrame({"fold": 0, "epoch": [0, 1], "seconds": [1.4, 2.0]}).to_csv(run / "history.csv", index=False)
    _, labels = read_truth(competition)
    labels.to_csv(tmp_path / "submission.csv", index=False)
    wrong = labels.assign(probability=1 - labels.cancer)[["prediction_id", "probability"]]
    wrong.iloc[::-1].to_csv(tmp_path / "probabilities.csv", index=False)
    right = labels.set_index("prediction_id").cancer.astype(float)
    by_run = pd.DataFrame({"cnn": right, "resnet50": 1 - right})
    table = demo_table(runs, read_submission(tmp_path / "submission.csv"), by_run, HiddenLabels(competition))
    assert table.index.tolist() == ["cnn", "resnet50", "average"]
    assert table.seconds.tolist() == ["3", "3", "7"]
    assert table["test AUC [95 %]"].str[:5].tolist() == ["1.000", "0.000", "0.000"]
    assert table["test pF1"].tolist() == ["", "", "1.000"]
    assert np.isin(["AUC [95 %]", "pF1 tuned", "pF1 nested [95 %]"], table.columns).all()
    tuned = tune(runs)
    assert table.loc["average", "AUC [95 %]"] == str(tuned.auc)
    assert table.loc["average", "pF1 nested [95 %]"] == str(tuned.pf1_nested)
    assert table.loc["cnn", "pF1 tuned"] == f"{tune(runs[:1]).pf1:.3f}"


@pytest.fixture
def make_demo(tmp_path):
    """Run ``make demo`` in a copy of the Makefile, with commands that do nothing in place of Python and papermill."""
    for name in ("Makefile", "requirements.txt", "constraints.txt"):
        shutil.copy(PROJECT / name, tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("python", "papermill"):
        (tmp_path / ".venv" / "bin" / name).symlink_to("/bin/true")
    (tmp_path / ".venv" / ".ready").touch()
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "thesis.txt").write_text("precious")

    def run(folder):
        return subprocess.run(["make", "demo", f"DEMO={folder}"], cwd=tmp_path, capture_output=True, text=True)

    return run


@pytest.mark.parametrize("folder", ["my", "my/thesis.txt", ".", "", "./my/", ".."])
def test_make_demo_deletes_nothing_that_it_did_not_make(make_demo, tmp_path, folder):
    done = make_demo(folder)
    assert done.returncode and "DEMO" in done.stdout
    assert (tmp_path / "my" / "thesis.txt").read_text() == "precious" and (tmp_path / "Makefile").is_file()


@pytest.mark.parametrize("name", ["my demo", "it's", 'a "demo"', "one;two"])
def test_make_demo_takes_a_folder_with_an_odd_name_and_begins_again_there(make_demo, tmp_path, name):
    assert make_demo(name).returncode == 0
    (tmp_path / name / "old.csv").touch()
    assert make_demo(name).returncode == 0
    assert not (tmp_path / name / "old.csv").exists() and (tmp_path / "my" / "thesis.txt").is_file()


@pytest.mark.parametrize("name", ["a,b", "~/demo", "-x"])
def test_make_demo_refuses_names_that_its_commands_would_read_otherwise(make_demo, tmp_path, name):
    done = make_demo(name)
    assert done.returncode and "DEMO" in done.stdout and not (tmp_path / name).exists()


@pytest.mark.parametrize("target", ["demo", "nowhere"])
def test_make_demo_does_not_replace_a_link(make_demo, tmp_path, target):
    make_demo("demo")
    (tmp_path / "link").symlink_to(target)
    done = make_demo("link")
    assert done.returncode and "is a link" in done.stdout and (tmp_path / "link").is_symlink()
