"""Facts about sending to Kaggle: Kaggle's own client against a stand-in for its API, from the bundle to the score."""

import base64
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.helpers import write_tuned
from tests.kaggle.stand_in import CLOSED, KEY, TOKEN, USERNAME, fresh_client, serving
from tests.kaggle.test_bundle import make_run
from utils.core.files import write_json
from utils.core.folders import COMPETITION, PROJECT
from utils.kaggle import client as kaggle_client
from utils.kaggle import commands as kaggle
from utils.kaggle import ledger
from utils.kaggle.pretrained import Pretrained

KERNEL, DATASET = f"{USERNAME}/mammography-kit-submit", f"{USERNAME}/mammography-kit-code"
WEIGHTS = f"{USERNAME}/mammography-weights-cnn"
CSV = b"prediction_id,cancer\n1_L,0\n"
PROVENANCE = {"runs": ["/runs/cnn"], "tuned": {"pf1_nested": {"value": 0.5, "low": 0.4, "high": 0.6}}}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A stand-in for Kaggle, and this process as a stranger's laptop that reaches nothing else."""
    for name in [name for name in os.environ if name.startswith(("KAGGLE_", "XDG_"))]:
        monkeypatch.delenv(name)
    (tmp_path / ".kaggle").mkdir()
    monkeypatch.setattr(kaggle_client, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ledger, "submissions_dir", lambda: tmp_path / "submissions")
    with serving() as server, fresh_client():
        for name, value in server.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
        server.outputs = {
            "submission.csv": CSV,
            "cache/picture.png": b"not fetched",
            "submissions/20261122-cnn.csv": CSV,
            "submissions/20261122-cnn.json": json.dumps(PROVENANCE).encode(),
            "submissions/20261122-cnn_probabilities.csv": b"prediction_id,probability\n1_L,0.1\n",
        }
        yield server


@pytest.fixture
def bundle(tmp_path):
    """What `utils.kaggle.bundle` writes, as small as it may be."""
    folder = tmp_path / "bundle"
    write_part(folder / "datasets" / "code", DATASET, "dataset", {"licenses": [{"name": "other"}]})
    (folder / "datasets" / "code" / "kit.txt").write_text("code")
    (folder / "datasets" / "code" / "fold0").mkdir()
    (folder / "datasets" / "code" / "fold0" / "oof.csv").write_text("inside a folder")
    write_part(folder / "datasets" / "weights-cnn", WEIGHTS, "dataset", {"licenses": [{"name": "other"}]})
    (folder / "datasets" / "weights-cnn" / "note.txt").write_text("as if a run lay here")
    for name in ("submit", "train"):
        metadata = {"code_file": f"{name}.ipynb", "language": "python", "kernel_type": "notebook", "machine_shape": ""}
        metadata |= {"enable_gpu": True, "enable_internet": False, "is_private": True}
        metadata |= {"dataset_sources": [DATASET], "competition_sources": [COMPETITION], "kernel_sources": []}
        write_part(folder / "kernels" / name, f"{USERNAME}/mammography-kit-{name}", "kernel", metadata)
        write_json(folder / "kernels" / name / f"{name}.ipynb", {"cells": [], "metadata": {"kernelspec": {"name": "python3"}}})
    return folder


def write_part(folder, name, kind, metadata):
    title = name.split("/")[1].replace("-", " ").capitalize()
    write_json(
        folder / f"{kind}-metadata.json", {"id": name, "title": title, "subtitle": "What the notebooks compute with"} | metadata
    )


