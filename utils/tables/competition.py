"""The competition's tables, read and checked, and the paths of its images."""

from pathlib import Path

import numpy as np
import pandas as pd

from utils.tables.strict_csv import TableError, read_table

# All other columns are text, ids too: they name files, and nothing is ever computed from them.
NUMBERS = {
    "site_id": "int64",
    "age": "float64",
    "cancer": "int64",
    "implant": "int64",
    "machine_id": "int64",
    "biopsy": "float64",
    "invasive": "float64",
    "BIRADS": "float64",
}
SHARED_COLUMNS = ["site_id", "patient_id", "image_id", "laterality", "view", "age", "implant", "machine_id"]
FILE_IDS = ["patient_id", "image_id"]
REQUIRED = {
    "train": [*SHARED_COLUMNS, "cancer"],
    "test": [*SHARED_COLUMNS, "prediction_id"],
}
ID_PATTERN = r"[A-Za-z0-9_.-]*[A-Za-z0-9_-][A-Za-z0-9_.-]*"  # a plain file name: no separator, not "." or ".."
LONGEST_ID = 200  # characters of an id that names files; file systems take 255 bytes, suffixes included
LARGEST_NUMBER = 2**53 - 1  # float64 represents every integer up to here
SHOWN_ROWS = 3
SHOWN_CHARACTERS = 120  # of a value


def read_images(competition_dir: str | Path, split: str) -> pd.DataFrame:
    """Read and check train.csv or test.csv: one row per image.

    Parameters
    ----------
    competition_dir : path
        Folder of the CSVs.
    split : {"train", "test"}

    Returns
    -------
    DataFrame
        The file's rows in its order. Ids are str, ``cancer`` is int, ``age`` is float with NaN where missing.
        ``prediction_id`` is patient and laterality in a train table, and the file's own in a test table.
        A test table keeps rows whose ids can't name a file, since they must not cost the others their predictions. `name_files`
        finds them, and `utils.images.cache.build_cache` records them as unreadable.

    Raises
    ------
    TableError
        If `read_table` refuses the file, or it has no rows; a column is missing or badly typed; an id is repeated; an id of a
        train table is empty or can't name a file; a laterality is not L or R; a label is not 0 or 1; a breast has two labels;
        or a prediction_id has two patients.
    """
    path = Path(competition_dir) / f"{split}.csv"
    images = _read_csv(path, REQUIRED[split], NUMBERS)
    if split == "train":
        _check_ids(images, path, FILE_IDS)
        for column in FILE_IDS:
            rule = f"must have at most {LONGEST_ID} characters, since it names files"
            _reject(images, images[column].str.len() > LONGEST_ID, path, column, rule)
    images = images.fillna(dict.fromkeys(FILE_IDS, ""))
    named = name_files(images)
    repeated = named & images.image_id.where(named).duplicated(keep=False)
    _reject(images, repeated, path, "image_id", "is repeated; keep one row per image")
    _reject(images, ~images.laterality.isin(["L", "R"]), path, "laterality", "must be L or R")
    if split == "train":
        images["prediction_id"] = images.patient_id + "_" + images.laterality
        _reject(images, ~images.cancer.isin([0, 1]), path, "cancer", "must be 0 or 1")
        labels = images.groupby("prediction_id").cancer.transform("nunique")
        _reject(images, labels > 1, path, "cancer", "must be the same for all images of a breast")
    else:
        _check_ids(images, path, ["prediction_id"])
        patients = images.patient_id.where(named).groupby(images.prediction_id).transform("nunique")
        _reject(images, patients > 1, path, "prediction_id", "must belong to one patient")
    return images.reset_index(drop=True)


def read_sample_submission(competition_dir: str | Path) -> pd.DataFrame:
    """Read and check sample_submission.csv: one row per prediction_id.

    Returns
    -------
    DataFrame
        ``prediction_id`` (str, unique) and ``cancer`` (float).

    Raises
    ------
    TableError
        If a column is missing, or an id is empty or repeated.
    """
    path = Path(competition_dir) / "sample_submission.csv"
    sample = _read_csv(path, ["prediction_id", "cancer"], NUMBERS | {"cancer": "float64"})
    _check_ids(sample, path, ["prediction_id"])
    _reject(sample, sample.prediction_id.duplicated(keep=False), path, "prediction_id", "is repeated; keep one row each")
    return sample.reset_index(drop=True)


def image_paths(images: pd.DataFrame, competition_dir: str | Path, split: str) -> list[Path]:
    """Return the paths of the images' DICOM files in Kaggle's layout: ``{split}_images/patient_id/image_id.dcm``."""
    root = Path(competition_dir) / f"{split}_images"
    return [root / patient / f"{image}.dcm" for patient, image in zip(images.patient_id, images.image_id, strict=True)]


def name_files(images: pd.DataFrame) -> pd.Series:
    """Return for each row, as bool, whether patient_id and image_id can name a folder and a file."""
    return images[FILE_IDS].apply(lambda ids: _is_plain(ids) & (ids.str.len() <= LONGEST_ID)).all(axis=1)


def _is_plain(ids: pd.Series) -> pd.Series:
    return ids.str.fullmatch(ID_PATTERN, na=False).astype(bool)


def _read_csv(path: Path, required: list[str], numbers: dict[str, str]) -> pd.DataFrame:
    """Read a table with the columns ``required``, and convert those of ``numbers`` to these dtypes."""
    if not path.is_file():
        raise TableError(f"{path} does not exist; competition_dir must hold train.csv, test.csv and sample_submission.csv.")
    table = read_table(path, required=required)
    if table.empty:
        raise TableError(f"{path} has a header and no rows; download it again.")
    for column, dtype in numbers.items():
        if column in table:
            table[column] = _to_number(table, path, column, dtype)
    return table


def _to_number(table: pd.DataFrame, path: Path, column: str, dtype: str) -> pd.Series:
    """Convert a column to a number; raise TableError if a value is not a number that its type can represent."""
    values = pd.to_numeric(table[column], errors="coerce")
    _reject(table, (values.isna() & table[column].notna()) | np.isinf(values), path, column, "must be a number")
    too_large = (values > LARGEST_NUMBER) | (values < -LARGEST_NUMBER)
    _reject(table, too_large, path, column, f"must be a number between -{LARGEST_NUMBER} and {LARGEST_NUMBER}")
    if dtype == "int64":
        _reject(table, values.isna(), path, column, "must not be empty")
        _reject(table, values % 1 != 0, path, column, "must be a whole number")
    return values.astype(dtype)


def _check_ids(table: pd.DataFrame, path: Path, columns: list[str]) -> None:
    """Raise TableError if an id is not a plain name."""
    for column in columns:
        _reject(table, ~_is_plain(table[column]), path, column, "must be a plain name of letters, digits, '_', '-' and '.'")


def _reject(table: pd.DataFrame, bad: pd.Series | np.ndarray, path: Path, column: str, rule: str) -> None:
    """Raise a TableError that shows the first bad rows, if there are any."""
    bad = np.asarray(bad, dtype=bool)
    if not bad.any():
        return
    # Not repr(), which would show a number's NumPy type.
    first = np.flatnonzero(bad)[:SHOWN_ROWS]
    shown = [f"line {table.index[row]}: '{str(table[column].iloc[row])[:SHOWN_CHARACTERS]}'" for row in first]
    raise TableError(f"{path}, column {column}: {rule}. {bad.sum()} row(s) break this, first {'; '.join(shown)}.")
