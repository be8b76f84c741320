"""Where data and outputs live, on Kaggle or at home, and how a file gets written whole or not at all."""

import contextlib
import json
import os
import platform
import random
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np

COMPETITION = "rsna-breast-cancer-detection"
KIT = "mammography-kit"
KIT_FILE = "kit.json"  # marks the kit's own datasets on Kaggle, with its name, version and commit
PROJECT = Path(__file__).resolve().parent.parent
KAGGLE_INPUT = Path("/kaggle/input")
KAGGLE_WORKING = Path("/kaggle/working")
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


class KitError(Exception):
    """Base of all errors that a user can mend; a notebook shows its message alone, without the traceback."""

    def _render_traceback_(self) -> list[str]:
        """Tell IPython what to show in place of the traceback."""
        return [f"{type(self).__name__}: {self}"]


def on_kaggle() -> bool:
    """Tell whether this runs in a Kaggle kernel."""
    return KAGGLE_WORKING.is_dir() and KAGGLE_INPUT.is_dir()


def working_dir() -> Path:
    """Folder for everything that a run makes: ``/kaggle/working`` on Kaggle, ``outputs/`` in the project elsewhere."""
    return KAGGLE_WORKING if on_kaggle() else PROJECT / "outputs"


def runs_dir(is_phantom: bool = False, smoke_test: bool = False) -> Path:
    """Folder of the runs that get no ``run_dir``: real ones, those on the phantom and smoke tests apart."""
    kind = "-smoke" if smoke_test else "-phantom" if is_phantom else ""
    return working_dir() / f"runs{kind}"


def submissions_dir() -> Path:
    """Folder that collects submissions and their provenance."""
    return KAGGLE_WORKING / "submissions" if on_kaggle() else PROJECT / "submissions"


def find_competition() -> Path | None:
    """Find the competition's data: Kaggle's input folder, else ``data/`` in the project.

    Returns
    -------
    Path or None
        The folder that holds ``test.csv``; None where there is no such folder.
    """
    roots = [KAGGLE_INPUT, KAGGLE_INPUT / "competitions", PROJECT / "data"]
    candidates = [root / COMPETITION for root in roots] + [PROJECT / "data"]
    return next((folder for folder in candidates if (folder / "test.csv").is_file()), None)


def competition_folder(competition_dir: str | Path | None) -> Path | None:
    """The folder that is named, else the one that `find_competition` finds."""
    return resolve(competition_dir) if competition_dir else find_competition()


def walk_small_folders(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walk as os.walk does, but not into the thousands of files of a competition's images or of a cache.

    Yields
    ------
    folder : Path
    names : list of str
        Of the folders in it that are walked next; take some away to leave them out.
    files : list of str
    """
    for folder, names, files in os.walk(root):
        is_cache = any(name.endswith("_manifest.csv") for name in files)
        names[:] = [] if is_cache else sorted(name for name in names if not name.endswith("_images"))
        yield Path(folder), names, files


def is_from_kit(folder: Path, mark: str = KIT_FILE) -> bool:
    """Tell whether `utils.bundle` wrote a folder, as the file ``mark`` in it says."""
    try:
        return read_json(folder / mark)["name"] == KIT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def resolve(path: str | Path) -> Path:
    """Make a notebook's path parameter absolute; a relative one starts where the notebook was called.

    papermill keeps the caller's folder as the kernel's, so ``-p cache_dir outputs/cache`` means what a shell would mean.
    """
    return Path(path).expanduser().resolve()


def cpu_count() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def pick_device(number: int = 0):
    """Pick a GPU if one works, else the CPU.

    ``torch.cuda.is_available()`` says True on GPUs that the installed torch no longer supports (Kaggle's P100), so an
    operation is tried.

    Parameters
    ----------
    number : int
        Of the GPU, modulo how many there are.

    Returns
    -------
    torch.device
    """
    import torch

    if torch.cuda.is_available():
        device = torch.device("cuda", number % max(1, torch.cuda.device_count()))
        try:
            try_gpu(device)
            torch.cuda.set_device(device)
            return device
        except RuntimeError as error:
            print(f"The GPU does not work with torch {torch.__version__} ({str(error).splitlines()[0]}): using the CPU.")
            print("On Kaggle, choose the accelerator 'GPU T4 x2' in the notebook's settings.")
    return torch.device("cpu")


def try_gpu(device) -> None:
    """Compute something on a GPU; raises torch's RuntimeError where it does not work."""
    import torch

    torch.ones(8, device=device).mul(2).sum().item()


def pick_devices() -> list:
    """Pick all GPUs if they work, else the CPU.

    Returns
    -------
    list of torch.device
    """
    import torch

    first = pick_device()
    return [torch.device("cuda", number) for number in range(torch.cuda.device_count())] if first.type == "cuda" else [first]


@contextlib.contextmanager
def write_atomic(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``, and rename it to ``path`` if the block succeeds.

    Readers see the old file or the whole new one, never a part.

    Yields
    ------
    Path
        Where to write; same suffix as ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes files that only their owner may read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, content: dict) -> None:
    """Write a dictionary as indented JSON, atomically."""
    with write_atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_csv(path: str | Path, table) -> None:
    """Write a DataFrame as CSV without its index, atomically."""
    with write_atomic(path) as temporary:
        table.to_csv(temporary, index=False)


def read_json(path: str | Path) -> dict:
    """Read a JSON file."""
    return json.loads(Path(path).read_text())


def versions() -> dict[str, str]:
    """Versions of Python, of the packages that shape a result, and the project's git commit, for provenance."""
    found = {"python": platform.python_version(), "commit": _git_commit()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _git_commit() -> str:
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        bundled = PROJECT / KIT_FILE  # in the zip for Kaggle, where there is no git
        return read_json(bundled)["commit"] if bundled.is_file() else "unknown"
