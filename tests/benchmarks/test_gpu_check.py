"""Facts about what runs the checks of ``make gpu-check``; the checks themselves run in CI, by ``make gpu-check``."""

import inspect
import signal
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import device, speed
from benchmarks.gpu_check.agreement import Prediction, check_agreement
from benchmarks.gpu_check.check import CheckError
from benchmarks.gpu_check.formats import choose_formats
from benchmarks.gpu_check.harness import run_plan
from benchmarks.gpu_check.page import make_page
from benchmarks.gpu_check.plan import PLAN
from utils.core.files import read_json

FAKE = "tests.benchmarks.gpu_check_plan"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("gpu-check")


@pytest.fixture(scope="module")
def report(out):
    """Of a plan in which one check fails, one dies and one hangs."""
    return run_plan(FAKE, out, budget_s=60)


def by_name(report):
    return {result["name"]: result for result in report["results"]}


def test_every_check_runs_whatever_happens_to_the_others(report, out):
    statuses = {name: result["status"] for name, result in by_name(report).items()}
    assert statuses == {
        "passes": "passed",
        "fails": "failed",
        "after-failure": "passed",
        "dies": "failed",
        "hangs": "failed",
        "skips": "skipped",
        "after-skip": "passed",
    }
    assert read_json(out / "gpu_check.json") == report


def test_failure_is_told_with_its_error_its_numbers_and_its_place(report):
    failed = by_name(report)["fails"]
    assert failed["reason"] == "CheckError: It found given." and failed["numbers"] == {"measured": 3}
    assert "in fails" in "\n".join(failed["traceback"])


def test_death_of_a_process_is_told_with_the_signal_and_what_it_said_last(report):
    assert by_name(report)["dies"]["reason"] == "Its process died (SIGSEGV)."
    assert "last words" in by_name(report)["dies"]["traceback"]


def test_check_that_hangs_is_ended_at_its_limit_and_tells_where_it_hung(report):
    hung = by_name(report)["hangs"]
    assert hung["reason"] == "It did not end within 1 s." and report["seconds"] < 30
    assert any(line.endswith("in hangs") for line in hung["traceback"])


def test_ctrl_c_ends_the_process_of_the_checks(tmp_path, monkeypatch):
    started = []

    class Interrupted(subprocess.Popen):
        def wait(self, timeout=None):
            if timeout is None:
                return super().wait()
            started.append(self)
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_plan(FAKE, tmp_path, budget_s=60, only=["hangs"])
    assert started[0].returncode == -signal.SIGKILL


def test_checks_share_a_process_until_one_fails(report):
    found = by_name(report)
    assert found["skips"]["numbers"]["process"] == found["after-skip"]["numbers"]["process"]
    assert found["after-failure"]["numbers"]["process"] != found["after-skip"]["numbers"]["process"]


def test_warnings_and_numbers_that_json_does_not_know_are_kept(report):
    assert by_name(report)["passes"]["warnings"] == ["UserWarning: mind this"]
    assert by_name(report)["passes"]["numbers"] == {"argument": "given", "ratio": "inf"}


def test_checks_for_which_no_time_is_left_are_listed(tmp_path):
    report = run_plan(FAKE, tmp_path, budget_s=0.9, only=["hangs", "skips", "after-skip"])  # less than the limit of the first
    assert report["seconds"] < 10
    assert [result["status"] for result in report["results"]] == ["not run"] * 3
    assert "Not run, as the time (0 minutes) was up: hangs, skips, after-skip" in make_page(report)


def test_page_begins_with_the_verdict_and_says_what_to_do(report):
    page = make_page(report)
    assert page.startswith("# GPU check\n\n**3 of 7 checks failed** (fails, dies, hangs)")
    assert "NO GPU" in page
    assert "Mend it. To run it alone: `python -m benchmarks.gpu_check --only fails`" in page
    assert "- skips: There is nothing to check." in page and "- passes: UserWarning: mind this" in page


