"""Versions of Python, packages and this kit, for provenance."""

import contextlib
import platform
import subprocess
from importlib import metadata

from utils.core.files import read_json
from utils.core.folders import KIT_FILE, PROJECT

PACKAGES = (
    "torch",
    "timm",
    "pydicom",
    "imagecodecs",
    "opencv-python-headless",
    "albumentations",
    "numpy",
    "pandas",
    "scikit-learn",
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results, and the git commit, for provenance."""
    found = {"python": platform.python_version(), "commit": _git_commit()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _git_commit() -> str:
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        bundled = PROJECT / KIT_FILE  # in the bundle for Kaggle, which has no git
        return read_json(bundled)["commit"] if bundled.is_file() else "unknown"
