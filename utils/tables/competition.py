"""The competition's tables: read, checked, and split into folds by patient."""

import csv
import io
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from utils.core.environment import KitError

# Ids are text: they name files, and nothing is ever computed from them.
DTYPES = {
    "site_id": "int64",
    "patient_id": str,
    "image_id": str,
    "laterality": str,
    "view": str,
    "age": "float64",
    "cancer": "int64",
    "implant": "int64",
    "machine_id": "int64",
    "prediction_id": str,
    "biopsy": "float64",
    "invasive": "float64",
    "BIRADS": "float64",
    "density": str,
    "difficult_negative_case": str,
}
SHARED_COLUMNS = ["site_id", "patient_id", "image_id", "laterality", "view", "age", "implant", "machine_id"]
FILE_IDS = ["patient_id", "image_id"]
REQUIRED = {
    "train": [*SHARED_COLUMNS, "cancer"],
    "test": [*SHARED_COLUMNS, "prediction_id"],
    "sample_submission": ["prediction_id", "cancer"],
}
ID_PATTERN = r"[A-Za-z0-9_.-]*[A-Za-z0-9_-][A-Za-z0-9_.-]*"  # a plain file name: no separator, not "." or ".."
LONGEST_ID = 200  # characters of an id that names files; file systems take 255 bytes, suffixes included
LARGEST_NUMBER = 2**53 - 1  # float64 represents every integer up to here
FOLD_BY = ("patient", "machine")
MOST_FOLDS = 1000
SHOWN_ROWS = 3
SHOWN_CHARACTERS = 120  # of a value


class TableError(KitError, ValueError):
    """A table breaks a rule; the message names the file, the column and the first bad rows."""


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
    images = _read_csv(path, REQUIRED[split])
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
        _check_labels(images, path)
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
    sample = _read_csv(path, REQUIRED["sample_submission"], overrides={"cancer": "float64"})
    _check_ids(sample, path, ["prediction_id"])
    _reject(sample, sample.prediction_id.duplicated(keep=False), path, "prediction_id", "is repeated; keep one row each")
    return sample.reset_index(drop=True)


def breasts(images: pd.DataFrame) -> pd.DataFrame:
    """Reduce a train table to one row per breast.

    Returns
    -------
    DataFrame
        prediction_id, patient_id, laterality, site_id, cancer and fold, as far as ``images`` has them.
    """
    columns = ["prediction_id", "patient_id", "laterality", "site_id", "cancer", "fold"]
    return images[[c for c in columns if c in images]].drop_duplicates("prediction_id").reset_index(drop=True)


def assign_folds(images: pd.DataFrame, n_folds: int, seed: int, fold_by: str = "patient") -> pd.DataFrame:
    """Add an integer column ``fold`` that never splits a patient.

    By patient, folds are stratified by the patient's number of positive breasts (0, 1 or 2) and site, which balances breasts,
    positives and sites.

    Parameters
    ----------
    images : DataFrame
        A train table as from `read_images`.
    n_folds : int
        From 2 to the number of patients, or of groups of machines.
    fold_by : {"patient", "machine"}
        ``machine`` never splits a machine either, which shows what a model is worth on a new machine. Machines that share a
        patient stay together, positives are as balanced as that allows, and ``seed`` has no effect.

    Returns
    -------
    DataFrame
        A copy of ``images`` with ``fold`` in ``range(n_folds)``.

    Raises
    ------
    TableError
        If ``n_folds`` is out of range, or ``fold_by`` is unknown.
    """
    if fold_by not in FOLD_BY:
        raise TableError(f"fold_by is {fold_by!r}; choose from {', '.join(FOLD_BY)}.")
    if fold_by == "machine":
        return _assign_machines(images, n_folds)
    patients = images.groupby("patient_id").agg(site_id=("site_id", "first"))
    patients["positives"] = breasts(images).groupby("patient_id").cancer.sum()
    # A group too small for every fold is balanced by the next one, so similar groups are neighbours.
    patients = patients.sort_values(["positives", "site_id"], kind="stable")
    if not 2 <= n_folds <= len(patients):
        raise TableError(f"n_folds is {n_folds}, but {len(patients)} patients can be split into 2 to {len(patients)} folds.")
    stratum = patients.positives.astype(str) + " at " + patients.site_id.astype(str)
    if stratum.value_counts().max() < n_folds:  # too few patients to stratify at all
        stratum = pd.Series("all", index=patients.index)
    folds = pd.Series(0, index=patients.index)
    from sklearn.model_selection import StratifiedKFold  # late: it takes a second that preprocessing does not need

    splitter = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for fold, (_, held_out) in enumerate(splitter.split(stratum, stratum)):
            folds.iloc[held_out] = fold
    return images.assign(fold=images.patient_id.map(folds).astype("int64"))


def _assign_machines(images: pd.DataFrame, n_folds: int) -> pd.DataFrame:
    """Add a column ``fold`` that splits no machine and no patient."""
    group = _joined_machines(images)
    if not 2 <= n_folds <= group.nunique():
        raise TableError(
            f"n_folds is {n_folds}, but {group.nunique()} groups of machines without a common patient can be split into 2 to"
            f" {group.nunique()} folds."
        )
    from sklearn.model_selection import StratifiedGroupKFold

    folds = pd.Series(0, index=images.index)
    splitter = StratifiedGroupKFold(n_folds)  # with shuffle, scikit-learn 1.2.2 loses the stratification
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for fold, (_, held_out) in enumerate(splitter.split(images, images.cancer, group)):
            folds.iloc[held_out] = fold
    return images.assign(fold=folds.astype("int64"))


def _joined_machines(images: pd.DataFrame) -> pd.Series:
    """Number each image's group of machines; machines that share a patient are one group."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    machines, patients = (pd.factorize(images[column])[0] for column in ("machine_id", "patient_id"))
    n_machines = machines.max() + 1
    edges = coo_matrix((np.ones(len(images)), (machines, n_machines + patients)), shape=[n_machines + patients.max() + 1] * 2)
    return pd.Series(connected_components(edges, directed=False)[1][machines], index=images.index)


def image_paths(images: pd.DataFrame, competition_dir: str | Path, split: str) -> list[Path]:
    """Return the paths of the images' DICOM files in Kaggle's layout: ``{split}_images/patient_id/image_id.dcm``."""
    root = Path(competition_dir) / f"{split}_images"
    return [root / patient / f"{image}.dcm" for patient, image in zip(images.patient_id, images.image_id, strict=True)]


def name_files(images: pd.DataFrame) -> pd.Series:
    """Return for each row, as bool, whether patient_id and image_id can name a folder and a file."""
    named = pd.Series(True, index=images.index)
    for column in FILE_IDS:
        named &= images[column].str.fullmatch(ID_PATTERN, na=False).astype(bool) & (images[column].str.len() <= LONGEST_ID)
    return named


def read_table(path: str | Path, separator: str = ",") -> pd.DataFrame:
    """Read a CSV as text, strictly: refuse what a lenient reader would guess.

    Parameters
    ----------
    path : path
        UTF-8, with or without a byte order mark.
    separator : str
        Between fields.

    Returns
    -------
    DataFrame of str
        NaN where a field is empty. The index is each row's line in the file; empty rows are left out.

    Raises
    ------
    TableError
        If the file can't be read, two columns have the same name (ignoring case and surrounding blanks), or a row has more or
        fewer fields than the header.
    """
    try:
        header, rows = _split_csv(path, separator)
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise TableError(f"{path} is not a readable CSV ({error}); correct it, or download it again.") from error
    counts = Counter(name.strip().casefold() for name in header if name.strip())
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise TableError(f"{path} has the column(s) {', '.join(repeated)} more than once; keep one of each.")
    names = [name or f"unnamed {place}" for place, name in enumerate(header)]  # such as a saved index
    table = pd.DataFrame(list(rows.values()), index=list(rows), columns=names)
    return table.where(table != "")


def _split_csv(path: str | Path, separator: str) -> tuple[list[str], dict[int, list[str]]]:
    """Return the fields of a CSV's header, and of each non-empty row by its line."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        text = file.read()
    if "\0" in text:
        raise csv.Error("it holds NUL bytes")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header = next(reader, [])
    if not any(header):
        raise csv.Error("it has no header")
    rows, line = {}, reader.line_num + 1
    for row in reader:
        if any(row) and len(row) != len(header):
            raise csv.Error(f"line {line} has {len(row)} fields, and the header has {len(header)}")
        if any(row):
            rows[line] = row
        line = reader.line_num + 1  # a quoted field may hold line ends
    return header, rows


def _read_csv(path: Path, required: list[str], overrides: dict | None = None) -> pd.DataFrame:
    """Read a table with the columns ``required``, and convert known columns to their types."""
    if not path.is_file():
        raise TableError(f"{path} does not exist; competition_dir must hold train.csv, test.csv and sample_submission.csv.")
    table = read_table(path)
    missing = [column for column in required if column not in table]
    if missing:
        raise TableError(f"{path} lacks the column(s) {', '.join(missing)}; it has {', '.join(table.columns)}.")
    if table.empty:
        raise TableError(f"{path} has a header and no rows; download it again.")
    for column, dtype in (DTYPES | (overrides or {})).items():
        if column in table and dtype is not str:
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
        plain = table[column].str.fullmatch(ID_PATTERN, na=False).astype(bool)
        _reject(table, ~plain, path, column, "must be a plain name of letters, digits, '_', '-' and '.'")


def _check_labels(images: pd.DataFrame, path: Path) -> None:
    """Raise TableError if a label is not 0 or 1, or a breast has two labels."""
    _reject(images, ~images.cancer.isin([0, 1]), path, "cancer", "must be 0 or 1")
    labels = images.groupby("prediction_id").cancer.transform("nunique")
    _reject(images, labels > 1, path, "cancer", "must be the same for all images of a breast")


def _reject(table: pd.DataFrame, bad: pd.Series | np.ndarray, path: Path, column: str, rule: str) -> None:
    """Raise a TableError that shows the first bad rows, if there are any."""
    bad = np.asarray(bad, dtype=bool)
    if not bad.any():
        return
    # Not repr(), which would show a number's NumPy type.
    first = np.flatnonzero(bad)[:SHOWN_ROWS]
    shown = [f"line {table.index[row]}: '{str(table[column].iloc[row])[:SHOWN_CHARACTERS]}'" for row in first]
    raise TableError(f"{path}, column {column}: {rule}. {bad.sum()} row(s) break this, first {'; '.join(shown)}.")
