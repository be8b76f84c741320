"""A run's folder as an object: its configuration, its finished folds and their predictions."""

import contextlib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from pathlib import Path

import pandas as pd

from utils.core.files import read_json
from utils.core.formats import as_object, build, check, check_types, naming
from utils.runs.config import TrainConfig
from utils.runs.errors import REMEDY, TrainingError
from utils.runs.leaks import LeakError, check_patients_whole, refuse_seen
from utils.runs.starts import read_start, start_files
from utils.runs.tables import (
    HISTORY_COLUMNS,
    LOGIT_TOLERANCE,
    check_predicted,
    read_extra_patients,
    read_folds,
    read_history_table,
    read_marks,
    read_oof,
)

FOLD = re.compile("fold(0|[1-9][0-9]*)")
SMOKE_RUNS = "runs-smoke"  # default folder of smoke tests: see utils.core.folders.runs_dir


@dataclass(frozen=True)
class RunNotes:
    """The fields of config.json next to the `TrainConfig`: the run's training data, and the versions that it used.

    Parameters
    ----------
    prevalence : float
        Share of positive breasts in the training table.
    settings_hash : str
        Hash of the preprocessing.
    data_hash : str
        From `utils.runs.folder.hash_data`; empty if an earlier version wrote the run.
    phantom, smoke_test : bool
        Whether the run only shows that everything works. `Run.notes` recognises a smoke test of an earlier version by its
        folder.
    extra_sets : dict of str to int
        Number of training images of each other set.
    versions : dict of str to str
        From `utils.runs.code.code_versions`.
    """

    prevalence: float
    settings_hash: str = ""
    data_hash: str = ""
    phantom: bool = False
    smoke_test: bool = False
    extra_sets: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        """Check types and the range of the prevalence: training needs both classes."""
        check_types(self)
        check(0 < self.prevalence < 1, "prevalence", self.prevalence, "between 0 and 1")


NOTES = tuple(entry.name for entry in fields(RunNotes))


