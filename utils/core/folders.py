"""Where data and outputs are, on Kaggle or at home."""

import os
from collections.abc import Iterator
from pathlib import Path

from utils.core.files import read_json

COMPETITION = "rsna-breast-cancer-detection"
KIT = "mammography-kit"
KIT_FILE = "kit.json"  # marks the kit's own Kaggle datasets; contains name, version and commit
PROJECT = Path(__file__).resolve().parents[2]
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


def find_competition() -> Path | None:
    """Return the folder with the competition's ``test.csv``, in Kaggle's input folder or ``data/``; None if there is none."""
    roots = [KAGGLE_INPUT, KAGGLE_INPUT / "competitions", PROJECT / "data"]
    candidates = [root / COMPETITION for root in roots] + [PROJECT / "data"]
    return next((folder for folder in candidates if (folder / "test.csv").is_file()), None)


def competition_folder(competition_dir: str | Path | None) -> Path | None:
    """Return ``competition_dir`` as an absolute path, or `find_competition`'s folder if it is empty."""
    return resolve(competition_dir) if competition_dir else find_competition()


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
    """Make a notebook's path parameter absolute, relative to the folder in which the notebook was called.

    papermill keeps the caller's folder as the kernel's, so ``-p cache_dir outputs/cache`` means the same as in a shell.
    Kaggle mounts an input at ``/kaggle/input/SLUG`` or at ``/kaggle/input/KIND/OWNER/SLUG``; the first means both.
    """
    path = Path(path).expanduser().resolve()
    if path.exists() or not path.is_relative_to(KAGGLE_INPUT):
        return path
    moved = [owner / path.relative_to(KAGGLE_INPUT) for owner in KAGGLE_INPUT.glob("*/*")]
    return next((path for path in moved if path.exists()), path)
