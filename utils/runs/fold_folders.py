"""Which subfolders of a run are its folds, and whether the run was a smoke test."""

import contextlib
import math
import re
from pathlib import Path

from utils.core.environment import read_json
from utils.core.formats import is_whole

FOLD = re.compile("fold(0|[1-9][0-9]*)")
SMOKE_RUNS = "runs-smoke"  # default folder of smoke tests: see utils.core.environment.runs_dir


def fold_folders(run_dir: str | Path, name: str) -> list[Path]:
    """List the folders of a run's folds that contain a file, by number.

    A copy such as ``fold0_backup``, or ``fold7`` in a run of four folds, is not a fold.

    Parameters
    ----------
    run_dir : path
    name : str
        Name of the file; a finished fold has ``oof.csv``.
    """
    folders = [path.parent for path in Path(run_dir).glob(f"fold*/{name}") if path.is_file()]
    numbered = {int(found[1]): folder for folder in folders if (found := FOLD.fullmatch(folder.name))}
    n_folds = _n_folds(Path(run_dir))
    return [numbered[number] for number in sorted(numbered) if number < n_folds]


def is_smoke_test(run_dir: str | Path) -> bool:
    """True if a run was a smoke test, by its config.json; if an earlier version wrote it, by its folder.

    Raises
    ------
    ValueError
        If config.json is unreadable.
    """
    content = read_json(Path(run_dir) / "config.json")
    if not isinstance(content, dict):
        raise ValueError("it holds no object")
    return bool(content.get("smoke_test", SMOKE_RUNS in Path(run_dir).resolve().parts))


def _n_folds(run_dir: Path) -> float:
    """Return the number of a run's folds; infinite if its configuration is unreadable, which `Run` refuses."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        n_folds = read_json(run_dir / "config.json")["n_folds"]
        if is_whole(n_folds):
            return n_folds
    return math.inf
