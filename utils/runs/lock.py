"""Locks that let only one process write into a run folder: one lock per fold, and one for the run's tables.

The process that writes a fold's files holds the fold's lock. The lock ends with that process, even if it is killed.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from utils.runs.errors import TrainingError

# Seconds. A killed training's lock is free once its loading processes have noticed, with torch after 5 seconds.
PATIENCE_FOR_FOLD = 10.0
PATIENCE_FOR_RUN = 60.0  # writing or joining a few tables takes less


@dataclass(frozen=True)
class FoldLock:
    """A lock that this process holds."""

    path: Path
    identity: tuple[int, int]

    def check(self) -> None:
        """Check that the lock still excludes others; raise TrainingError if the run folder was deleted or replaced."""
        if _identity(self.path) != self.identity:
            raise TrainingError(
                f"{self.path.parent} was deleted or replaced during its training. This training stops, since another one may"
                " have begun there."
            )


@contextlib.contextmanager
def training(fold_dir: Path) -> Iterator[FoldLock]:
    """Keep other trainings out of a fold's folder.

    The lock file is outside that folder, so that it also holds if someone deletes the folder to train it again.

    Raises
    ------
    TrainingError
        If another process trains this fold, or the disk does not support locks.
    """
    path = fold_dir.parent / f".{fold_dir.name}.lock"
    busy = (
        f"Another process is training {fold_dir}. Wait until it ends, or stop it: a notebook's kernel keeps running when"
        " its page is closed. To train both, choose another run_dir for one of them."
    )
    with _locked(path, PATIENCE_FOR_FOLD, busy):
        yield FoldLock(path, _identity(path))


@contextlib.contextmanager
def changing(run_dir: Path) -> Iterator[None]:
    """Keep other processes from claiming a run folder, or from collecting its folds, at the same time.

    Raises
    ------
    TrainingError
        If another process does so for a minute, or the disk does not support locks.
    """
    busy = f"Another process has been writing the tables of {run_dir} for {PATIENCE_FOR_RUN:.0f} s. Stop it, and run again."
    with _locked(run_dir / ".run.lock", PATIENCE_FOR_RUN, busy):
        yield


@contextlib.contextmanager
def _locked(path: Path, seconds: float, busy: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=seconds)
    except Timeout:
        raise TrainingError(busy) from None
    except (OSError, NotImplementedError) as error:  # older versions of filelock raise the second without lock support
        raise TrainingError(
            f"{path} can't be locked ({error}). Choose a run_dir that is writable, on a disk with file locks, such as a"
            " local one."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino
