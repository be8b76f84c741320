"""The tables of a run folder (oof.csv, folds.csv, history.csv, boxes.csv, extra.csv), read and checked."""

from pathlib import Path

import numpy as np
import pandas as pd

from utils.core.formats import FormatError, naming
from utils.metrics.scores import sigmoid
from utils.runs.errors import REMEDY, TrainingError
from utils.tables.boxes import BOXES_FILE, CORNERS
from utils.tables.folds import MOST_FOLDS

OOF_COLUMNS = ["prediction_id", "patient_id", "laterality", "image_id", "fold", "cancer", "logit", "probability"]
FOLD_COLUMNS = ["patient_id", "fold"]
PROBE_FILE = "probe.csv"  # like oof.csv, from a logistic regression on the encoder's features before training
MARK_COLUMNS = ["image_id", "fold", *CORNERS]
EXTRA_COLUMNS = ["extra_set", "patient_id", "image_id", "cancer"]
HISTORY_COLUMNS = ["fold", "epoch"]
IDS = ["prediction_id", "patient_id", "laterality", "image_id"]
LARGEST = {"fold": MOST_FOLDS, "epoch": 10**6, "cancer": 1}  # columns of whole numbers from 0
LOGIT_TOLERANCE = 1e-4  # between a probability and the sigmoid of its logit
SHOWN = 3


def read_oof(path: str | Path) -> pd.DataFrame:
    """Read an out-of-fold table of a run, or of one of its folds.

    Returns
    -------
    DataFrame
        `OOF_COLUMNS`: ids are text, ``image_id`` is empty for breast-level models, ``fold`` and ``cancer`` are int.

    Raises
    ------
    TrainingError
        If a column is missing or unknown, there are no rows, an id is empty, a row occurs twice, a label is not 0 or 1, a
        probability is not in [0, 1] or not the sigmoid of its logit, or a breast has two patients or lateralities.
    """
    with naming(path, TrainingError, REMEDY):
        table = read_run_table(path, OOF_COLUMNS)
        unknown = [column for column in table.columns if column not in OOF_COLUMNS]
        if unknown:
            raise FormatError(f"it has the unknown columns {', '.join(unknown)}.")
        if table.empty:
            raise FormatError("it has no rows: the run predicted nothing.")
        _refuse(~table.laterality.isin(["L", "R"]), table, "laterality", "L or R")
        logit, probability = _numbers(table, "logit"), _numbers(table, "probability")
        _refuse(~np.isfinite(logit), table, "logit", "a finite number")
        _refuse(~((probability >= 0) & (probability <= 1)), table, "probability", "from 0 to 1")
        differs = np.abs(sigmoid(logit) - probability) > LOGIT_TOLERANCE
        _refuse(differs, table, "probability", "the sigmoid of the row's logit")
        repeated = table.duplicated(["prediction_id", "image_id"], keep=False)
        _refuse(repeated, table, "prediction_id", "in one row for each image, or in one row where image_id is empty")
        empty = table.image_id == ""
        _refuse(empty & ~empty.all(), table, "image_id", "given in every row or in none")
        breasts = table.groupby("prediction_id")
        for column, owner in {"patient_id": "patient", "laterality": "laterality"}.items():
            _refuse(breasts[column].transform("nunique") > 1, table, "prediction_id", f"of one {owner}")
    return table


def read_folds(run_dir: str | Path) -> pd.DataFrame:
    """Read the fold that held out each patient: patient_id (str), fold (int); raise TrainingError if unusable."""
    path = Path(run_dir) / "folds.csv"
    if not path.is_file():
        raise TrainingError(f"{path} is missing: without it, it is unknown which model saw which patient. Train the run again.")
    with naming(path, TrainingError, REMEDY):
        table = read_run_table(path, FOLD_COLUMNS)
        _refuse(table.patient_id.duplicated(keep=False), table, "patient_id", "in one row and one fold")
    return table


def check_predicted(oof: pd.DataFrame, folds: pd.DataFrame, path: str | Path) -> None:
    """Refuse predictions of patients who are in no fold, and finished folds that lack predictions."""
    strange = oof.patient_id[~oof.patient_id.isin(folds.patient_id)].unique().tolist()
    held_out = folds.patient_id[folds.fold.isin(oof.fold)]
    lost = held_out[~held_out.isin(oof.patient_id)].tolist()
    with naming(path, TrainingError, REMEDY):
        if strange:
            raise FormatError(f"{len(strange)} of its patients are not in folds.csv, first {', '.join(strange[:SHOWN])}.")
        if lost:
            raise FormatError(f"it lacks {len(lost)} patients of its folds, first {', '.join(lost[:SHOWN])}.")


