"""Which folders of a run are its folds, and whether it was a smoke test. It needs no torch: bundles are checked without."""

import contextlib
import math
import re
from pathlib import Path

from utils.core.environment import read_json
from utils.core.formats import is_whole

FOLD = re.compile("fold(0|[1-9][0-9]*)")
SMOKE_RUNS = "runs-smoke"  # folder of smoke tests that get no run_dir: see utils.core.environment.runs_dir


def fold_folders(run_dir: str | Path, name: str) -> list[Path]:
    """List the folders of a run's folds that hold a file, by number.

    A copy that someone keeps there is not a fold: ``fold0_backup``, or ``fold7`` in a run of four.

    Parameters
    ----------
    run_dir : path
    name : str
        Of the file, as ``oof.csv``, which a fold has when it is finished.
    """
    folders = [path.parent for path in Path(run_dir).glob(f"fold*/{name}") if path.is_file()]
    numbered = {int(found[1]): folder for folder in folders if (found := FOLD.fullmatch(folder.name))}
    n_folds = _n_folds(Path(run_dir))
    return [numbered[number] for number in sorted(numbered) if number < n_folds]


def is_smoke_test(run_dir: str | Path) -> bool:
    """Tell whether a run was a smoke test: config.json says so; if it is of an earlier version, its folder does.

    Raises
    ------
    ValueError
        If config.json can't be read.
    """
    content = read_json(Path(run_dir) / "config.json")
    if not isinstance(content, dict):
        raise ValueError("it holds no object")
    return bool(content.get("smoke_test", SMOKE_RUNS in Path(run_dir).resolve().parts))


def _n_folds(run_dir: Path) -> float:
    """Number of a run's folds; infinite if its configuration can't be read, which its reader refuses."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        n_folds = read_json(run_dir / "config.json")["n_folds"]
        if is_whole(n_folds):
            return n_folds
    return math.inf
