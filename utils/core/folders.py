"""Where data and outputs are, on Kaggle or at home."""

import os
from collections.abc import Iterator
from pathlib import Path

from utils.core.errors import KitError
from utils.core.files import read_json

COMPETITION = "rsna-breast-cancer-detection"
KIT = "mammography-kit"
KIT_FILE = "kit.json"  # marks the kit's own Kaggle datasets; contains name, version and commit
PROJECT = Path(__file__).resolve().parents[2]
SHOWN = 80  # characters of a wrong path in a message
KAGGLE_INPUT = Path("/kaggle/input")
KAGGLE_WORKING = Path("/kaggle/working")


def on_kaggle() -> bool:
    """True if this runs in a Kaggle kernel."""
    return KAGGLE_WORKING.is_dir() and KAGGLE_INPUT.is_dir()


def working_dir() -> Path:
    """Return the folder for all outputs: ``/kaggle/working`` on Kaggle, ``outputs/`` in the project elsewhere."""
    return KAGGLE_WORKING if on_kaggle() else PROJECT / "outputs"


def runs_dir(is_phantom: bool = False, smoke_test: bool = False) -> Path:
    """Return the default folder of runs; phantom runs and smoke tests have their own."""
    if smoke_test:
        return working_dir() / "runs-smoke"
    return working_dir() / ("runs-phantom" if is_phantom else "runs")


def submissions_dir() -> Path:
    """Return the folder that collects submissions and their provenance."""
    return KAGGLE_WORKING / "submissions" if on_kaggle() else PROJECT / "submissions"


def copies_dir(submission_path: Path, is_for_show: bool) -> Path:
    """Return the folder for a submission's named copies; a phantom's and a smoke test's stay next to the submission."""
    return submission_path.parent / "submissions" if is_for_show else submissions_dir()


def find_competition() -> Path | None:
    """Return the folder with the competition's ``test.csv``, in Kaggle's input folder or ``data/``; None if there is none."""
    roots = [KAGGLE_INPUT, KAGGLE_INPUT / "competitions", PROJECT / "data"]
    candidates = [root / COMPETITION for root in roots] + [PROJECT / "data"]
    return next((folder for folder in candidates if (folder / "test.csv").is_file()), None)


def competition_folder(competition_dir: str | Path | None) -> Path | None:
    """Return the folder that ``competition_dir`` names, or `find_competition`'s if it is empty."""
    return named_folder(competition_dir, "competition_dir") if competition_dir else find_competition()


def named_folder(path: str | Path, parameter: str) -> Path:
    """Return the folder that a notebook's parameter names, as an absolute path; raise KitError if it is missing."""
    folder = resolve(path)
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise KitError(f"{parameter} {folder} {problem}. Correct the path.")
    return folder


def walk_small_folders(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walk like ``os.walk``, but skip the thousands of files in image folders and caches.

    Yields
    ------
    folder : Path
    names : list of str
        Subfolders that are walked next; remove some to skip them.
    files : list of str
    """
    for folder, names, files in os.walk(root):
        is_cache = any(name.endswith("_manifest.csv") for name in files)
        names[:] = [] if is_cache else sorted(name for name in names if not name.endswith("_images"))
        yield Path(folder), names, files


def is_from_kit(folder: Path, mark: str = KIT_FILE) -> bool:
    """True if `utils.kaggle.bundle` wrote the folder, according to its file ``mark``."""
    try:
        return read_json(folder / mark)["name"] == KIT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def resolve(path: str | Path) -> Path:
    """Make a notebook's path parameter absolute.

    A relative path starts at the folder in which papermill was called, as in a shell. In the project's ``notebooks/``, it
    starts at the project's root instead, so that the README's paths mean the same there, for inputs and for outputs. A path
    that exists in ``notebooks/`` or begins with a dot (``./here.csv``, ``../data``) still starts there. Kaggle mounts an input
    at ``/kaggle/input/SLUG`` or at ``/kaggle/input/KIND/OWNER/SLUG``; the first means both.
    """
    try:
        return _resolved(path)
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user, a null byte
        raise KitError(f"{os.fspath(path)[:SHOWN]!r} is not a usable path ({error}).") from error


def _resolved(path: str | Path) -> Path:
    given = Path(path).expanduser()
    begins_with_a_dot = os.fspath(path).startswith(".")
    if Path.cwd() == PROJECT / "notebooks" and not given.exists() and not begins_with_a_dot:
        given = PROJECT / given
    given = given.resolve()
    if given.exists() or not given.is_relative_to(KAGGLE_INPUT):
        return given
    moved = [owner / given.relative_to(KAGGLE_INPUT) for owner in KAGGLE_INPUT.glob("*/*")]
    return next((found for found in moved if found.exists()), given)
