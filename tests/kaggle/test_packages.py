"""Facts about the packages that a notebook needs: what is missing is installed from attached wheels, or told."""

import json
import shutil
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from utils.core import folders
from utils.core.files import write_json
from utils.kaggle import packages
from utils.kaggle.notebooks import NOTEBOOKS, Notebook
from utils.kaggle.packages import PackageError, install_missing
from utils.runs.code import imports_of, module_files

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A project of its own, not on Kaggle."""
    project = tmp_path / "project"
    project.mkdir()
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, project)
    monkeypatch.setattr(folders, "PROJECT", project)
    for name in ("KAGGLE_INPUT", "KAGGLE_WORKING"):
        monkeypatch.setattr(folders, name, tmp_path / "kaggle" / name)
    return project


@pytest.fixture
def kaggle(home):
    """Kaggle's two folders; gives the input."""
    folders.KAGGLE_INPUT.mkdir(parents=True)
    folders.KAGGLE_WORKING.mkdir()
    return folders.KAGGLE_INPUT


def test_nothing_is_imported_that_may_be_missing():
    code = "import sys, utils.kaggle.packages; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "utils" in loaded
    assert not set(loaded) & (
        {module for notebook in NOTEBOOKS.values() for module in notebook.needs} - {"numpy"} | {"packaging"}
    )


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_packages_are_those_that_the_notebook_imports(notebook):
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text())["cells"]
    todo = set(imports_of("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")))
    reached = set()
    while todo:
        name = todo.pop()
        reached.add(name)
        todo |= {more for path in module_files({name}, ROOT) for more in imports_of(path.read_text())} - reached
    packages = {name.partition(".")[0] for name in reached} - sys.stdlib_module_names - {"utils"}
    asked_for = {"distributed", "packaging", "tensorboard"}  # cluster; install_missing; tensorboard
    brought = {"IPython", "torchvision", "huggingface_hub"}  # by the notebook itself, and by timm
    device = {"torch"} - NOTEBOOKS[notebook].needs.keys()  # of environment, where a device is asked for
    exporting = {"onnx", "onnxscript"}  # torch.onnx imports them
    wanted = NOTEBOOKS[notebook].needs.keys() | NOTEBOOKS[notebook].optional.keys()
    assert packages - asked_for - brought - device - exporting == wanted - exporting


def test_missing_and_old_packages_are_told_together_with_what_to_install(monkeypatch, home):
    needs = {"nowhere_to_be_found": "nowhere", "numpy": "numpy", "cv2": "opencv-of-conda"}
    monkeypatch.setitem(NOTEBOOKS, "train", Notebook("train", "", needs))
    (home / "requirements.txt").write_text("# tables\nnowhere>=1.2  # why\nnumpy>=99\nopencv-of-conda>=99\n")
    with pytest.raises(PackageError) as caught:
        install_missing("train")
    told = f"nowhere is not installed, numpy is {np.__version__}, but must be >=99. %pip install 'nowhere>=1.2' 'numpy>=99'"
    assert str(caught.value) == told


def test_package_that_the_notebook_can_do_without_is_a_warning(monkeypatch, capsys):
    monkeypatch.setitem(NOTEBOOKS, "report", Notebook("report", "", {}, {"nowhere_to_be_found": "nowhere"}))
    install_missing("report")
    assert capsys.readouterr().out.startswith(
        "Warning: nowhere is not installed. %pip install 'nowhere'\nreport.ipynb, python 3"
    )


def test_packages_are_not_compared_where_there_is_no_requirements_txt(home, capsys):
    (home / "requirements.txt").unlink()
    install_missing("submit")
    assert "Warning" not in capsys.readouterr().out


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
    needed = {"preflight_toy": "preflight_toy", "preflight_lost": "preflight_lost"}
    monkeypatch.setitem(NOTEBOOKS, "submit", Notebook("submit", "", needed))
    (home / "requirements.txt").write_text("preflight_toy>=2\n")
    with pytest.raises(PackageError, match="preflight_lost is not installed. Attach the dataset of wheels"):
        install_missing("submit")
    import preflight_helper
    import preflight_toy

    assert (preflight_toy.version, preflight_helper.version) == ("2.5", "1.1")
    told = [line.partition(" ")[0] for line in capsys.readouterr().out.splitlines()]
    assert told == ["preflight_toy>=2:", "preflight_lost:", "preflight_helper>=1:"]  # and numpy is left as it is


def test_wheels_are_not_looked_for_among_thousands_of_images(kaggle, monkeypatch):
    for folder in ("rsna/train_images/1", "cache/train", "a/b/c/d/e"):
        write_wheel(kaggle / folder, "hidden", "1")
    (kaggle / "cache" / "train_manifest.csv").touch()
    write_wheel(kaggle / "a/b/c/d", "found", "1")
    assert packages.mounted(".whl") == [kaggle / "a/b/c/d"]


@pytest.mark.parametrize("wanted, fits", [(">=3.11", True), (">=3.99", False), (">=3.11,<3.11.1", False)])
def test_python_must_be_one_that_the_kit_allows(wanted, fits, home, monkeypatch):
    monkeypatch.setattr(packages.platform, "python_version", lambda: "3.12.4")
    (home / "pyproject.toml").write_text(f'[project]\nname = "x"\nrequires-python = "{wanted}"\n')
    with nullcontext() if fits else pytest.raises(PackageError, match="Python is 3.12.4, but must be"):
        install_missing("explore")
