"""Facts about the rehearsal, short of a whole one, which is ``make rehearse``."""

import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from tests.helpers import make_config, write_tuned
from utils.core.errors import KitError
from utils.core.files import write_json
from utils.core.folders import KAGGLE_INPUT
from utils.images.settings import CacheSettings
from utils.phantom.hidden_test import HiddenTest
from utils.rehearsal import rehearse as rehearsal
from utils.rehearsal import stage as rehearsal_stage
from utils.rehearsal.projection import Hardware
from utils.rehearsal.rehearse import Report, describe, list_files, papermill_command, text_of
from utils.rehearsal.stage import (
    FACTS,
    FACTS_CELL,
    Options,
    Stage,
    choose_runs,
    lacking_packages,
    mount_dataset,
)
from utils.rehearsal.world import TIMED_OUT, KagglePython, Seen
from utils.runs import found as found_runs
from utils.runs.oof import PredictionError

UNREADABLE = ("2_R", "1_L")
CLOSED = {"the host's own server": "ECONNREFUSED", "writing into the input": "EROFS"}
STAGES = {"start": {"seconds": 5.0}, "decode": {"images": 4, "seconds": 0.4}, "predict": {"images": 4, "seconds": 0.1}}


@pytest.fixture
def stage(tmp_path) -> Stage:
    """What a rehearsal that went well leaves."""
    hidden = HiddenTest(tmp_path / "input" / "hidden", UNREADABLE, "1_R", images=4)
    made = Stage(tmp_path, hidden, KagglePython(tmp_path / "python", "3.12", ()), [write_run(tmp_path / "cnn")])
    hidden.folder.mkdir(parents=True)
    table = pd.DataFrame({"prediction_id": ["1_L", "1_R", "2_L", "2_R"], "cancer": 0.02})
    table.to_csv(hidden.folder / "sample_submission.csv", index=False)
    made.results.mkdir()
    table.to_csv(made.results / "submission.csv", index=False)
    write_json(made.results / "submissions" / "1.json", {"unpredicted": ["1_L", "2_R"], "stages": STAGES})
    write_facts(made, KAGGLE_INPUT / "kit/utils/__init__.py", made.python.executable)
    return made


def write_run(folder: Path, height: int = 96) -> Path:
    write_json(folder / "config.json", make_config(CacheSettings(height, 72)).to_json())
    (folder / "oof.csv").write_text("prediction_id\n")
    return folder


def write_facts(stage: Stage, utils: Path, python: Path) -> None:
    text = FACTS + json.dumps({"utils": str(utils), "python": str(python)}) + "\n"
    output = nbformat.v4.new_output("stream", text=text)
    cell = nbformat.v4.new_code_cell(FACTS_CELL, outputs=[output])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), stage.results / "submit.ipynb")


def report_of(stage: Stage, full_sized: float | None = None, **seen) -> Report:
    found = Seen(0, seconds=20.0, peaks={"memory": 2e9, "working": 3e6, "tmp": 0}, proofs=CLOSED)
    return describe(Options(patients=2), stage, replace(found, **seen), full_sized)


def test_a_rehearsal_that_went_well_has_no_problem(stage):
    report = report_of(stage)
    assert report.problems == []
    assert report.seconds_per_image == {"decode": 0.1, "predict": 0.025}
    assert sorted(report.unpredicted) == sorted(UNREADABLE)


def test_hours_are_those_of_the_whole_hidden_test(stage, monkeypatch):
    monkeypatch.setattr(rehearsal.torch.cuda, "is_available", lambda: False)
    hours = report_of(stage).hours
    assert hours["decode"] == pytest.approx(3_700 / 3600)
    assert hours["total"] == pytest.approx((5 + 37_000 * 0.125) / 3600)


