"""Check Python and its packages before anything else is imported, and install missing ones from attached wheels."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core import folders, versions
from utils.core.errors import KitError
from utils.core.folders import is_from_kit, on_kaggle, walk_small_folders
from utils.kaggle.notebooks import NOTEBOOKS

if TYPE_CHECKING:
    from packaging.requirements import Requirement  # at run time late, so that the check of Python comes first

MOUNT_DEPTH = 4


class PackageError(KitError):
    """Python or a package is missing, too old or unavailable; the message says what to do."""


def install_missing(notebook: str) -> None:
    """Install a notebook's missing packages from attached wheels, and print the versions in use.

    Parameters
    ----------
    notebook : str
        A key of `NOTEBOOKS`, such as "train".

    Raises
    ------
    PackageError
        If Python's version does not fit pyproject.toml, or a package is missing or too old and no attached wheel helps.
    """
    _check_python()
    needed, optional = NOTEBOOKS[notebook].needs, NOTEBOOKS[notebook].optional
    _install_from_wheels(list(_lacking({**needed, **optional})))
    if lacking := _lacking(optional):
        print(f"Warning: {', '.join(lacking.values())}. {_remedy(lacking)}")
    if lacking := _lacking(needed):
        raise PackageError(f"{', '.join(lacking.values())}. {_remedy(lacking)}")
    print(f"{notebook}.ipynb, " + ", ".join(f"{name} {version}" for name, version in versions.versions().items()))


def read_requirements(path: Path) -> list[Requirement]:
    """Read requirements.txt; raise PackageError if a line can't be parsed."""
    from packaging.requirements import InvalidRequirement, Requirement

    requirements = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if text:
            try:
                requirements.append(Requirement(text))
            except InvalidRequirement as error:
                raise PackageError(f"{path}: {text!r} can't be parsed ({error}): write NAME>=VERSION.") from error
    return requirements


def _check_python() -> None:
    from packaging.specifiers import SpecifierSet

    path = folders.PROJECT / "pyproject.toml"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    wanted = re.search(r'^requires-python\s*=\s*"(.+)"', text, re.MULTILINE)  # an older Python has no tomllib
    if wanted and not SpecifierSet(wanted[1]).contains(platform.python_version(), prereleases=True):
        choose = "Choose the newest environment in the notebook's settings." if on_kaggle() else "make venv PYTHON=python3.12"
        raise PackageError(f"Python is {platform.python_version()}, but must be {wanted[1]}. {choose}")


def _remedy(lacking: Mapping[str, str]) -> str:
    attach = "Attach the dataset of wheels that 'make kaggle' makes, or switch the internet on and run: " if on_kaggle() else ""
    quoted = " ".join(f"'{requirement}'" for requirement in lacking)
    return f"{attach}%pip install {quoted}"


def _lacking(modules: Mapping[str, str]) -> dict[str, str]:
    """Return the unmet requirements, each with its problem; ``modules`` gives the package of each module."""
    path = folders.PROJECT / "requirements.txt"
    bounds = {need.name: need.specifier for need in (read_requirements(path) if path.is_file() else ())}
    lacking = {}
    for module, name in modules.items():
        bound = bounds.get(name, "")
        if importlib.util.find_spec(module) is None:
            lacking[f"{name}{bound}"] = f"{name} is not installed"
            continue
        with contextlib.suppress(metadata.PackageNotFoundError):  # another build of the package, such as opencv-python
            version = metadata.version(name)
            if bound and not bound.contains(version, prereleases=True):
                lacking[f"{name}{bound}"] = f"{name} is {version}, but must be {bound}"
    return lacking


def _install_from_wheels(requirements: Sequence[str]) -> None:
    """Install from the kit's own dataset, with missing dependencies only: Kaggle's image must not change."""
    folders = [folder for folder in mounted(".whl") if is_from_kit(folder)] if requirements else []
    if not folders:
        return
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    command += [f"--find-links={folder}" for folder in folders]
    todo = list(requirements)
    for requirement in todo:  # one by one: a missing wheel would block the others
        done = subprocess.run([*command, requirement], capture_output=True, encoding="utf-8", errors="replace")
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(f"{requirement}: " + (f"not installed from wheels ({reason})" if done.returncode else "installed from wheels"))
        importlib.invalidate_caches()
        if not done.returncode:
            todo += [missing for missing in _missing_dependencies(requirement) if missing not in todo]


def _missing_dependencies(requirement: str) -> Iterator[str]:
    from packaging.requirements import Requirement

    for need in map(Requirement, metadata.requires(Requirement(requirement).name) or ()):
        if not need.marker or need.marker.evaluate({"extra": ""}):
            try:
                metadata.version(need.name)
            except metadata.PackageNotFoundError:
                yield f"{need.name}{need.specifier}"


def mounted(ending: str) -> list[Path]:
    """List the folders of Kaggle's input that contain a file whose name ends with ``ending``."""
    found = []
    for folder, names, files in walk_small_folders(folders.KAGGLE_INPUT):
        if any(name.endswith(ending) for name in files):
            found.append(folder)
        if len(folder.relative_to(folders.KAGGLE_INPUT).parts) >= MOUNT_DEPTH:
            names.clear()
    return found
