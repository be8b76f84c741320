"""Find the runs to use: those that are named, else all finished ones."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from utils.core.folders import KAGGLE_INPUT, named_folder, runs_dir, walk_small_folders
from utils.runs.errors import PredictionError, TrainingError
from utils.runs.run import SMOKE_RUNS, Run

SKIPPED_FOLDERS = ("runs-phantom", SMOKE_RUNS, "demo")  # folders of runs that only show that everything works


def find_runs(run_dirs: str | Sequence[str] | None = None) -> list[Path]:
    """Find finished runs: those named, else all real ones in the working folder and, on Kaggle, the attached inputs.

    A run is not real if it was a smoke test, or is in one of `SKIPPED_FOLDERS`.

    Parameters
    ----------
    run_dirs : str, sequence of str, or None
        Folders, as a list or as a comma-separated text.

    Returns
    -------
    list of Path
        Each contains an ``oof.csv``; empty only if nothing was named and nothing found.

    Raises
    ------
    KitError
        If a named folder does not exist, or contains no finished run.
    """
    if not run_dirs:
        return [run for root in (runs_dir(), KAGGLE_INPUT) for run in runs_under(root) if not _is_smoke_test(run)]
    names = run_dirs.split(",") if isinstance(run_dirs, str) else run_dirs
    runs = [named_folder(name.strip(), "run_dirs") for name in names if name.strip()]
    for run in runs:
        if not (run / "oof.csv").is_file():
            raise PredictionError(f"{run} contains no finished run (no oof.csv): let train.ipynb finish it, or leave it out.")
    return runs


def _is_smoke_test(run: Path) -> bool:
    """True if a run says that it was a smoke test; False if it is unreadable, which its reader refuses."""
    with contextlib.suppress(TrainingError):
        return Run(run).notes.smoke_test
    return False


def runs_under(root: Path) -> list[Path]:
    """List finished runs in a folder and its subfolders."""
    return folders_with({"oof.csv", "config.json"}, root)


def folders_with(wanted: set[str], root: Path) -> list[Path]:
    """List folders under ``root`` that contain the ``wanted`` files, except in `SKIPPED_FOLDERS`."""
    found = []
    for folder, names, files in walk_small_folders(root):
        names[:] = [name for name in names if name not in SKIPPED_FOLDERS]
        if wanted <= set(files):
            found.append(folder)
    return sorted(found)


def name_runs(run_dirs: Sequence[Path]) -> dict[str, Path]:
    """Name runs by their folders, or by their paths if two folders have the same name."""
    names = [run.name for run in run_dirs]
    return {run.name if names.count(run.name) == 1 else str(run): run for run in run_dirs}