def test_a_gpu_predicts_while_others_are_decoded(stage, monkeypatch):
    monkeypatch.setattr(rehearsal.torch.cuda, "is_available", lambda: True)
    assert report_of(stage).hours["total"] == pytest.approx((5 + 3_700) / 3600)


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(rehearsal.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(rehearsal, "describe_hardware", lambda: Hardware(2, "0.0", "some", "none"))


def test_files_of_the_real_sizes_count_where_they_take_longer(stage, two_cores):
    report = report_of(stage, full_sized=7_200.0)
    assert report.decode_hours == pytest.approx({"the phantom's files": 3_700 / 3600, "files of the real sizes": 2.0})
    assert report.hours["total"] == pytest.approx((5 + 7_200 + 925) / 3600)
    assert "with the decoding time of files of the real sizes" in text_of(report)
    assert "at the image size 96 x 72 of" in text_of(report)


def test_the_phantoms_files_count_where_they_take_longer(stage, two_cores):
    report = report_of(stage, full_sized=1_800.0)
    assert report.hours["decode"] == pytest.approx(3_700 / 3600)
    assert "with the decoding time of the phantom's files" in text_of(report)


def test_the_verdict_is_of_files_of_the_real_sizes(stage, two_cores):
    assert "more than Kaggle's 9" in problem_of(stage, full_sized=10 * 3600.0)


def test_each_picture_size_is_decoded_anew(stage, two_cores, tmp_path):
    stage.runs += [write_run(tmp_path / "large", 1024), write_run(tmp_path / "again")]
    report = report_of(stage, full_sized=7_200.0)
    assert report.picture_sizes == ["1024 x 72", "96 x 72"]
    assert report.hours["decode"] == pytest.approx(4.0)


def problem_of(stage: Stage, **seen) -> str:
    (problem,) = report_of(stage, **seen).problems
    return problem


def test_more_than_nine_hours_are_a_problem(stage):
    slow = STAGES | {"decode": {"images": 4, "seconds": 4.0}}
    write_json(stage.results / "submissions" / "1.json", {"unpredicted": ["1_L", "2_R"], "stages": slow})
    assert "10.5 hours, more than Kaggle's 9" in problem_of(stage)


def test_a_readable_breast_with_the_prior_is_a_problem(stage):
    write_json(stage.results / "submissions" / "1.json", {"unpredicted": ["1_L", "2_L", "2_R"], "stages": STAGES})
    assert problem_of(stage).startswith("Readable breasts got the prior: ['2_L']; unreadable ones got a prediction: none")


def test_an_unreadable_breast_with_a_prediction_is_a_problem(stage):
    write_json(stage.results / "submissions" / "1.json", {"unpredicted": ["1_L"], "stages": STAGES})
    assert "unreadable ones got a prediction: ['2_R']" in problem_of(stage)


def test_an_invalid_submission_is_a_problem(stage):
    pd.DataFrame({"prediction_id": ["1_L"], "cancer": 0.02}).to_csv(stage.results / "submission.csv", index=False)
    assert "3 missing" in problem_of(stage)


def test_no_submission_is_a_problem(stage):
    (stage.results / "submission.csv").unlink()
    assert problem_of(stage) == "There is no submission.csv."


def test_a_draft_without_provenance_is_a_problem(stage):
    (stage.results / "submissions" / "1.json").unlink()
    assert "submission.csv is a draft" in problem_of(stage)
    assert "nothing is projected" in text_of(report_of(stage))


def test_a_failed_or_stopped_notebook_is_a_problem(stage):
    assert "submit.ipynb failed" in problem_of(stage, exit_status=1)
    assert "exceeded its time" in problem_of(stage, exit_status=TIMED_OUT)


def test_a_world_that_is_not_closed_is_a_problem(stage):
    assert "an address outside was reachable" in problem_of(stage, proofs=CLOSED | {"an address outside": ""})


def test_code_or_python_from_elsewhere_is_a_problem(stage):
    write_facts(stage, Path("/home/me/kit/utils/__init__.py"), stage.python.executable)
    assert "not from the attached dataset" in problem_of(stage)
    write_facts(stage, KAGGLE_INPUT / "kit/utils/__init__.py", Path(sys.executable))
    assert "not the world's Python" in problem_of(stage)


def test_the_text_says_hardware_stages_prior_and_verdict(stage):
    report = report_of(stage, full_sized=5_400.0)
    text = text_of(report)
    for part in (
        "4 images of 2 patients",
        "decode",
        "2.00 GB",
        "3.0 MB in /kaggle/working",
        "to 1024 x 512 in 1.50 hours",
        "2 breasts got the prior as expected, because they were made unreadable (1_L 2_R).",
    ):
        assert part in text
    assert text.endswith("The rehearsal succeeded.")
    assert text_of(replace(report, problems=["It broke."])).endswith("PROBLEM: It broke.")
    assert "NOT ISOLATED" in text_of(replace(report, isolated=False))
    assert "as expected" not in text_of(replace(report, unpredicted=["1_L"]))


def test_what_is_saved_is_named_with_its_folder(tmp_path):
    write_json(tmp_path / "rehearsal.json", {})
    (tmp_path / "submission.csv").touch()
    assert rehearsal._saved_text(tmp_path).startswith(f"In {tmp_path}: submission.csv, rehearsal.json (")


# Which runs
# ----------


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working folder and a demo without anything."""
    monkeypatch.setattr(rehearsal_stage, "working_dir", lambda: tmp_path)
    monkeypatch.setattr(rehearsal_stage, "DEMO", tmp_path / "demo")
    monkeypatch.setattr(found_runs, "runs_dir", lambda: tmp_path / "runs")
    return tmp_path


def test_the_runs_of_the_working_folders_threshold_come_first(home, capsys):
    runs = [write_run(home / "runs" / name) for name in "ab"]
    tuned = write_tuned(home / "threshold.json", runs[1])
    write_run(home / "demo" / "runs" / "cnn")
    assert choose_runs(Options()) == ([runs[1]], tuned)
    said = capsys.readouterr().out
    assert said.startswith(f"Rehearsing b (the tuned ones) with {tuned}; choose others with make rehearse")
    assert len(said.splitlines()) == 1


def test_a_threshold_whose_runs_are_gone_gives_way_to_all_runs(home):
    run = write_run(home / "runs" / "a")
    write_tuned(home / "threshold.json", run, home / "runs" / "gone")
    assert choose_runs(Options()) == ([run], None)


def test_the_demos_runs_are_taken_where_there_are_no_others(home):
    run = write_run(home / "demo" / "runs" / "cnn")
    assert choose_runs(Options()) == ([run], None)
    tuned = write_tuned(home / "demo" / "threshold.json", run)
    assert choose_runs(Options()) == ([run], tuned)


def test_where_there_is_no_run_a_small_one_is_announced(home, capsys):
    assert choose_runs(Options()) == ([], None)
    assert "Rehearsing a small run" in capsys.readouterr().out


def test_a_named_threshold_brings_its_runs_and_named_runs_are_tuned(home):
    mine, other = write_run(home / "mine"), write_run(home / "runs" / "other")
    tuned = write_tuned(home / "mine.json", mine)
    assert choose_runs(Options(threshold=tuned)) == ([mine], tuned)
    assert choose_runs(Options(runs=(other,))) == ([other], None)
    assert choose_runs(Options(runs=(other,), threshold=tuned)) == ([other], tuned)  # the bundle refuses them


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"runs": (Path("nowhere"),)}, "nowhere does not exist"),
        ({"threshold": Path("nope.json")}, "--threshold nope.json does not exist"),
        ({"python": Path("/nope")}, "/nope does not run"),
    ],
)
def test_what_is_not_there_is_refused_before_the_phantom_is_made(home, monkeypatch, named, message):
    write_run(home / "runs" / "a")
    monkeypatch.setattr(rehearsal_stage, "make_hidden_test", lambda *_: pytest.fail("The phantom was made."))
    with pytest.raises(KitError, match=message):
        rehearsal_stage.set_up(Options(**named), home / "world")


def test_a_file_that_is_no_threshold_is_refused(home):
    (home / "x.json").write_text("[]")
    with pytest.raises(PredictionError, match=r"x.json: it contains \[\], but must contain an object"):
        choose_runs(Options(threshold=home / "x.json"))


def test_datasets_are_mounted_by_slug_with_archives_unpacked(tmp_path):
    dataset = tmp_path / "code"
    write_json(dataset / "dataset-metadata.json", {"id": "someone/kit-code"})
    (dataset / "wheel.whl").write_text("wheel")
    with zipfile.ZipFile(dataset / "kit-1.zip", "w") as archive:
        archive.writestr("utils/core/folders.py", "")
    mount_dataset(dataset, tmp_path / "input")
    found = {str(path.relative_to(tmp_path / "input")) for path in (tmp_path / "input").rglob("*") if path.is_file()}
    assert found == {"kit-code/wheel.whl", "kit-code/kit-1/utils/core/folders.py"}


def test_lacking_is_what_kaggles_image_has_not_and_what_the_wheels_bring():
    found = lacking_packages(["Some_Need-1.0-py3-none-any.whl"])
    assert {"imagecodecs", "pebble", "dicomsdl", "some-need"} <= found
    assert not {"torch", "numpy", "pandas", "papermill", "pydicom"} & found


def test_a_changed_a_new_and_a_lost_file_are_seen(tmp_path):
    (tmp_path / "a").write_text("1")
    before = list_files(tmp_path)
    assert list_files(tmp_path) == before
    (tmp_path / "b").write_text("")
    assert list_files(tmp_path) != before
    (tmp_path / "b").unlink()
    (tmp_path / "a").write_text("12")
    assert list_files(tmp_path)["a"] != before["a"]


def test_the_time_budget_reaches_the_notebook(stage):
    stage.parameters += rehearsal_stage._parameters(Options(time_budget_hours=0.5))
    command = papermill_command(stage)
    place = command.index("time_budget_hours")
    assert command[place - 1 : place + 2] == ["-p", "time_budget_hours", "0.5"]
    assert command[0] == str(stage.python.executable)
    assert rehearsal_stage._parameters(Options()) == []


def test_the_notebook_gets_one_cell_more(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
    nbformat.write(notebook, tmp_path / "a.ipynb")
    rehearsal_stage._write_notebook(tmp_path / "a.ipynb", tmp_path / "b.ipynb")
    cells = nbformat.read(tmp_path / "b.ipynb", as_version=4).cells
    assert [cell.source for cell in cells] == ["1 + 1", FACTS_CELL]


def test_a_relative_python_keeps_its_links(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rehearsal", "--python", ".venv/bin/python", "--runs", "a,b", "--unisolated"])
    given = rehearsal._options()
    assert given.python == Path.cwd() / ".venv/bin/python"
    assert given.runs == (Path("a"), Path("b")) and not given.isolated