class Run:
    """A run's folder; everything read from it is checked.

    Every reader raises `utils.runs.errors.TrainingError`, naming the file, the field and the remedy, if a file is missing or
    broken, or was not written by this version of the kit.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @cached_property
    def config(self) -> TrainConfig:
        """The configuration."""
        with self._reading_config() as content:
            return TrainConfig.from_json({name: value for name, value in content.items() if name not in NOTES})

    @cached_property
    def notes(self) -> RunNotes:
        """The fields of config.json next to the configuration."""
        with self._reading_config() as content:
            found = {name: content[name] for name in NOTES if name in content}
            is_in_smoke_runs = SMOKE_RUNS in self.folder.resolve().parts
            return build(RunNotes, {"smoke_test": is_in_smoke_runs} | found)

    @contextlib.contextmanager
    def _reading_config(self) -> Iterator[dict]:
        path = self.folder / "config.json"
        if not path.is_file():
            raise TrainingError(f"{self.folder} is not a run folder (it has no config.json): run train.ipynb first.")
        with naming(path, TrainingError, REMEDY):
            yield as_object(read_json(path))

    def finished_folds(self) -> list[Path]:
        """List the folders of finished folds, by number; an unfinished fold has weights, but no ``oof.csv``."""
        return self.folds_with("oof.csv")

    def folds_with(self, name: str) -> list[Path]:
        """List the folders of folds that contain a file (a path relative to the fold's folder), by number.

        A copy such as ``fold0_backup``, or ``fold7`` in a run of four folds, is not a fold. If the configuration is
        unreadable, every number counts.
        """
        n_folds = math.inf
        with contextlib.suppress(TrainingError):
            n_folds = self.config.n_folds
        folders = [folder for folder in self.folder.glob("fold*") if (folder / name).is_file()]
        numbered = {int(found[1]): folder for folder in folders if (found := FOLD.fullmatch(folder.name))}
        return [numbered[number] for number in sorted(numbered) if number < n_folds]

    def usable_folds(self) -> list[Path]:
        """List the folders of finished folds; refuse folds whose predictions are broken, or not those of the run."""
        folders, path = self.finished_folds(), self.folder / "oof.csv"
        if path.is_file():
            self._check_collected(read_oof(path))  # also reads each fold's
        else:
            for fold_dir in folders:
                read_fold_oof(fold_dir / "oof.csv")
        return folders

    def patients(self) -> pd.DataFrame:
        """Read the fold that held out each patient: patient_id (str), fold (int)."""
        return read_folds(self.folder)

    def fold_of(self, patients: pd.Series) -> pd.Series:
        """Return the fold that held out each patient; NaN for patients who are in none."""
        return patients.map(self.patients().set_index("patient_id").fold)

    def trained_patients(self, fold: int) -> set[str]:
        """Return the patients who trained a fold's model: those of other folds, extra sets, and runs that it started from."""
        folds, start = self.patients(), read_start(self.folder / f"fold{fold}")
        inside = folds.patient_id[folds.fold != fold]
        return {*inside, *read_extra_patients(self.folder), *(start.seen if start else ())}

    def check_unseen(self, fold: int, patients: Iterable[str]) -> None:
        """Refuse to score a fold's model on patients who trained it; raise LeakError that names the first."""
        refuse_seen(patients, self.trained_patients(fold), f"{self.folder}: the model of fold {fold}")

    def oof(self) -> pd.DataFrame:
        """Read the out-of-fold predictions, and check that they are out of fold.

        Returns
        -------
        DataFrame
            As from `utils.runs.tables.read_oof`.

        Raises
        ------
        LeakError
            If a patient is in two folds or trained the model that predicts them, or a breast has two labels.
        """
        files = [self.folder / name for name in ("oof.csv", "folds.csv", "extra.csv")]
        files += [*start_files(self.folder), *(fold_dir / "oof.csv" for fold_dir in self.finished_folds())]
        changed = tuple(file.stat().st_mtime_ns for file in files if file.is_file())
        return _read_oof_once(self.folder, changed).copy()

    def _check_collected(self, oof: pd.DataFrame) -> None:
        """Refuse predictions that differ from the folds': a fold was trained again, or the table was cut or changed.

        The table may lack folds that another process has finished since.
        """
        for fold_dir in self.finished_folds():
            own = read_fold_oof(fold_dir / "oof.csv")
            collected = oof[oof.fold == own.fold.iloc[0]]
            both = own.merge(collected, on=["prediction_id", "image_id", "cancer"])
            same = len(both) == len(own) == len(collected) and (both.logit_x - both.logit_y).abs().max() <= LOGIT_TOLERANCE
            if len(collected) and not same:
                raise TrainingError(
                    f"{self.folder / 'oof.csv'}: its rows of fold {own.fold.iloc[0]} are not those of {fold_dir / 'oof.csv'}."
                    " Run train.ipynb with this run_dir to collect the folds again."
                )

    def history(self) -> pd.DataFrame:
        """Read each fold's metrics so far, one row per fold and epoch."""
        tables = [read_history_table(fold_dir / "history.csv") for fold_dir in self.folds_with("history.csv")]
        return pd.concat(tables) if tables else pd.DataFrame(columns=HISTORY_COLUMNS)

    def marks(self) -> pd.DataFrame:
        """Read the boxes that the run predicted out of fold, one per image; see `utils.runs.tables.read_marks`."""
        return read_marks(self.folder)


def read_fold_oof(path: Path) -> pd.DataFrame:
    """Read the predictions of one finished fold; raise TrainingError if they are broken or of another fold."""
    fold_dir = path.parent
    number = int(fold_dir.name.removeprefix("fold"))
    table = read_oof(path)
    with naming(path, TrainingError, f"Delete {fold_dir} and run train.ipynb with this run_dir to train the fold again."):
        for fold in table.fold.unique().tolist():
            check(fold == number, "fold", fold, f"that of its folder ({number})")
    return table


@lru_cache(maxsize=16)
def _read_oof_once(folder: Path, _changed: tuple[int, ...]) -> pd.DataFrame:
    """Read and check a run; the result is cached until its files change."""
    run, path = Run(folder), folder / "oof.csv"
    oof = read_oof(path)
    check_patients_whole(oof, path)
    for fold, rows in oof.groupby("fold"):
        run.check_unseen(fold, rows.patient_id)
    labels = oof.groupby("prediction_id").cancer.nunique()
    if (labels > 1).any():
        raise LeakError(f"{path}: breast {labels.index[labels > 1][0]} has two labels. Correct train.csv, and train again.")
    check_predicted(oof, run.patients(), path)
    run._check_collected(oof)
    return oof