def run(*arguments, answer=""):
    """Exit status and all that was printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO(answer))
        status = kaggle.main([str(argument) for argument in arguments])
    return status, printed.getvalue()


def submit(bundle, *arguments):
    return run("submit", KERNEL, "--version", 1, "--bundle", bundle, *arguments)


def test_push_creates_the_dataset_with_its_folders_and_runs_the_submit_kernel_alone(server, bundle):
    server.dataset_states = ["BLOBS_RECEIVED", "BLOBS_DECOMPRESSED", "READY"]
    status, printed = run("push", "--bundle", bundle)
    assert status == 0, printed
    (files,) = server.datasets["mammography-kit-code"]
    assert len(files) == 2 and b"code" in files and any(file.startswith(b"PK") for file in files)
    assert server.bodies("CreateDataset")[0]["isPrivate"] is True
    assert list(server.kernels) == [KERNEL]
    saved = server.kernels[KERNEL][0]
    assert (saved["enableGpu"], saved["datasetDataSources"], saved["competitionDataSources"]) == (
        True,
        [DATASET],
        [COMPETITION],
    )
    assert saved["enableInternet"] is False
    states = ["blobs_received, version 1", "blobs_decompressed, version 1", "ready, version 1"]
    assert [state for state in states if state in printed] == states
    assert server.names().index("SaveKernel") > max(i for i, name in enumerate(server.names()) if name == "GetDatasetStatus")


def test_push_again_makes_a_version_and_waits_for_that_one(server, bundle, monkeypatch):
    run("push", "code", "submit", "--bundle", bundle)
    late = iter([1, 1, 1, 2])  # the version before stays the ready one for a while
    monkeypatch.setattr(type(server), "GetDataset", lambda *_: {"currentVersionNumber": next(late)})
    status, printed = run("push", "code", "submit", "--bundle", bundle)
    assert status == 0, printed
    assert len(server.datasets["mammography-kit-code"]) == 2 and len(server.bodies("CreateDataset")) == 1
    assert next(late, "all asked") == "all asked"
    assert kaggle.read_pushed(bundle) == {KERNEL: 2}


def test_push_takes_the_named_parts_alone_and_refuses_others(server, bundle):
    assert run("push", "train", "--bundle", bundle)[0] == 0
    assert list(server.kernels) == [f"{USERNAME}/mammography-kit-train"] and not server.datasets
    status, printed = run("push", "tarin", "--bundle", bundle)
    assert status == 1 and "has no tarin; choose from code, weights-cnn, submit, train" in printed


def test_bundle_that_kaggle_would_refuse_is_not_sent(server, bundle):
    write_part(bundle / "datasets" / "code", f"{USERNAME}/Not a slug", "dataset", {})
    (bundle / "kernels" / "train" / "access_token").touch()
    status, printed = run("push", "--bundle", bundle)
    assert status == 1 and "must be USERNAME/SLUG" in printed and "may be a credential" in printed and not server.calls


def test_file_that_can_not_be_uploaded_ends_the_push_and_the_next_starts_anew(server, bundle):
    server.refusals = {"PUT": 403}
    status, printed = run("push", "code", "--bundle", bundle)
    assert status == 1 and "could not be uploaded" in printed and not server.datasets
    server.refusals = {}
    assert run("push", "code", "--bundle", bundle)[0] == 0
    assert len(server.datasets["mammography-kit-code"][0]) == 2


def test_dataset_that_kaggle_can_not_unpack_is_an_error(server, bundle):
    server.dataset_states = ["BLOBS_RECEIVED", "FAILED"]
    status, printed = run("push", "--bundle", bundle)
    assert status == 1 and "could not unpack" in printed and not server.kernels


def test_kernel_saved_without_a_source_is_an_error_and_its_version_is_not_submitted(server, bundle):
    server.invalid_sources = {"invalidDatasetSources": [DATASET], "invalidCompetitionSources": [COMPETITION]}
    status, printed = run("push", "submit", "--bundle", bundle)
    assert status == 1 and f"- {DATASET}: push it.\n- {COMPETITION}: accept the competition's rules" in printed
    server.invalid_sources = {"invalidKernelSources": [KERNEL]}
    status, printed = run("push", "submit", "--bundle", bundle)
    assert f"- {KERNEL}: push it, and wait until it is complete." in printed and "rules" not in printed
    assert kaggle.read_pushed(bundle) == {}


def test_wait_prints_each_change_once_and_ends_when_complete(server, bundle):
    server.kernel_states = ["QUEUED", "QUEUED", "RUNNING", "RUNNING", "COMPLETE"]
    status, printed = run("wait", "--bundle", bundle)
    assert status == 0 and [printed.count(f": {state}\n") for state in ("queued", "running", "complete")] == [1, 1, 1]


@pytest.mark.parametrize("form", ["json", "text"])
def test_wait_shows_the_end_of_a_failed_kernels_log_without_secrets(server, form):
    server.kernel_states = ["RUNNING", "ERROR"]
    lines = [f"line {number}\n" for number in range(100)] + [f"token {TOKEN}\n"]
    server.log = json.dumps([{"stream_name": "stdout", "time": 1, "data": line} for line in lines])
    server.log = server.log if form == "json" else "".join(lines)
    status, printed = run("wait", KERNEL)
    assert status == 1 and "ended as error. It ran out of memory." in printed
    assert "line 99\ntoken [secret]\n" in printed and "line 50\n" not in printed


def test_wait_bears_a_short_silence_of_kaggle_but_not_a_long_one(server, monkeypatch):
    answers = iter([503, 503, {"status": "COMPLETE"}])
    monkeypatch.setattr(type(server), "GetKernelSessionStatus", lambda *_: next(answers))
    assert run("wait", KERNEL)[0] == 0
    server.refusals = {"GetKernelSessionStatus": 503}
    status, printed = run("wait", KERNEL)
    assert status == 1 and "Kaggle does not answer" in printed


def test_wait_ends_after_its_time(server, monkeypatch):
    monkeypatch.setattr(kaggle_client, "KERNEL_HOURS", 1e-6)
    server.kernel_states = ["RUNNING"]
    status, printed = run("wait", KERNEL)
    assert status == 1 and "still 'running'" in printed


def test_pushed_version_is_submitted_and_recorded_with_its_provenance(server, bundle):
    run("push", "submit", "--bundle", bundle)
    run("push", "submit", "--bundle", bundle)
    status, printed = run("submit", "--bundle", bundle, "--message", "mine", "--yes")
    assert status == 0, printed
    (sent,) = server.bodies("CreateCodeSubmission")
    expected = {"competitionName": COMPETITION, "kernelOwner": USERNAME, "kernelSlug": "mammography-kit-submit"}
    assert sent == expected | {"kernelVersion": 2, "fileName": "submission.csv", "submissionDescription": "mine"}
    row = ledger.read_ledger().iloc[0]
    assert (row.ref, row.kernel, row.version, row.file) == ("1000", KERNEL, "2", "20261122-cnn.csv")
    assert (row.runs, row.pf1_nested, row.message) == ("cnn", 0.5, "mine")
    assert sorted(path.name for path in ledger.submissions_dir().glob("2*")) == ["20261122-cnn.csv", "20261122-cnn.json"]


@pytest.mark.parametrize(
    ("state", "told"),
    [("RUNNING", f"is running: nothing.*wait {KERNEL}"), ("ERROR", "ended as error: nothing was submitted. It ran out")],
)
def test_kernel_that_runs_or_has_failed_is_not_submitted(server, bundle, state, told):
    server.kernel_states = [state]
    status, printed = submit(bundle, "--yes")
    assert status == 1 and re.search(told, printed) and not server.submissions


def test_version_that_is_not_the_latest_is_submitted_only_where_it_is_named(server, bundle):
    run("push", "submit", "--bundle", bundle)
    server.kernels[KERNEL].append("saved on Kaggle's website")
    status, printed = run("submit", "--bundle", bundle, "--yes")
    assert status == 1 and f"The latest version of {KERNEL} is 2, not 1" in printed and not server.submissions
    for version in (1, 2):
        status, printed = run("submit", "--bundle", bundle, "--yes", "--version", version)
        assert status == 0 and ("Warning: The latest version" in printed) == (version == 1)
    assert [sent["kernelVersion"] for sent in server.bodies("CreateCodeSubmission")] == [1, 2]


def test_bundle_without_runs_is_not_pushed_as_a_whole(server, bundle):
    shutil.rmtree(bundle / "datasets" / "weights-cnn")
    for dry in ([], ["--dry-run"]):
        status, printed = run("push", "--bundle", bundle, *dry)
        assert status == 1 and "No run in the bundle" in printed and not server.calls
        assert f"Next: python -m utils.kaggle push code --bundle {bundle}" in printed and "--runs outputs/runs/NAME" in printed
    assert run("push", "code", "train", "--bundle", bundle)[0] == 0


def test_bundle_of_another_account_is_not_pushed(server, bundle):
    path = bundle / "kernels" / "submit" / "kernel-metadata.json"
    write_json(path, json.loads(path.read_text()) | {"id": "another/mammography-kit-submit"})
    status, printed = run("push", "submit", "--bundle", bundle)
    assert status == 1 and f'BUNDLE="--username {USERNAME}"' in printed and not server.kernels


def test_each_step_names_the_next(server, bundle):
    printed = run("push", "code", "train", "--bundle", bundle)[1]
    assert f"Next: python -m utils.kaggle wait {USERNAME}/mammography-kit-train --bundle {bundle}\n" in printed
    assert "push a notebook" in run("push", "code", "--bundle", bundle)[1]
    follows = {
        "train": "push tune_threshold",
        "train-convnext": "push tune_threshold",
        "tune-threshold": "push submit",
        "submit": "submit",
    }
    for name, step in follows.items():
        printed = run("wait", f"{USERNAME}/mammography-kit-{name}", "--bundle", bundle)[1]
        assert f"python -m utils.kaggle {step} --bundle {bundle}\n" in printed


def test_push_says_what_it_uploads_without_the_clients_progress(server, bundle):
    printed = run("push", "code", "--bundle", bundle)[1]
    assert f"Uploading dataset {DATASET} (0.0 MB)." in printed
    assert "Starting upload" not in printed and "%|" not in printed


def test_phantom_runs_are_warned_of_when_they_are_pushed(server, bundle, monkeypatch):
    monkeypatch.setattr(kaggle, "phantom_runs", lambda folder: ["cnn"])
    printed = run("push", "--bundle", bundle)[1]
    assert "refuse real images: cnn." in printed and "can't score" in printed


def test_kernel_without_provenance_is_submitted_with_a_warning(server, bundle):
    server.outputs = {"submission.csv": CSV}
    status, printed = submit(bundle, "--yes")
    assert status == 0 and "no provenance" in printed
    assert ledger.read_ledger().file.tolist() == ["mammography-kit-submit-v1.csv"]


def test_nothing_is_submitted_without_a_yes(server, bundle):
    for answer in ("", "no\n", "maybe\n"):
        status, printed = run("submit", KERNEL, "--version", 1, answer=answer)
        assert status == 1 and "costs one of the day's five" in printed and "Nothing was submitted" in printed
    assert not server.submissions and ledger.read_ledger().empty
    assert run("submit", KERNEL, "--version", 1, answer="yes\n")[0] == 0
    assert len(server.submissions) == 1


def test_same_version_sent_again_is_warned_of(server, bundle):
    assert "Warning: This file" not in submit(bundle, "--yes")[1]
    run("scores", "--watch")
    assert "already submitted" in submit(bundle, "--yes")[1]


def test_what_is_no_submission_is_not_sent(server, bundle):
    server.outputs = {"submission.csv": b"<html>Not found</html>"}
    status, printed = submit(bundle, "--yes")
    assert status == 1 and "begins with '<html>" in printed
    server.outputs = {}
    status, printed = submit(bundle, "--yes")
    assert status == 1 and "There is no submission.csv: wait" in printed
    assert not server.submissions


def test_version_that_is_not_known_must_be_named(server, bundle):
    status, printed = run("submit", "--bundle", bundle)
    assert status == 1 and "--version" in printed and not server.calls


def test_scores_are_watched_until_they_are_there_and_written_down(server, bundle):
    submit(bundle, "--yes")
    server.submissions.append({"ref": 5, "status": "ERROR", "description": "by hand", "errorDescription": "Timed out"})
    status, printed = run("scores", "--watch")
    assert status == 0 and "2 on Kaggle, 1 of them not sent from here, 1 pending" in printed
    row = ledger.read_ledger().iloc[0]
    assert (row.public_score, row.private_score, row.status) == (0.61, 0.55, "complete")
    written = json.loads((ledger.submissions_dir() / "20261122-cnn.json").read_text())
    assert written["kaggle"][0]["private_score"] == 0.55 and written["runs"] == PROVENANCE["runs"]
    shown = run("ledger")[1]
    assert "0.500 [0.400, 0.600]" in shown and "0.61" in shown and "0.55" in shown


def test_failed_submissions_reason_is_recorded(server, bundle, monkeypatch):
    submit(bundle, "--yes")
    failed = {"submissions": [{"ref": 1000, "status": "ERROR", "errorDescription": "Notebook Timeout"}]}
    monkeypatch.setattr(type(server), "ListSubmissions", lambda *_: failed)
    assert run("scores", "--watch")[0] == 0
    assert ledger.read_ledger().status.tolist() == ["error: Notebook Timeout"]


REFUSALS = {
    401: "make a new token at https://www.kaggle.com/settings/api",
    403: f"competitions/{COMPETITION}/rules",
    404: "can't find it",
    429: "from 00:00 UTC on",
    500: "does not answer",
}


@pytest.mark.parametrize("status", REFUSALS)
def test_refusal_is_one_message_with_its_remedy(server, bundle, status):
    server.refusals = {"CreateCodeSubmission": status}
    code, printed = submit(bundle, "--yes")
    assert code == 1 and printed.count("UnansweredError" if status in (429, 500) else "KaggleError") == 1
    assert REFUSALS[status] in printed and "Traceback" not in printed and ledger.read_ledger().empty


def test_kernel_of_another_account_is_refused_with_the_clients_words_and_a_remedy(server):
    server.refusals = {"GetKernelSessionStatus": 403}
    status, printed = run("wait", KERNEL)
    assert status == 1 and "Cannot access kernel" in printed and "check the kernel's name" in printed
    assert "leaderboard" not in printed


def test_dataset_of_another_account_is_refused_with_a_remedy(server, bundle):
    server.refusals = {"CreateDataset": 403}
    status, printed = run("push", "--bundle", bundle)
    assert status == 1 and "username must be that of the credentials" in printed


def test_without_a_network_there_is_a_message(server, monkeypatch):
    monkeypatch.setenv("http_proxy", CLOSED)
    status, printed = run("wait", KERNEL)
    assert status == 1 and "Kaggle does not answer" in printed


def test_token_that_kaggle_does_not_take_is_told_though_a_key_is_there_too(server, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN[::-1])
    for with_key in (False, True):
        if with_key:
            monkeypatch.setenv("KAGGLE_USERNAME", USERNAME)
            monkeypatch.setenv("KAGGLE_KEY", KEY)
        status, printed = run("scores")
        assert status == 1 and "does not accept the token of KAGGLE_API_TOKEN: make a new one" in printed


def test_key_works_as_well_as_a_token(server, monkeypatch):
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    write_json(Path.home() / ".kaggle" / "kaggle.json", {"username": USERNAME, "key": KEY})
    (Path.home() / ".kaggle" / "kaggle.json").chmod(0o600)
    assert run("scores")[0] == 0
    server.refusals = {"ListSubmissions": 401}
    assert "check username and key, or make a new token" in run("scores")[1]


def test_client_that_is_not_installed_is_told(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaggle", None)
    status, printed = run("scores")
    assert status == 1 and "pip install 'kaggle" in printed


def test_dry_runs_send_nothing_and_print_commands_that_the_official_client_parses(server, bundle):
    commands = [
        ("push", "code", "submit", "--bundle", bundle),
        ("wait", KERNEL),
        ("submit", KERNEL, "--version", 3, "--message", "a 'quoted' message"),
        ("scores",),
    ]
    printed = [run(*command, "--dry-run") for command in commands]
    assert all(status == 0 for status, _ in printed) and not server.calls
    lines = [shlex.split(line, comments=True) for _, text in printed for line in text.splitlines()]
    assert [line[1:3] for line in lines] == [
        ["datasets", "create"],
        ["datasets", "version"],
        ["datasets", "status"],
        ["kernels", "push"],
        ["kernels", "status"],
        ["kernels", "logs"],
        ["kernels", "status"],
        ["kernels", "output"],
        ["competitions", "submit"],
        ["competitions", "submissions"],
    ]
    parsed = [parse_officially(line) for line in lines]
    assert parsed[1]["dir_mode"] == "zip" and parsed[1]["folder"] == str(bundle / "datasets" / "code")
    expected = {"kernel": KERNEL, "version": "3", "message": "a 'quoted' message", "competition": COMPETITION}
    assert parsed[8] | expected == parsed[8]


def test_dry_runs_of_a_fresh_bundle_work_before_anything_is_on_kaggle(server, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.kaggle.bundle.download_wheels", lambda *_: [])
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    out, cnn = tmp_path / "out", make_run(tmp_path / "cnn")
    threshold = write_tuned(tmp_path / "threshold.json", cnn)
    assert run("bundle", "--threshold", threshold, "--out", out, "--username", USERNAME)[0] == 0
    for command in (("push",), ("push", "code", "train"), ("wait",), ("submit",)):
        status, printed = run(*command, "--bundle", out, "--dry-run")
        assert status == 0 and printed, printed
        assert all(parse_officially(shlex.split(line, comments=True)) for line in printed.splitlines())
    assert f"-k {KERNEL} -v VERSION -m" in printed and not server.calls


def parse_officially(line):
    """Options as the client's own command line reads them."""
    import argparse

    from kaggle import cli

    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    for parse in (cli.parse_competitions, cli.parse_datasets, cli.parse_kernels):
        parse(commands)
    assert line[0] == "kaggle"
    return vars(parser.parse_args(line[1:]))


