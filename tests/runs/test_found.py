"""Facts about which runs are found."""

import shutil

import pytest

from utils.core import folders
from utils.core.errors import KitError
from utils.core.files import write_json
from utils.images import cache, inputs
from utils.phantom.competition import PARAMETERS_FILE
from utils.runs import found as found_runs
from utils.runs.errors import PredictionError
from utils.runs.found import find_runs, name_runs
from utils.training import example_run
from utils.training.example_run import find_or_train_runs, runs_to_submit


def make_run(run_dir):
    """A finished run, by the files that it has."""
    write_json(run_dir / "config.json", {"prevalence": 0.25})
    (run_dir / "oof.csv").write_text("")
    return run_dir


def test_runs_are_found_by_name_or_everywhere_but_not_those_for_show(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "working_dir", lambda: tmp_path)
    monkeypatch.setattr(found_runs, "KAGGLE_INPUT", tmp_path / "input")
    for kind in ("kit/outputs/demo/runs", "kit/outputs/runs-phantom", "competition/train_images"):
        make_run(tmp_path / "input" / kind / "c")
    assert find_runs() == []
    runs = [make_run(tmp_path / "runs" / name) for name in ("a", "b")]
    assert find_runs() == runs
    assert find_runs(f"{runs[1]}, {runs[0]}") == runs[::-1] and find_runs([str(runs[0])]) == runs[:1]
    assert find_runs(f"{runs[0]},") == runs[:1]
    (tmp_path / "begun").mkdir()
    with pytest.raises(PredictionError, match="begun contains no finished run"):
        find_runs(str(tmp_path / "begun"))
    with pytest.raises(KitError, match="run_dirs .*absent does not exist"):
        find_runs(str(tmp_path / "absent"))


def test_a_smoke_test_is_found_by_its_name_alone_wherever_it_lies(tmp_path, monkeypatch):
    monkeypatch.setattr(found_runs, "runs_dir", lambda *_, **__: tmp_path / "runs")
    monkeypatch.setattr(found_runs, "KAGGLE_INPUT", tmp_path / "input")
    real, broken = make_run(tmp_path / "runs" / "real"), make_run(tmp_path / "runs" / "broken")
    (broken / "config.json").write_text("{")  # its reader tells
    for name in ("runs/cnn", "input/weights"):
        smoke = make_run(tmp_path / name)
        write_json(smoke / "config.json", {"prevalence": 0.25, "smoke_test": True})
        assert find_runs() == [broken, real]
        assert find_runs(str(smoke)) == [smoke]


def test_runs_in_folders_of_one_name_are_told_apart(tmp_path):
    runs = [tmp_path / "a" / "cnn", tmp_path / "b" / "cnn", tmp_path / "rnn"]
    assert name_runs(runs) == {str(runs[0]): runs[0], str(runs[1]): runs[1], "rnn": runs[2]}


def test_without_data_or_runs_an_example_is_trained_once_on_the_phantom(tmp_path, monkeypatch, capsys):
    for module in (folders, inputs, cache):
        monkeypatch.setattr(module, "working_dir", lambda: tmp_path)
    monkeypatch.setattr(folders, "find_competition", lambda: None)
    monkeypatch.setattr(found_runs, "KAGGLE_INPUT", tmp_path / "input")
    runs = find_or_train_runs("", smoke_test=True)
    assert runs == [tmp_path / "runs-smoke" / "cnn-example"]
    assert "No finished run found" in capsys.readouterr().out
    assert find_or_train_runs("", smoke_test=True) == runs
    assert "No finished run found" not in capsys.readouterr().out


def test_with_data_but_without_runs_the_next_step_is_named(tmp_path, monkeypatch, competition):
    monkeypatch.setattr(folders, "working_dir", lambda: tmp_path)
    monkeypatch.setattr(found_runs, "KAGGLE_INPUT", tmp_path / "input")
    real = shutil.copytree(competition, tmp_path / "real", ignore=shutil.ignore_patterns("*_images", PARAMETERS_FILE))
    with pytest.raises(PredictionError, match="No finished run under .*runs: run train.ipynb first"):
        find_or_train_runs("", competition_dir=real)
    monkeypatch.setattr(folders, "find_competition", lambda: real)
    with pytest.raises(PredictionError, match="No finished run under .*runs: run train.ipynb first"):
        find_or_train_runs("")


def test_without_runs_tuning_stops_with_the_remedy_where_it_may_not_train(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "working_dir", lambda: tmp_path)
    monkeypatch.setattr(folders, "find_competition", lambda: None)
    monkeypatch.setattr(found_runs, "KAGGLE_INPUT", tmp_path / "input")
    with pytest.raises(PredictionError, match="No finished run under .*runs: run train.ipynb first, or set run_dirs"):
        find_or_train_runs("", may_train=False)


def test_runs_of_other_code_warn_before_they_are_tuned_or_submitted(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "runs" / "cnn")
    write_json(run / "config.json", {"prevalence": 0.25, "versions": {"code": "0", "commit": "1a2b3c"}})
    monkeypatch.setattr(example_run, "tuned_runs", lambda *_: [run])
    assert find_or_train_runs(str(run)) == runs_to_submit() == runs_to_submit(str(run)) == [run]
    assert capsys.readouterr().out.count("Warning: trained with code other than today's") == 3
