"""Facts about the preflight: what it finds before the heavy work, what it calls fatal, and that it never is the problem."""

import csv
import errno
import json
import pickle
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import types
import zipfile
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import torch

from tests.helpers import TINY, TUNED, make_config, parameters_of, write_tuned
from utils.core import environment
from utils.core.environment import read_json, write_json
from utils.core.parameters import Parameters
from utils.decision import tuning
from utils.decision.tuning import tune
from utils.images.cache import default_cache_dir
from utils.kaggle import preflight_machine, preflight_packages
from utils.kaggle.preflight import CHECKS, Finding, PreflightError, _findings, preflight
from utils.kaggle.preflight_data import check_cache, check_images, check_tables, check_true_boxes
from utils.kaggle.preflight_job import PICTURE_BYTES, RUN_BYTES, Job
from utils.kaggle.preflight_machine import (
    HUB_SECONDS,
    check_device,
    check_disk,
    check_hub,
    check_memory,
    free_memory,
)
from utils.kaggle.preflight_packages import NEEDED, OPTIONAL, check_packages, check_python
from utils.kaggle.preflight_runs import check_preprocessing, check_runs, check_threshold, check_weights, check_weights_file
from utils.runs import oof as predictions
from utils.runs.code import imports_of, module_files
from utils.training.example_run import runs_to_submit
from utils.training.folds import train_run

ROOT = Path(__file__).resolve().parents[2]
SIZE = {"image_height": TINY.image_height, "image_width": TINY.image_width}
Disk = namedtuple("Disk", "total used free")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A project of its own, not on Kaggle, without data."""
    project = tmp_path / "project"
    project.mkdir()
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, project)
    monkeypatch.setattr(environment, "PROJECT", project)
    for name in ("KAGGLE_INPUT", "KAGGLE_WORKING"):
        monkeypatch.setattr(environment, name, tmp_path / "kaggle" / name)
    for module in (predictions, tuning):
        monkeypatch.setattr(module, "KAGGLE_INPUT", environment.KAGGLE_INPUT)
    return project


@pytest.fixture
def kaggle(home):
    """Kaggle's two folders; gives the input."""
    environment.KAGGLE_INPUT.mkdir(parents=True)
    environment.KAGGLE_WORKING.mkdir()
    return environment.KAGGLE_INPUT


@pytest.fixture
def real(competition, tmp_path):
    """A competition that does not say that it is a phantom."""
    return shutil.copytree(competition, tmp_path / "real", ignore=shutil.ignore_patterns("phantom*"))