def test_bundle_is_written_of_the_tuned_runs_for_the_credentials_username(server, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.kaggle.bundle.download_wheels", lambda *_: [])
    cnn = make_run(tmp_path / "cnn")
    write_json(cnn / "config.json", {"prevalence": 0.25, "phantom": True})
    write_tuned(tmp_path / "threshold.json", cnn)
    out = tmp_path / "out"
    arguments = ("bundle", "--threshold", tmp_path / "threshold.json", "--out", tmp_path / "out")
    status, printed = run(*arguments)
    assert status == 1 and 'make kaggle BUNDLE="--username YOU"' in printed  # a token does not say whose it is
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    monkeypatch.setenv("KAGGLE_USERNAME", USERNAME)
    monkeypatch.setenv("KAGGLE_KEY", KEY)
    status, printed = run(*arguments, "--dry-run")
    assert status == 0 and str(cnn) in printed and not out.exists()
    status, printed = run(*arguments)
    assert status == 0 and "refuse real images: cnn." in printed and "can't score" in printed
    assert printed.endswith(f"Next: python -m utils.kaggle push --bundle {out} --dry-run, then without --dry-run\n")
    assert (out / "datasets" / "weights-cnn" / "threshold.json").is_file() and not server.calls
    (cnn / "oof.csv").write_text("changed")
    status, printed = run(*arguments, "--dry-run")
    command = f"tune_threshold.ipynb outputs/tune.ipynb -p run_dirs {cnn} -p threshold_path {tmp_path / 'threshold.json'}"
    assert status == 1 and command in printed


def test_bundle_without_credentials_needs_a_username_and_without_runs_is_for_training_on_kaggle(server, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.kaggle.bundle.download_wheels", lambda *_: [])
    monkeypatch.setattr(kaggle, "runs_to_send", lambda *_: [])
    monkeypatch.setattr(kaggle, "working_dir", lambda: tmp_path)
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    status, printed = run("bundle", "--out", tmp_path / "out")
    assert status == 1 and "No username was found" in printed and 'make kaggle BUNDLE="--username YOU"' in printed
    status, printed = run("bundle", "--out", tmp_path / "out", "--username", USERNAME)
    last = f"Next: python -m utils.kaggle push code preprocess --bundle {tmp_path / 'out'}\n"
    assert status == 0 and printed.endswith(f"No run in the bundle: it is for training on Kaggle. {last}")


def test_settings_and_kernels_of_the_command_line_reach_the_bundle(server, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.kaggle.bundle.download_wheels", lambda *_: [])
    out = tmp_path / "out"
    arguments = ["bundle", "--runs", "none", "--username", USERNAME, "--out", out]
    named = ["--kernel", "train-a", "train-b", "--set", "train-a:architecture=cnn", "train-b:architecture=rnn"]
    status, printed = run(*arguments, *named, "--set", "submit:run_dirs=a b")
    assert status == 0 and "train-a: " in printed and "Carried over" not in printed, printed
    assert '"a b"' in json.loads((out / "kernels" / "submit" / "submit.ipynb").read_text())["cells"][1]["source"][2]
    status, printed = run(*arguments, "--set", "train-a:architecture=resnet18", "--dry-run")
    assert "Carried over from the earlier bundle: train-b:architecture=rnn; submit:run_dirs=a b.\n" in printed
    status, printed = run(*arguments, "--set", "train-a:architectur=cnn", "--dry-run")
    assert status == 1 and "The nearest name is architecture." in printed
    status, printed = run(*arguments, "--set", "train-a:run_dir=x", "y=3")
    assert status == 1 and "--set 'y=3' is not KERNEL:NAME=VALUE" in printed


def test_a_bundle_with_runs_tells_that_trainings_on_kaggle_do_not_count(server, tmp_path):
    arguments = ["bundle", "--username", USERNAME, "--out", tmp_path / "out", "--dry-run", "--kernel", "train-a"]
    assert "--runs none" in run(*arguments, "--runs", make_run(tmp_path / "cnn"))[1]
    assert "will use only the bundle's runs" not in run(*arguments, "--runs", "none")[1]


@pytest.mark.parametrize(
    "bundle_option",
    ["--set 'train:recipe=strong mixup=0.4' train:epochs=2", '--set train:recipe="strong mixup=0.4" train:epochs=2'],
)
def test_make_passes_quoted_values_on(bundle_option):
    done = subprocess.run(["make", "-n", "kaggle", f"BUNDLE={bundle_option}"], cwd=PROJECT, capture_output=True, text=True)
    line = next(line for line in done.stdout.splitlines() if "utils.kaggle bundle" in line)
    given = kaggle.make_parser().parse_args(shlex.split(line)[3:])
    assert given.set == ["train:recipe=strong mixup=0.4", "train:epochs=2"]


def test_weights_command_takes_a_network_or_a_file_with_its_network(server, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(kaggle, "working_dir", lambda: tmp_path)
    monkeypatch.setattr(kaggle, "write_pretrained", lambda *given: asked.append(given) or Pretrained(tmp_path / "made", "any"))
    file = tmp_path / "weights.pth"
    file.touch()
    status, printed = run("weights", file, "--username", USERNAME)
    assert status == 1 and f"{file} is a file: name its network too" in printed
    assert run("weights", "resnet18", "--username", USERNAME, "--dry-run")[0] == 0 and not asked
    assert run("weights", "resnet18", "--username", USERNAME)[0] == 0
    status, printed = run("weights", file, "--architecture", "resnet34", "--username", USERNAME)
    assert status == 0 and f"Read {tmp_path / 'made' / 'LICENCE.txt'} before you share" in printed
    root = tmp_path / "weights"
    assert asked == [(root, USERNAME, "resnet18", None), (root, USERNAME, "resnet34", file)] and not server.calls


def test_weights_for_training_are_pushed_only_by_name(server, bundle):
    write_part(bundle / "datasets" / "pretrained-x", f"{USERNAME}/pretrained-x", "dataset", {"licenses": [{"name": "other"}]})
    (bundle / "datasets" / "pretrained-x" / "x.safetensors").write_text("weights")
    assert run("push", "--bundle", bundle)[0] == 0 and "pretrained-x" not in server.datasets
    assert run("push", "pretrained-x", "--bundle", bundle)[0] == 0 and "pretrained-x" in server.datasets


@pytest.mark.parametrize("command", ["bundle", "weights", "push", "wait", "submit", "scores", "ledger"])
def test_help_of_each_command_says_what_it_costs_and_how_to_undo_it(command, capsys):
    with pytest.raises(SystemExit):
        kaggle.main([command, "--help"])
    printed = capsys.readouterr().out
    assert "Costs:" in printed and "To undo:" in printed and "--dry-run" in printed


def test_no_secret_is_printed_or_written_by_a_whole_run_that_shows_all_requests(server, bundle, tmp_path, monkeypatch):
    """In another process, with the client's own debugging on, which prints the headers of each request."""
    write_json(tmp_path / ".kaggle" / "kaggle.json", {"username": USERNAME, "key": KEY})
    (tmp_path / ".kaggle" / "kaggle.json").chmod(0o600)
    server.log, server.kernel_states = f"the kernel printed {KEY}", ["ERROR", "COMPLETE"] * 2
    where = ["--bundle", str(bundle)]
    steps = [
        ["push", *where],
        ["wait", *where],
        ["submit", "--yes", "--message", f"my key {KEY}", *where],
        ["scores"],
        ["ledger"],
    ]
    code = (
        "import json, os, sys; from pathlib import Path; from utils.kaggle import client, commands, ledger\n"
        "ledger.submissions_dir = lambda: Path(sys.argv[1]); client.FIRST_DELAY = 0.001\n"
        "for source in ('token', 'key'):\n"
        "    for step in json.loads(sys.argv[2]): print(source, step[0], commands.main(step))\n"
        "    os.environ.pop('KAGGLE_API_TOKEN', None)\n"
    )
    monkeypatch.setenv("VERBOSE", "true")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = [sys.executable, "-c", code, str(tmp_path / "submissions"), json.dumps(steps)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    printed = done.stdout + done.stderr
    ended = {"push": 0, "wait": 1, "submit": 0, "scores": 0, "ledger": 0}
    assert all(f"{source} {step} {status}\n" in printed for source in ("token", "key") for step, status in ended.items()), (
        printed
    )
    assert "Authorization: Bearer [secret]" in printed and "Authorization: Basic [secret]" in printed
    assert "the kernel printed [secret]" in printed
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != ".kaggle"]
    assert any(b"my key [secret]" in content for content in written) and len(written) > 10
    for secret in (TOKEN, KEY, base64.b64encode(f"{USERNAME}:{KEY}".encode()).decode()):
        assert secret not in printed and not any(secret.encode() in content for content in written)