@pytest.mark.parametrize(("runs_on", "warns"), [("cuda", False), ("cpu", True)])
def test_page_warns_of_toy_size_by_what_ran_even_if_one_of_several_gpus_fails(report, runs_on, warns):
    failed = by_name(report)["fails"] | {"name": "device", "numbers": {"checks_run_on": runs_on}}
    assert ("NO GPU" in make_page(report | {"results": [failed]})) == warns


@pytest.mark.parametrize(
    ("architecture", "capability", "formats"),
    [
        ("resnet50", (7, 5), ("float32", "float16")),
        ("cnn", (7, 5), ("float32", "bfloat16", "float16")),
        ("resnet50", (8, 0), ("float32", "bfloat16", "float16")),
    ],
)
def test_only_cnn_is_trained_in_emulated_bfloat16(architecture, capability, formats, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    trained_in, reason = choose_formats(architecture, torch.device("cuda"))
    assert trained_in == formats and ("bfloat16" in reason) == ("bfloat16" not in formats)


def test_speed_is_measured_at_a_batch_that_fits_into_memory_at_once(tmp_path, monkeypatch):
    batches = []

    def measure(network, size, batch, folder, rounds, gpu):
        batches.append(batch)
        seconds = {name: [1.0] for name in ("loop_s", "bare_s", "plain_s", "data_wait", "matrix")}
        return seconds | {"batch": batch, "at_once": 2, "precision": "float32", "flops": 1.0}

    monkeypatch.setattr(speed, "measure", measure)
    monkeypatch.setattr(speed, "timm_step", lambda *arguments: 1.0)
    monkeypatch.setattr(speed, "_peak_memory", lambda *arguments: 0)
    assert speed.measure_case(tmp_path, "resnet50")["batch"] == 2 and batches == [4, 2]


@pytest.mark.parametrize(
    ("logit", "features", "problem"), [(0.0, -1.0, "Features in bfloat16 differ by 1,"), (1.0, 0.0, "logit")]
)
def test_network_that_computes_something_else_does_not_agree(logit, features, problem):
    expected = Prediction(torch.zeros(4), torch.ones(4, 8))
    assert check_agreement("bfloat16", Prediction(expected.logit + 1e-3, expected.features + 1e-3), expected) > 0
    with pytest.raises(CheckError, match=problem):
        check_agreement("bfloat16", Prediction(expected.logit + logit, expected.features + features), expected)


def test_gpu_that_torch_does_not_support_is_told_in_one_sentence(monkeypatch, tmp_path):
    p100 = SimpleNamespace(name="Tesla P100", total_memory=16 * 2**30, major=6, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: p100)

    def refuse(gpu):
        raise RuntimeError("CUDA error: no kernel image is available\nCUDA kernel errors might be reported later")

    monkeypatch.setattr(device, "try_gpu", refuse)
    monkeypatch.setattr("utils.core.devices.try_gpu", refuse)
    with pytest.raises(
        CheckError, match=r"^Tesla P100 \(16 GiB\) does not work with torch .* \(CUDA error: no .* available\)\.$"
    ) as told:
        device.find_gpu(tmp_path)
    assert told.value.numbers["capability"] == ["6.0"] and told.value.numbers["bfloat16"] == "emulated"
    assert told.value.numbers["checks_run_on"] == "cpu"


@pytest.mark.parametrize(
    ("statuses", "code"), [(["passed", "skipped"], 0), (["passed", "failed"], 1), (["passed", "not run"], 1)]
)
def test_exit_code_is_1_if_a_check_failed_or_was_not_run(report, statuses, code, tmp_path, monkeypatch):
    told = report | {"results": [by_name(report)["passes"] | {"status": status} for status in statuses]}
    monkeypatch.setattr(command, "run_plan", lambda *arguments: told)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == code
    assert (tmp_path / "gpu_check.md").read_text(encoding="utf-8") == make_page(told)


def test_every_check_of_the_plan_names_a_function_that_takes_what_it_is_given():
    checks = [check for group in PLAN for check in group]
    assert len({check.name for check in checks}) == len(checks)
    for check in checks:
        module, function = check.function.split(":")
        inspect.signature(getattr(import_module(module), function)).bind(*["work", check.argument][: 1 + bool(check.argument)])
