"""The wheels that Kaggle's image lacks, so that a notebook without internet can install them.

They are installed with ``--no-deps`` next to what the image has, and replace none of it: where a package's newest release needs
other versions than the image's, pip takes an older release.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from utils.core.environment import KitError, read_json
from utils.runs.code import imports_of, reached_modules

# What Kaggle's image has of what matters here, put together on 2026-11-22, since no page lists it all. Names from
# Kaggle/docker-python, kaggle_requirements.txt (commit 01d659b, 2025), and from the Colab image that it stands on,
# googlecolab/backend-info, pip-freeze.gpu.txt (commit 03a8903, June 2026, Python 3.12), with that freeze's versions. torch and
# torchvision as in Kaggle's v170 of June 2026. Lower where Kaggle pinned in 2025: scikit-learn, matplotlib, and numpy, which
# those two hold below 2 (v170 is said to have 2.0.2). A newer image meets what these meet, upper bounds aside.
# It lacks imagecodecs, pebble and onnxruntime.
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
IMPORT_NAMES = {"scikit-learn": "sklearn", "opencv-python-headless": "cv2", "pyyaml": "yaml"}  # where it is not the package's
NEWEST_GLIBC = 35  # 2.35, of Ubuntu 22.04, on which the image stands
PLATFORMS = ("manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in range(17, NEWEST_GLIBC + 1)))
STUB = "+image"  # local version of the empty wheels that stand for what the image has


class WheelError(KitError):
    """Wheels that can't be had, or would not go with Kaggle's image; the message says what to change."""


def missing_requirements(requirements: Path, image: Mapping[str, str] = KAGGLE_IMAGE) -> list[str]:
    """List the requirements that the notebooks need on Kaggle and that the image does not meet.

    Needed is what the notebooks and the modules of ``utils`` that they reach import, at the top or late. So development tools,
    the tests' second decoders and what prepares Kaggle's work at home drop out without a second list that could grow old.

    Parameters
    ----------
    requirements : Path
        requirements.txt, with the folders ``notebooks`` and ``utils`` beside it.
    image : mapping of str to str
        Version by package.

    Returns
    -------
    list of str
        Lines of ``requirements``, without comments.

    Raises
    ------
    WheelError
        If a line can't be read.
    """
    imported = {name.partition(".")[0] for name in imported_by_notebooks(requirements.parent)}
    wanted = [_parse(line, requirements) for line in _lines(requirements)]
    return [str(need) for need in wanted if _import_name(need.name) in imported and not _has(image, need)]


def _lines(requirements: Path) -> list[str]:
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in requirements.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def _parse(line: str, source: Path) -> Requirement:
    try:
        return Requirement(line)
    except InvalidRequirement as error:
        raise WheelError(f"{source}: {line!r} can't be read as a requirement ({error}): write NAME>=VERSION.") from error


def imported_by_notebooks(project: Path) -> set[str]:
    """Return the dotted names of all that the notebooks import, and of what those of ``utils`` import in turn."""
    names = {name for path in project.glob("notebooks/*.ipynb") for name in imports_of(_code_of(path))}
    return reached_modules(names, project)


def _code_of(notebook: Path) -> str:
    cells = [cell for cell in read_json(notebook)["cells"] if cell["cell_type"] == "code"]
    return "\n".join("".join(cell["source"]) for cell in cells)


def _import_name(package: str) -> str:
    name = canonicalize_name(package)
    return IMPORT_NAMES.get(name, name.replace("-", "_"))


def _has(image: Mapping[str, str], need: Requirement) -> bool:
    name = canonicalize_name(need.name)
    return name in image and need.specifier.contains(image[name], prereleases=True)


def download_wheels(
    folder: Path, requirements: Path, python_version: str = "3.12", image: Mapping[str, str] = KAGGLE_IMAGE
) -> list[Path]:
    """Download what the image lacks, with all that this needs and the image lacks too, as pip resolves it.

    Empty wheels stand for what the image has, so that pip neither replaces it nor looks at what it needs. pip keeps to the
    user's configuration (index, ``PIP_…`` variables). Of needs that depend on the version of Python, it takes those of the one
    that runs it.

    Parameters
    ----------
    folder : Path
        Gets the wheels, all or none; a former folder of wheels is replaced.
    requirements : Path
        See `missing_requirements`.
    python_version : str
        Of Kaggle's image.
    image : mapping of str to str
        Version by package.

    Returns
    -------
    list of Path
        The wheels, sorted; empty where the image lacks nothing.

    Raises
    ------
    WheelError
        If pip finds no wheel, or none that goes with the image; or ``folder`` holds something else than wheels.
    """
    wanted = missing_requirements(requirements, image)
    with _whole_or_absent(folder) as whole, tempfile.TemporaryDirectory() as stubs:
        if wanted:
            constraints = _write_stubs(Path(stubs), image)
            _pip_download(wanted, whole, constraints, python_version)
        for stub in whole.glob(f"*{STUB}-*.whl"):
            stub.unlink()
    return sorted(folder.glob("*.whl"))


def _write_stubs(folder: Path, image: Mapping[str, str]) -> Path:
    """Write an empty wheel for each package of the image; returns the file of constraints that pins them."""
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
        raise WheelError(
            f"pip found no wheels of {', '.join(wanted)} for Python {python_version} that go with Kaggle's image: {said}. See"
            " that pip reaches its index (pip config list). Where a release needs other versions than the image's (+image), ask"
            " for an older one in requirements.txt, or correct KAGGLE_IMAGE if the image has changed."
        )


@contextmanager
def _whole_or_absent(folder: Path) -> Iterator[Path]:
    if folder.exists() and (not folder.is_dir() or any(path.suffix != ".whl" for path in folder.iterdir())):
        raise WheelError(f"{folder} holds something else than wheels: name another folder, or empty it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        whole = Path(temporary) / "whole"
        whole.mkdir()
        yield whole
        if folder.exists():
            shutil.rmtree(folder)
        whole.rename(folder)