@pytest.fixture(scope="module")
def trained(images, cache_dir, tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "cnn"
    train_run(make_config(TINY, epochs=1), images, cache_dir, run)
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A finished run that a test may break."""
    return shutil.copytree(trained, tmp_path / "runs" / "cnn")


def found(check, *arguments, **parameters) -> list[Finding]:
    return list(check(Job(*arguments, **parameters)))


def only(check, *arguments, **parameters) -> Finding:
    findings = found(check, *arguments, **parameters)
    assert len(findings) == 1, findings
    return findings[0]


# The whole
# ---------


@pytest.mark.parametrize("notebook", CHECKS)
def test_what_is_in_order_passes_without_a_warning(notebook, competition, run, cache_dir, monkeypatch, capsys):
    monkeypatch.setattr(preflight_machine, "free_memory", lambda: 64 * 10**9)  # a full test machine is not the subject
    runs = str(run) if notebook in ("tune_threshold", "report", "submit") else ""
    preflight(
        notebook, parameters_of(notebook, competition_dir=str(competition), run_dirs=runs, cache_dir=str(cache_dir), **SIZE)
    )
    printed = capsys.readouterr().out
    assert "Warning" not in printed
    assert re.search(r"^\w+\.ipynb, python 3.+\n\d+ CPU cores, .+ GB of disk in ", printed)


def test_all_problems_are_told_at_once_each_with_its_remedy(real, run, tmp_path):
    (real / "test.csv").unlink()
    (run / "fold0" / "weights.safetensors").unlink()
    (tmp_path / "file").touch()
    paths = {"threshold_path": str(tmp_path / "none.json"), "submission_path": str(tmp_path / "file" / "submission.csv")}
    with pytest.raises(PreflightError) as caught:
        preflight("submit", parameters_of("submit", competition_dir=str(real), run_dirs=str(run), **paths))
    lines = str(caught.value).splitlines()
    assert [line.partition(" ")[0] for line in lines[1:]] == ["1.", "2.", "3.", "4."]
    for line, what in zip(lines[1:], ("can't be written", "test.csv", "weights.safetensors", "none.json"), strict=True):
        assert what in line and ("Remedy: " in line or ": run tune_threshold.ipynb" in line)
    assert caught.value._render_traceback_() == [f"PreflightError: {caught.value}"]


def test_check_that_breaks_is_a_warning_and_keeps_what_it_found():
    def check_moon(job):
        yield Finding("It is full.", "wait.")
        raise OSError("no sky")

    first, second = _findings(check_moon, Job("train"))
    assert first == Finding("It is full.", "wait.")
    assert not second.fatal and "check_moon could not be made (OSError: no sky)" in second.problem


def test_preflight_imports_nothing_that_may_be_missing():
    code = "import sys, utils.kaggle.preflight; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "utils" in loaded
    assert not set(loaded) & ({module for needed in NEEDED.values() for module in needed} - {"numpy"} | {"packaging"})


# Packages
# --------


@pytest.mark.parametrize("notebook", CHECKS)
def test_packages_are_those_that_the_notebook_imports(notebook):
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text())["cells"]
    todo = set(imports_of("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")))
    reached = set()
    while todo:
        name = todo.pop()
        reached.add(name)
        if not name.startswith("utils.kaggle.preflight"):  # which imports for all notebooks
            todo |= {more for path in module_files({name}, ROOT) for more in imports_of(path.read_text())} - reached
    packages = {name.partition(".")[0] for name in reached} - sys.stdlib_module_names - {"utils"}
    asked_for = {"distributed"}  # cluster
    brought = {"IPython", "torchvision"}  # by the notebook itself, and by timm
    device = {"torch"} - NEEDED[notebook].keys()  # of environment, where a device is asked for
    exporting = {"onnx", "onnxscript"}  # torch.onnx imports them
    wanted = NEEDED[notebook].keys() | OPTIONAL.get(notebook, {}).keys()
    assert packages - asked_for - brought - device - exporting == wanted - exporting


def test_missing_and_old_packages_are_one_finding_with_what_to_install(monkeypatch, home):
    monkeypatch.setitem(NEEDED, "train", {"nowhere_to_be_found": "nowhere", "numpy": "numpy", "cv2": "opencv-of-conda"})
    (home / "requirements.txt").write_text("# tables\nnowhere>=1.2  # why\nnumpy>=99\nopencv-of-conda>=99\n")
    finding = only(check_packages, "train")
    assert finding.fatal and finding.remedy == "%pip install 'nowhere>=1.2' 'numpy>=99'"
    assert finding.problem == f"nowhere is not installed, numpy is {np.__version__}, but must be >=99."


def test_package_that_the_notebook_can_do_without_is_a_warning(monkeypatch):
    monkeypatch.setitem(OPTIONAL, "report", {"nowhere_to_be_found": "nowhere"})
    assert not only(check_packages, "report").fatal


def test_packages_are_not_compared_where_there_is_no_requirements_txt(home):
    (home / "requirements.txt").unlink()
    assert found(check_packages, "submit") == []


def write_wheel(folder: Path, name: str, version: str, *needs: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {need}\n" for need in needs)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"version = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_missing_packages_are_installed_from_attached_wheels(kaggle, home, tmp_path, monkeypatch, capsys):
    wheels = kaggle / "datasets" / "somebody" / "wheels"
    needs = ("preflight_helper>=1", "numpy>=99", "preflight_extra; extra == 'all'")
    write_wheel(wheels, "preflight_toy", "2.5", *needs)
    write_wheel(wheels, "preflight_helper", "1.1", "preflight_toy")
    write_wheel(kaggle / "another-dataset", "preflight_toy", "9.9")  # of unknown origin: it is not the kit's
    write_json(wheels / "kit.json", {"name": "mammography-kit"})
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "site"))  # not into the environment of the tests
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setitem(NEEDED, "submit", {"preflight_toy": "preflight_toy", "preflight_lost": "preflight_lost"})
    monkeypatch.setitem(OPTIONAL, "submit", {})
    (home / "requirements.txt").write_text("preflight_toy>=2\n")
    finding = only(check_packages, "submit")
    import preflight_helper
    import preflight_toy

    assert (preflight_toy.version, preflight_helper.version) == ("2.5", "1.1")
    assert finding.problem == "preflight_lost is not installed." and "wheels" in finding.remedy
    told = [line.partition(" ")[0] for line in capsys.readouterr().out.splitlines()]
    assert told == ["preflight_toy>=2:", "preflight_lost:", "preflight_helper>=1:"]  # and numpy is left as it is


def test_wheels_are_not_looked_for_among_thousands_of_images(kaggle, monkeypatch):
    for folder in ("rsna/train_images/1", "cache/train", "a/b/c/d/e"):
        write_wheel(kaggle / folder, "hidden", "1")
    (kaggle / "cache" / "train_manifest.csv").touch()
    write_wheel(kaggle / "a/b/c/d", "found", "1")
    assert preflight_packages.mounted(".whl") == [kaggle / "a/b/c/d"]


@pytest.mark.parametrize("wanted, fits", [(">=3.11", True), (">=3.99", False), (">=3.11,<3.11.1", False)])
def test_python_must_be_one_that_the_kit_allows(wanted, fits, home, monkeypatch):
    monkeypatch.setattr(preflight_packages.platform, "python_version", lambda: "3.12.4")
    (home / "pyproject.toml").write_text(f'[project]\nname = "x"\nrequires-python = "{wanted}"\n')
    assert [finding.fatal for finding in found(check_python, "train")] == ([] if fits else [True])


# Machine
# -------


class FakeCuda:
    """GPUs of some capabilities, of which torch was built for some."""

    def __init__(self, capabilities, built=("sm_70", "sm_75")):
        self.capabilities, self.built = capabilities, built

    def is_available(self):
        return bool(self.capabilities)

    def device_count(self):
        return len(self.capabilities)

    def get_device_capability(self, number):
        return self.capabilities[number]

    def get_device_name(self, number):
        return f"GPU of sm_{''.join(map(str, self.capabilities[number]))}"

    def get_arch_list(self):
        return list(self.built)

    def get_device_properties(self, number):
        return types.SimpleNamespace(name=self.get_device_name(number), total_memory=15.8e9)

    def ones(self, count, device):
        major, minor = self.capabilities[int(device.removeprefix("cuda:"))]
        if f"sm_{major}{minor}" not in self.built:
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore lines")
        return torch.ones(count)


@pytest.fixture
def use_gpus(monkeypatch):
    """Replace torch by one that sees GPUs of these capabilities."""

    def use(*capabilities, cuda_version="12.4", has_mps=False):
        cuda = FakeCuda(capabilities)
        version = types.SimpleNamespace(cuda=cuda_version)
        backends = types.SimpleNamespace(mps=types.SimpleNamespace(is_available=lambda: has_mps))
        fake = types.SimpleNamespace(cuda=cuda, ones=cuda.ones, version=version, backends=backends, __version__="2.10.0")
        monkeypatch.setitem(sys.modules, "torch", fake)

    monkeypatch.setattr(preflight_machine, "GPU_DRIVER", Path("/nowhere"))
    return use


P100, T4 = (6, 0), (7, 5)


@pytest.mark.parametrize(
    "notebook, smoke_test, fatal", [("train", False, True), ("train", True, False), ("submit", False, False)]
)
def test_gpu_that_torch_no_longer_supports_is_told_with_the_right_choice(notebook, smoke_test, fatal, use_gpus, kaggle):
    use_gpus(P100)
    finding = only(check_device, notebook, smoke_test=smoke_test)
    assert finding.fatal == fatal and "GPU T4 x2" in finding.remedy
    assert "sm_60" in finding.problem and "built for sm_70, sm_75" in finding.problem and "no kernel image" in finding.problem
    assert "\n" not in finding.problem


def test_two_gpus_that_work_are_no_problem_and_said_to_be_used(use_gpus):
    use_gpus(T4, T4)
    assert found(check_device, "train") == []
    assert preflight_machine.gpus() == "GPU of sm_75 with 15.8 GB and GPU of sm_75 with 15.8 GB, all used"


def test_gpu_of_a_mac_is_said_not_to_be_used(use_gpus):
    use_gpus()
    assert preflight_machine.gpus() == "no GPU: the CPU computes"
    use_gpus(has_mps=True)
    assert preflight_machine.gpus() == "this Mac has a GPU (MPS), which the kit does not use: the CPU computes"


def test_broken_gpu_beside_a_working_one_is_found(use_gpus):
    use_gpus(T4, P100)
    assert "sm_60" in only(check_device, "train").problem


@pytest.mark.parametrize("notebook, warned", [("train", True), ("submit", False)])
def test_training_on_kaggles_cpu_is_warned_of_for_real_data(notebook, warned, use_gpus, kaggle, real, competition):
    use_gpus()
    assert [finding.fatal for finding in found(check_device, notebook, str(real))] == ([False] if warned else [])
    assert found(check_device, notebook, str(competition)) == []


def test_cpu_at_home_is_no_problem_unless_there_is_a_gpu(use_gpus, real, tmp_path, monkeypatch):
    use_gpus(cuda_version=None)
    assert found(check_device, "train", str(real)) == []
    monkeypatch.setattr(preflight_machine, "GPU_DRIVER", tmp_path)
    assert "built without CUDA" in only(check_device, "train", str(real)).problem


def test_torch_that_does_not_import_breaks_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "torch does not say" in preflight_machine.gpus()
    assert not _findings(check_device, Job("train"))[0].fatal


def limit_disk(monkeypatch, free: float) -> None:
    monkeypatch.setattr(preflight_machine.shutil, "disk_usage", lambda folder: Disk(2 * free, free, free))


@pytest.mark.parametrize("share, fatal", [(1.5, []), (0.9, [False]), (0.4, [True])])
def test_preprocessing_needs_room_for_the_pictures_that_are_missing(
    share, fatal, competition, images, test_images, monkeypatch
):
    size = {"image_height": 10_240, "image_width": 5_120}
    needed = (len(images) + len(test_images)) * 10_240 * 5_120 * PICTURE_BYTES
    limit_disk(monkeypatch, share * needed)
    assert [finding.fatal for finding in found(check_disk, "preprocess", str(competition), **size)] == fatal


def test_pictures_that_are_cached_need_no_room(competition, images, cache_dir):
    cached = {"cache_dir": str(cache_dir), **SIZE}
    assert Job("train", str(competition), **cached).missing == {cache_dir: 0}
    assert cache_dir not in Job("train", str(competition), **cached).written
    elsewhere = Job("train", str(competition), **cached | {"cache_dir": str(cache_dir.parent / "other")})
    assert elsewhere.missing == {cache_dir.parent / "other": len(images)}


def test_training_on_real_data_needs_room_for_weights_and_checkpoints(real, cache_dir, monkeypatch):
    cached = {"cache_dir": str(cache_dir), **SIZE}
    limit_disk(monkeypatch, RUN_BYTES / 4)
    assert only(check_disk, "train", str(real), **cached).fatal
    assert found(check_disk, "train", str(real), smoke_test=True, **cached) == []


def test_short_disk_is_no_reason_not_to_submit(real, run, monkeypatch):
    limit_disk(monkeypatch, 10)
    assert [finding.fatal for finding in found(check_disk, "submit", str(real), [run])] == [False]


def test_folder_that_takes_no_files_is_fatal(tmp_path, monkeypatch, competition):
    def refuse(dir):  # noqa: A002 - as tempfile names it
        if Path(dir) == tmp_path / "read-only":
            raise OSError(errno.EROFS, "Read-only file system")
        return original(dir=dir)

    original = preflight_machine.tempfile.TemporaryFile
    monkeypatch.setattr(preflight_machine.tempfile, "TemporaryFile", refuse)
    (tmp_path / "read-only").mkdir()
    finding = only(check_disk, "train", str(competition), run_dir=str(tmp_path / "read-only" / "runs" / "a"))
    assert finding.fatal and "read-only/runs/a can't be written (Read-only file system)" in finding.problem


def write_machine(root: Path, groups: str, **files: str) -> Path:
    texts = {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    8000 kB\n", "proc/self/cgroup": groups} | files
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MACHINE_FREE = 8000 * 1024
V2 = {"memory.max": "3000000\n", "memory.current": "2500000\n", "memory.stat": "anon 1\ninactive_file 400000\n"}
V1 = {"limit_in_bytes": "3000000\n", "usage_in_bytes": "2500000\n", "stat": "inactive_file 7\ntotal_inactive_file 400000\n"}


@pytest.mark.parametrize("inside", ["", "job/", "job/step/"])
@pytest.mark.parametrize("version", [1, 2])
def test_free_memory_is_what_the_control_groups_leave(tmp_path, version, inside):
    if version == 2:
        files = {f"sys/fs/cgroup/{inside}{name}": text for name, text in V2.items()}
        groups = "0::/job/step\n"
    else:
        files = {f"sys/fs/cgroup/memory/{inside}memory.{name}": text for name, text in V1.items()}
        groups = "5:freezer:/\n4:memory:/job/step\n0::/\n"
    assert free_memory(write_machine(tmp_path, groups, **files)) == 900_000


def test_free_memory_without_a_limit_is_the_machines(tmp_path):
    files = {f"sys/fs/cgroup/{name}": text for name, text in (V2 | {"memory.max": "max\n"}).items()}
    assert free_memory(write_machine(tmp_path, "0::/\n", **files)) == MACHINE_FREE
    assert free_memory(tmp_path / "a Mac") is None


@pytest.mark.parametrize("num_workers, warned", [(4, False), (40, True)])
def test_memory_that_may_not_suffice_is_a_warning(num_workers, warned, monkeypatch):
    monkeypatch.setattr(preflight_machine, "free_memory", lambda: 4 * 10**9)
    assert [finding.fatal for finding in found(check_memory, "preprocess", num_workers=num_workers)] == [False] * warned
    assert found(check_memory, "tune_threshold", num_workers=num_workers) == []


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A network of which a test says what connecting does; gives the list of addresses that were asked."""
    from huggingface_hub import constants

    asked = []
    monkeypatch.setattr(preflight_machine, "getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setattr(preflight_machine, "HUB_SECONDS", 0.2)

    def use(connect):
        monkeypatch.setattr(socket, "create_connection", lambda *arguments: asked.append(arguments[0]) or connect())
        return asked

    return use


def refuse_connection():
    raise OSError("Network is unreachable")


def test_hub_is_asked_only_where_pretrained_needs_it(hub):
    asked = hub(refuse_connection)
    assert found(check_hub, "train") == found(check_hub, "train", pretrained=True, weights_path="a.pth") == [] == asked
    finding = only(check_hub, "train", pretrained=True)
    assert asked == [("huggingface.co", 443)]
    assert finding.fatal and "weights_path" in finding.remedy


def test_hub_that_answers_is_no_problem_nor_is_one_behind_a_proxy(hub, monkeypatch):
    hub(lambda: open("/dev/null"))  # noqa: SIM115 - closed by the check
    assert found(check_hub, "train", pretrained=True) == []
    hub(refuse_connection)
    monkeypatch.setattr(preflight_machine, "getproxies", lambda: {"https": "http://proxy:3128"})
    assert found(check_hub, "train", pretrained=True) == []


def test_weights_that_were_downloaded_before_make_a_silent_hub_a_warning(hub, tmp_path):
    hub(refuse_connection)
    (tmp_path / "hub" / "models--timm--resnet50.a1_in1k").mkdir(parents=True)
    assert not only(check_hub, "train", pretrained=True).fatal


def test_look_up_of_a_name_that_hangs_is_not_waited_for(hub):
    end = threading.Event()

    def hang():
        end.wait(20)
        refuse_connection()

    hub(hang)
    start = time.monotonic()
    assert only(check_hub, "train", pretrained=True).fatal
    assert time.monotonic() - start < HUB_SECONDS
    end.set()


# Data
# ----


def keep_header(path: Path) -> None:
    path.write_text(path.read_text().splitlines()[0] + "\n")


def drop_view(path: Path) -> None:
    path.write_text(path.read_text().replace(",view,", ",glimpse,", 1))


TABLE_DAMAGES = {
    "does not exist": Path.unlink,
    "is empty": lambda path: path.write_bytes(b""),
    "is a Git LFS pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "lacks the column(s) view": drop_view,
    "has no rows": keep_header,
    "is not a readable CSV": lambda path: path.write_bytes(b"site_id,\xff\xfe\n1,\xff\n"),
}


@pytest.mark.parametrize("problem", TABLE_DAMAGES)
def test_table_that_can_not_be_read_is_named_with_the_reason(problem, real):
    TABLE_DAMAGES[problem](real / "train.csv")
    assert f"train.csv {problem}" in only(check_tables, "train", str(real)).problem
    assert found(check_tables, "submit", str(real)) == []  # which does not read it
    assert not _findings(check_images, Job("train", str(real)))  # nor does another check break on it


def test_every_broken_table_is_told(real):
    for name in ("train", "test"):
        keep_header(real / f"{name}.csv")
    assert len(found(check_tables, "explore", str(real))) == 2


def test_folder_that_is_no_competition_is_told_once(tmp_path):
    assert "holds no train.csv and no test.csv" in only(check_tables, "submit", str(tmp_path)).problem


def test_training_needs_no_test_table(real):
    (real / "test.csv").unlink()
    assert found(check_tables, "train", str(real)) == []
    assert "test.csv does not exist" in only(check_tables, "submit", str(real)).problem


def test_submitting_needs_neither_training_table_nor_sample(real):
    for name in ("train", "sample_submission"):
        (real / f"{name}.csv").unlink()
    assert found(check_tables, "submit", str(real)) == []
    (real / "sample_submission.csv").touch()
    assert "sample_submission.csv is empty" in only(check_tables, "submit", str(real)).problem


@pytest.mark.parametrize("name", ["train", "test"])
def test_preprocessing_needs_one_table(name, real):
    (real / f"{name}.csv").unlink()
    assert found(check_tables, "preprocess", str(real)) == []


def test_competition_that_is_not_attached_is_a_warning_on_kaggle_alone(kaggle, monkeypatch):
    assert not only(check_tables, "train").fatal
    assert found(check_tables, "train", smoke_test=True) == []
    monkeypatch.setattr(environment, "KAGGLE_WORKING", Path("/nowhere"))
    assert found(check_tables, "train") == []


def image_files(folder: Path, split: str = "test") -> list[Path]:
    with open(folder / f"{split}.csv", newline="") as file:
        return [folder / f"{split}_images" / row["patient_id"] / f"{row['image_id']}.dcm" for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    "problem, damage",
    {
        "does not exist": Path.unlink,
        "is empty": lambda path: path.write_bytes(b""),
        "(it does not begin like a DICOM file)": lambda path: path.write_bytes(b"<html>" + bytes(200)),
    }.items(),
)
def test_one_bad_image_is_a_warning_and_all_are_fatal(problem, damage, real):
    files = image_files(real)
    damage(files[0])
    first = only(check_images, "submit", str(real))
    assert not first.fatal and f"{files[0]} {problem}" in first.problem and "1 of 5 images" in first.problem
    for path in files[1:]:
        damage(path)
    assert only(check_images, "submit", str(real)).fatal
    assert [finding.fatal for finding in found(check_images, "preprocess", str(real))] == [True]  # of test.csv


def test_images_are_not_needed_where_the_cache_is_complete(real, cache_dir):
    shutil.rmtree(real / "train_images")
    assert found(check_images, "train", str(real), cache_dir=str(cache_dir), **SIZE) == []
    assert only(check_images, "train", str(real)).fatal
    assert not only(check_images, "explore", str(real)).fatal  # its tables are worth showing


def test_ids_of_a_table_lead_nowhere_else(real):
    keep_header(real / "test.csv")
    with open(real / "test.csv", "a") as file:
        file.write("1,../../..,etc/passwd,L,CC,50,0,1,1_L\n")
    assert found(check_images, "submit", str(real)) == []  # which read_images refuses


def test_cache_of_other_settings_is_fatal(competition, cache_dir):
    assert found(check_cache, "train", str(competition), cache_dir=str(cache_dir), **SIZE) == []
    finding = only(check_cache, "train", str(competition), cache_dir=str(cache_dir), **SIZE, exact=True)
    assert finding.fatal and str(cache_dir) in finding.problem


def test_attached_cache_of_the_same_settings_is_named_on_kaggle(kaggle, real, cache_dir):
    assert "preprocess.ipynb" in only(check_cache, "train", str(real), **SIZE).remedy
    attached = shutil.copytree(cache_dir, kaggle / "preprocess" / "cache" / "real-64x48")
    assert f"cache_dir to {attached}." in only(check_cache, "train", str(real), **SIZE).remedy
    assert found(check_cache, "train", str(real), cache_dir=str(attached), **SIZE) == []
    assert "preprocess.ipynb" in only(check_cache, "train", str(real), **SIZE, exact=True).remedy


def test_submit_fills_a_cache_for_each_preprocessing_of_its_runs(competition, run, tmp_path):
    other = shutil.copytree(run, tmp_path / "runs" / "other")
    config = read_json(other / "config.json")
    config["preprocessing"]["exact"] = True
    write_json(other / "config.json", config)
    caches = Job("submit", str(competition), [run, other]).caches
    assert list(caches.values()) == [TINY, replace(TINY, exact=True)]
    assert list(caches) == [default_cache_dir(competition, settings) for settings in caches.values()]
    named = Job("submit", str(competition), [run, other], cache_dir=str(tmp_path / "cache")).caches
    assert list(named) == [tmp_path / "cache" / default.name for default in caches]  # as utils.submission.streaming does
    assert list(Job("submit", str(competition), [run], cache_dir=str(tmp_path / "cache")).caches) == [tmp_path / "cache"]


# Runs and weights
# ----------------


def test_submit_without_a_run_is_fatal_for_real_data_alone(real, competition):
    assert only(check_runs, "submit", str(real)).fatal
    assert found(check_runs, "submit", str(competition)) == found(check_runs, "submit") == []


def test_runs_are_found_where_the_notebook_finds_them(real, run, kaggle):
    first, second = (shutil.copytree(run, kaggle / "weights" / name) for name in "ab")
    with open(second / "oof.csv", "a") as file:
        file.write("\n")
    assert Job("submit", str(real)).runs == runs_to_submit() == [first, second]
    assert Job("submit", str(real), f"{second}, {run}").runs == Job("submit", str(real), [second, run]).runs == [second, run]
    threshold = environment.KAGGLE_WORKING / "threshold.json"
    tune([second]).save(threshold)
    assert Job("submit", str(real)).runs == runs_to_submit() == [second]
    assert Job("report", str(real)).runs == [first, second]
    threshold.write_text("{")
    assert Job("submit", str(real)).runs == Job("submit", str(real), threshold_path="none.json").runs == [first, second]


def test_file_that_a_run_lacks_is_named(run, competition):
    (run / "oof.csv").unlink()
    (run / "folds.csv").unlink()
    finding = only(check_runs, "report", str(competition), [run])
    assert finding.fatal and "oof.csv does not exist, folds.csv does not exist" in finding.problem
    assert "folds.csv" not in only(check_runs, "submit", str(competition), [run], threshold_path="given.json").problem


def test_predictions_that_are_none_are_told_before_the_notebook_uses_them(run, competition):
    table = pd.read_csv(run / "oof.csv", dtype=str)
    table.assign(probability="7").to_csv(run / "oof.csv", index=False)
    for notebook in ("tune_threshold", "report", "submit"):
        finding = only(check_runs, notebook, str(competition), [run])
        assert finding.fatal and f"{run}/oof.csv: probability is 7 in line 2" in finding.problem


def test_history_that_can_not_be_drawn_is_told_before_the_report(run, competition):
    (run / "fold0" / "history.csv").write_text("fold,epoch\n0,first\n")
    assert "fold0/history.csv: epoch is first" in only(check_runs, "report", str(competition), [run]).problem
    assert found(check_runs, "submit", str(competition), [run]) == []


def test_true_boxes_that_can_not_be_read_are_told_before_the_report(real, tmp_path):
    def told(**values):
        return [str(finding) for finding in found(check_true_boxes, "report", str(real), **values)]

    assert told() == []
    (real / "boxes.csv").write_text("image_id,x_min\n1,2\n")
    assert "boxes.csv lacks the column(s) y_min" in told()[0].replace("x_max, ", "").replace("label", "")
    missing = Parameters({"boxes_path": str(tmp_path / "none.csv")}, {})
    assert "none.csv" in told(parameters=missing)[0]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


WEIGHT_DAMAGES = {
    "does not exist": Path.unlink,
    "is empty": lambda path: path.write_bytes(b""),
    "is a Git LFS pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    ": it is cut": cut,
    ": it was not written by this kit": lambda path: safetensors.numpy.save_file({"a": np.zeros(3)}, path),
}


@pytest.mark.parametrize("problem", WEIGHT_DAMAGES)
def test_weights_that_are_not_whole_are_fatal_for_submit_and_a_warning_in_the_report(problem, run):
    path = run / "fold1" / "weights.safetensors"
    WEIGHT_DAMAGES[problem](path)
    finding = only(check_weights, "submit", run_dirs=str(run))
    assert finding.fatal and f"{path} {problem}".replace(" :", ":") in finding.problem
    assert not only(check_weights, "report", run_dirs=str(run)).fatal


def test_unfinished_folds_are_a_warning_and_none_is_fatal(run):
    (run / "fold0" / "oof.csv").unlink()
    finding = only(check_weights, "submit", run_dirs=str(run))
    assert not finding.fatal and "1 of 2 folds" in finding.problem
    (run / "fold1" / "oof.csv").unlink()
    assert only(check_weights, "submit", run_dirs=str(run)).fatal


@pytest.mark.parametrize("change", [{"prevalence": 0}, {"n_folds": 0}, {"preprocessing": {"image_height": -64}}])
def test_configuration_that_can_not_be_is_told_once(change, run, competition):
    write_json(run / "config.json", read_json(run / "config.json") | change)
    assert f"{run}/config.json: {next(iter(change))}" in only(check_weights, "submit", str(competition), [run]).problem


def test_network_that_does_not_exist_is_told_from_the_header_of_its_weights(run, competition):
    config = read_json(run / "config.json")
    write_json(run / "config.json", config | {"model": config["model"] | {"architecture": "resnet_50"}})
    problem = only(check_weights, "submit", str(competition), [run]).problem
    assert f"{run}/config.json: 'resnet_50' is neither cnn, rnn nor a network" in problem


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_configuration_that_can_not_be_read_is_told_once(content, run, competition):
    (run / "config.json").write_text(content)
    assert f"{run / 'config.json'}" in only(check_weights, "submit", str(competition), [run]).problem
    assert found(check_preprocessing, "submit", str(competition), [run]) == []


def test_run_of_another_preprocessing_is_fatal(run, competition):
    assert found(check_preprocessing, "submit", str(competition), [run]) == []
    write_json(run / "config.json", read_json(run / "config.json") | {"settings_hash": "0" * 12})
    finding = only(check_preprocessing, "submit", str(competition), [run])
    assert finding.fatal and "000000000000" in finding.problem


def test_run_of_the_phantom_is_fatal_for_real_images_alone(run, competition, real):
    write_json(run / "config.json", read_json(run / "config.json") | {"phantom": True})
    assert "phantom" in only(check_preprocessing, "submit", str(real), [run]).problem
    assert found(check_preprocessing, "submit", str(competition), [run]) == []


def test_threshold_that_is_named_must_belong_to_the_runs(run, tmp_path):
    path = tmp_path / "threshold.json"
    assert "does not exist" in only(check_threshold, "submit", run_dirs=[run], threshold_path=str(path)).problem
    tune([run]).save(path)
    assert found(check_threshold, "submit", run_dirs=[run], threshold_path=str(path)) == []
    with open(run / "oof.csv", "a") as file:
        file.write("\n")
    assert "was tuned on" in only(check_threshold, "submit", run_dirs=[run], threshold_path=str(path)).problem


@pytest.mark.parametrize("content", ["{", "{}", json.dumps(TUNED | {"threshold": 7})])
def test_threshold_json_that_is_none_is_told_even_where_it_is_not_named(content, run, home):
    assert found(check_threshold, "submit", run_dirs=[run]) == []
    (home / "outputs").mkdir()
    path = home / "outputs" / "threshold.json"
    path.write_text(content)
    assert only(check_threshold, "submit", run_dirs=[run]).fatal
    assert only(check_threshold, "submit", run_dirs=[run], threshold_path=str(path)).fatal


def test_broken_run_that_threshold_json_names_is_told_as_submit_will_refuse_it(run, home, real):
    (home / "outputs").mkdir()
    write_tuned(home / "outputs" / "threshold.json", run)
    assert found(check_threshold, "submit", str(real)) == []
    (run / "config.json").write_text("{")
    assert f"{run / 'config.json'} can't be read" in only(check_threshold, "submit", str(real)).problem


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_weights_that_would_run_code_are_refused_without_running_it(tmp_path):
    path, sprung = tmp_path / "weights.pth", tmp_path / "sprung"
    for write in (
        lambda: torch.save({"a": Trap(sprung)}, path),
        lambda: path.write_bytes(pickle.dumps(Trap(sprung), protocol=2)),
    ):
        write()
        finding = only(check_weights_file, "train", weights_path=str(path))
        assert finding.fatal and "can't be read as plain weights" in finding.problem
    assert not sprung.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_state_dict_is_taken_and_a_part_of_it_is_not(legacy, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": torch.nn.Linear(50, 50).state_dict()}, path, _use_new_zipfile_serialization=not legacy)
    assert found(check_weights_file, "train", weights_path=str(path)) == found(check_weights_file, "train") == []
    cut(path)
    assert only(check_weights_file, "train", weights_path=str(path)).fatal


def test_safetensors_from_elsewhere_are_taken_and_missing_ones_are_not(tmp_path):
    path = tmp_path / "weights.safetensors"
    assert "does not exist" in only(check_weights_file, "train", weights_path=str(path)).problem
    safetensors.numpy.save_file({"a": np.zeros(3)}, path)
    assert found(check_weights_file, "train", weights_path=str(path)) == []