def read_history_table(path: str | Path) -> pd.DataFrame:
    """Read a history.csv: one row per fold and epoch.

    Raises
    ------
    TrainingError
        If ``fold`` or ``epoch`` is missing, or a value is not a number.
    """
    with naming(path, TrainingError, REMEDY):
        table = read_run_table(path, HISTORY_COLUMNS)
        for column in table.columns:
            _refuse(np.isnan(_numbers(table, column)) & table[column].notna(), table, column, "a number, or empty")
        _refuse(table.duplicated(HISTORY_COLUMNS, keep=False), table, "epoch", "in one row of each fold")
    return table


def read_marks(run_dir: str | Path) -> pd.DataFrame:
    """Read the boxes that a run predicted out of fold, one per image, in pixels of the stored images.

    Columns: image_id (str), fold (int), x_min, y_min, x_max, y_max (float).
    """
    path = Path(run_dir) / BOXES_FILE
    if not path.is_file():
        raise TrainingError(f"{path} is missing: the run predicted no boxes (box_weight 0), or lost them. {REMEDY}")
    with naming(path, TrainingError, REMEDY):
        table = read_run_table(path, MARK_COLUMNS)
        _refuse(table.image_id == "", table, "image_id", "text")
        _refuse(table.image_id.duplicated(keep=False), table, "image_id", "in one row")
        for column in CORNERS:
            values = _numbers(table, column)
            _refuse(~np.isfinite(values), table, column, "a finite number")
            table[column] = values
        for side in ("x", "y"):
            _refuse(table[f"{side}_max"] < table[f"{side}_min"], table, f"{side}_max", f"{side}_min or more")
    return table[MARK_COLUMNS]


def read_extra_patients(run_dir: str | Path) -> list[str]:
    """Return the patients of other sets who trained every fold; raise TrainingError if extra.csv is broken."""
    path = Path(run_dir) / "extra.csv"
    if not path.is_file():
        return []
    with naming(path, TrainingError, REMEDY):
        return read_run_table(path, EXTRA_COLUMNS).patient_id.unique().tolist()


def read_run_table(path: str | Path, columns: list[str]) -> pd.DataFrame:
    """Read a table of a run folder that has at least these columns; ids are text, and those in `LARGEST` whole numbers."""
    table = pd.read_csv(path, dtype=dict.fromkeys(IDS, str), keep_default_na=False, na_values=[""])  # an id may be "NA"
    repeated = [column for column in columns if f"{column}.1" in table]  # pandas renames the second one so
    if repeated:
        raise FormatError(f"it has the columns {', '.join(repeated)} twice.")
    missing = [column for column in columns if column not in table]
    if missing:
        raise FormatError(f"it lacks the columns {', '.join(missing)}.")
    if not isinstance(table.index, pd.RangeIndex):  # pandas makes surplus values the index
        raise FormatError("its rows have more values than there are columns.")
    table = table.fillna(dict.fromkeys(table.columns.intersection(IDS), ""))
    for column in ("prediction_id", "patient_id"):
        if column in columns:
            _refuse(table[column] == "", table, column, "text")
    for column, largest in LARGEST.items():
        if column in columns:
            values = _numbers(table, column)
            is_right = (values >= 0) & (values <= largest) & (values == np.floor(values))
            _refuse(~is_right, table, column, f"a whole number from 0 to {largest}")
            table[column] = values.astype(np.int64)
    return table


def _numbers(table: pd.DataFrame, column: str) -> np.ndarray:
    """Return values as float64; NaN if they are empty, boolean, or not a number."""
    values = table[column]
    if pd.api.types.is_bool_dtype(values):
        return np.full(len(values), np.nan)
    return pd.to_numeric(values, errors="coerce").to_numpy(dtype=float, na_value=np.nan)


def _refuse(bad: np.ndarray | pd.Series, table: pd.DataFrame, column: str, wanted: str) -> None:
    """Refuse a table with bad rows; the message names the first by its line in the file."""
    rows = np.flatnonzero(bad)
    if len(rows):
        value = table[column].iloc[rows[0]]
        raise FormatError(f"{column} is {value!s:.40} in line {rows[0] + 2}, but must be {wanted} ({len(rows)} such rows).")
