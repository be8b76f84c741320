"""The wheels that Kaggle's image lacks, so that a notebook without internet can install them.

A notebook installs them with ``--no-deps``; they replace no package of the image. If a package's newest release needs
versions that the image does not have, pip picks an older release.
"""

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from utils.kaggle.notebooks import NOTEBOOKS
from utils.kaggle.packages import PackageError, read_requirements

# Packages of Kaggle's image that matter here, compiled on 2026-11-22, since no page lists them all.
# Names: Kaggle/docker-python, kaggle_requirements.txt (commit 01d659b, 2025), and the Colab image below it,
# googlecolab/backend-info, pip-freeze.gpu.txt (commit 03a8903, June 2026, Python 3.12).
# Versions: that freeze's; torch and torchvision as in Kaggle's v170 of June 2026. Three are lower: scikit-learn and
# matplotlib, which Kaggle pinned in 2025, and numpy, which these two keep below 2 (v170 is said to have 2.0.2).
# A newer image meets every lower bound that these versions meet. The image lacks imagecodecs, pebble, onnxscript and
# onnxruntime.
KAGGLE_IMAGE = {
    "albucore": "0.0.24",
    "albumentations": "2.0.8",
    "cloudpickle": "3.1.2",
    "dask": "2026.1.1",
    "distributed": "2026.1.1",
    "filelock": "3.29.0",
    "flatbuffers": "25.12.19",
    "fsspec": "2025.3.0",
    "huggingface-hub": "1.17.0",
    "ipykernel": "6.17.1",
    "ipython": "7.34.0",
    "jinja2": "3.1.6",
    "joblib": "1.5.3",
    "kaggle": "2.0.2",
    "matplotlib": "3.7.5",
    "ml-dtypes": "0.5.4",
    "nbformat": "5.10.4",
    "networkx": "3.6.1",
    "numpy": "1.26.4",
    "onnx": "1.18.0",
    "opencv-python-headless": "4.13.0.92",
    "packaging": "26.2",
    "pandas": "2.2.2",
    "papermill": "2.6.0",
    "pillow": "11.3.0",
    "protobuf": "5.29.6",
    "psutil": "5.9.5",
    "pydicom": "3.0.1",
    "pyyaml": "6.0.3",
    "requests": "2.32.4",
    "safetensors": "0.7.0",
    "scikit-learn": "1.2.2",
    "scipy": "1.16.3",
    "setuptools": "75.2.0",
    "sympy": "1.14.0",
    "tensorboard": "2.20.0",
    "threadpoolctl": "3.6.0",
    "timm": "1.0.27",
    "torch": "2.10.0",
    "torchvision": "0.25.0",
    "tqdm": "4.67.3",
    "typing-extensions": "4.15.0",
}
KAGGLE_PYTHON = "3.12"
NEWEST_GLIBC = 35  # 2.35, of Ubuntu 22.04, the image's base
PLATFORMS = ("manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in range(17, NEWEST_GLIBC + 1)))
STUB = "+image"  # local version of the empty wheels that stand for the image's packages


def missing_requirements(requirements: Path, image: Mapping[str, str] = KAGGLE_IMAGE) -> list[str]:
    """List the lines of requirements.txt that the notebooks need and ``image`` (version by package) does not meet.

    Raise PackageError if a line can't be parsed.
    """
    used = {name for notebook in NOTEBOOKS.values() for name in (*notebook.needs.values(), *notebook.optional.values())}
    return [str(need) for need in read_requirements(requirements) if need.name in used and not _has(image, need)]


def _has(image: Mapping[str, str], need: Requirement) -> bool:
    name = canonicalize_name(need.name)
    return name in image and need.specifier.contains(image[name], prereleases=True)


def download_wheels(
    folder: Path, requirements: Path, python_version: str = KAGGLE_PYTHON, image: Mapping[str, str] = KAGGLE_IMAGE
) -> list[Path]:
    """Download the wheels that the image lacks, with dependencies, into a new folder and return them.

    Empty wheels stand for the image's packages, so pip neither replaces them nor resolves their dependencies.
    pip uses the user's configuration (index, ``PIP_…`` variables), and evaluates Python markers for its own interpreter.
    If the image lacks nothing, no folder is made. Raise PackageError if pip finds no wheels.
    """
    wanted = missing_requirements(requirements, image)
    if not wanted:
        return []
    with tempfile.TemporaryDirectory() as stubs:
        _pip_download(wanted, folder, _write_stubs(Path(stubs), image), python_version)
    for stub in folder.glob(f"*{STUB}-*.whl"):
        stub.unlink()
    return sorted(folder.glob("*.whl"))


def _write_stubs(folder: Path, image: Mapping[str, str]) -> Path:
    """Write an empty wheel for each package of the image, and return a constraints file that pins them."""
    lines = []
    for name, version in image.items():
        stem, version = canonicalize_name(name).replace("-", "_"), Version(version).public + STUB
        with zipfile.ZipFile(folder / f"{stem}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{stem}-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            wheel.writestr(f"{stem}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{stem}-{version}.dist-info/RECORD", "")
        lines.append(f"{name}=={version}\n")
    path = folder / "constraints.txt"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _pip_download(wanted: Sequence[str], folder: Path, constraints: Path, python_version: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--dest", str(folder)]
    command += ["--only-binary", ":all:", "--python-version", python_version, "--implementation", "cp"]
    command += [part for platform in PLATFORMS for part in ("--platform", platform)]
    command += ["--constraint", str(constraints), "--find-links", str(constraints.parent)]
    done = subprocess.run([*command, *wanted], capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        conflict = done.stdout.partition("The conflict is caused by:")[2].partition("To fix this")[0]
        said = " ".join((conflict or done.stderr).split())
        raise PackageError(
            f"pip found no wheels of {', '.join(wanted)} for Python {python_version} that fit Kaggle's image: {said}."
            " Check that pip reaches its index (pip config list). If a release needs other versions than the image's (+image),"
            " require an older one in requirements.txt, or correct KAGGLE_IMAGE if the image has changed."
        )
