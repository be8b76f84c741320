"""Where data and outputs are, on Kaggle or at home, and atomic reading and writing of files."""

import contextlib
import json
import os
import platform
import random
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

import numpy as np

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

COMPETITION = "rsna-breast-cancer-detection"
KIT = "mammography-kit"
KIT_FILE = "kit.json"  # marks the kit's own Kaggle datasets; contains name, version and commit
PROJECT = Path(__file__).resolve().parents[2]
KAGGLE_INPUT = Path("/kaggle/input")
KAGGLE_WORKING = Path("/kaggle/working")
LONGEST_STEM = 40  # characters of a file's stem that its temporary name repeats
TEMPORARY_NAME = re.compile(r"\.(?P<stem>.*)-[0-9a-f]{8}-part(\.[^.]*)?", re.DOTALL)
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
    """Base of all errors that a user can fix; a notebook shows the message without the traceback."""

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows instead of the traceback."""
        return [f"{type(self).__name__}: {self}"]


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
    """
    return Path(path).expanduser().resolve()


def cpu_count() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def pick_device(number: int = 0):
    """Return an NVIDIA GPU if one works, else the CPU; Apple's MPS is not used.

    ``torch.cuda.is_available()`` is True even on GPUs that torch no longer supports (Kaggle's P100), so this tries an
    operation.

    Parameters
    ----------
    number : int
        Index of the GPU, modulo the number of GPUs.

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
    """Compute something on a GPU; raise torch's RuntimeError if that fails."""
    import torch

    torch.ones(8, device=device).mul(2).sum().item()


def pick_devices() -> list:
    """Return all GPUs as a list of ``torch.device`` if they work, else the CPU alone."""
    import torch

    first = pick_device()
    return [torch.device("cuda", number) for number in range(torch.cuda.device_count())] if first.type == "cuda" else [first]


@contextlib.contextmanager
def write_atomic(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path next to ``path``, and rename it to ``path`` if the block succeeds.

    Readers see the old file or the complete new one, even after a power cut. The file gets the usual permissions (umask).
    If the process is killed in the block, its temporary file stays until the next write to ``path`` or `remove_leftovers`.

    Parameters
    ----------
    path : path
    sync : bool
        Delete leftovers first, and wait until the file is on disk. Set it to False for many small files whose reader checks
        their size: a power cut may then truncate them.

    Yields
    ------
    Path
        Where to write; same suffix as ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = path.stem[:LONGEST_STEM]  # file systems limit a name's length
    if sync:
        remove_leftovers(path.parent, stem)
    temporary = path.with_name(f".{stem}-{secrets.token_hex(4)}-part{path.suffix}")
    try:
        with open(temporary, "xb") as file:
            _mark_as_in_use(file)
            yield temporary
            if sync:
                with open(temporary, "r+b") as written:
                    os.fsync(written)
            if fcntl is None:
                file.close()  # Windows can't rename an open file
            temporary.replace(path)
        if sync:
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_folder(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder next to ``folder``, and move it to ``folder`` if the block succeeds.

    ``folder`` is then replaced if it exists; if the block fails, it stays as it was.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        complete = Path(temporary) / folder.name
        complete.mkdir()
        yield complete
        if folder.exists():
            shutil.rmtree(folder)
        complete.rename(folder)


def remove_leftovers(folder: str | Path, stem: str = "") -> None:
    """Delete temporary files that `write_atomic` left behind when its process was killed.

    A living process holds a lock on its file, and the system releases the lock when the process ends. On systems without
    such locks (Windows, some network drives) leftovers stay.

    Parameters
    ----------
    folder : path
    stem : str
        Stem of the intended file; empty for all files.
    """
    if fcntl is None:
        return
    for path in Path(folder).glob(".*-part*"):
        name = TEMPORARY_NAME.fullmatch(path.name)
        if name and stem in ("", name["stem"]):
            with contextlib.suppress(OSError), open(path, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _mark_as_in_use(file: BinaryIO) -> None:
    with contextlib.suppress(OSError):  # some network drives have no locks
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync_folder(folder: Path) -> None:
    """Wait until the folder's directory entries are on disk."""
    with contextlib.suppress(OSError):  # Windows can't open a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def link_or_copy(file: Path, target: Path, copy: bool = False) -> None:
    """Link or copy a file to ``target``, replacing what is there; raise KitError if the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if copy:
        with write_atomic(target) as temporary:
            shutil.copyfile(file, temporary)
        return
    target.unlink(missing_ok=True)
    try:
        target.symlink_to(file)
    except OSError as error:
        raise KitError(f"{target} can't be linked to {file} ({error.strerror}): copy instead (--copy).") from error


def write_json(path: str | Path, content: dict) -> None:
    """Write a dictionary as indented JSON, atomically; raise ValueError on NaN or infinity."""
    with write_atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_csv(path: str | Path, table) -> None:
    """Write a DataFrame as CSV without its index, atomically."""
    with write_atomic(path) as temporary:
        table.to_csv(temporary, index=False, errors="backslashreplace")  # a folder's name may not be valid Unicode


def read_json(path: str | Path) -> dict:
    """Read a JSON file.

    Raises
    ------
    ValueError
        If it is not JSON, or a field occurs twice in an object, which ``json`` would accept silently.
    """
    return json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_object_of)


def _object_of(pairs: list[tuple[str, object]]) -> dict:
    content = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"the field {name} occurs twice")
        content[name] = value
    return content


def read_picture(path: str | Path, flags: int) -> np.ndarray | None:
    """Decode an image file like ``cv2.imread``; return None if it is unreadable.

    On Windows, imread fails on paths that are not ASCII; on paths that are not Unicode it crashes.
    """
    import cv2

    with contextlib.suppress(OSError, cv2.error):
        return cv2.imdecode(np.fromfile(path, dtype=np.uint8), flags)
    return None


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
