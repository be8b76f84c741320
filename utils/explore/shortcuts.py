"""How well each column alone predicts the label, without any tissue: compared with chance and with test.csv."""

from pathlib import Path

import numpy as np
import pandas as pd

from utils.core.parallel import map_items
from utils.dicom.file import open_dicom
from utils.explore.examples import with_files
from utils.explore.summary import DERIVED, NOMINAL
from utils.tables.competition import SHARED_COLUMNS, image_paths
from utils.tables.folds import assign_folds

N_FOLDS = 5
MAX_CATEGORIES = 20  # a numeric column with more values is cut into bins
MAX_BINS = 20
POSITIVES_PER_BIN = 10
SMOOTHING = 10  # breasts with the overall share of positives that are added to each category
CHANCE_SPREADS = 2.5  # standard deviations above 0.5; chance exceeds them in one column of 160
N_SHUFFLES = 50  # shuffles of the labels that measure the standard deviation
LEAST_AUC = 0.55  # a lower AUC is harmless, however certain
VAGUE_CHANCE = 0.65  # if chance may reach this, a low AUC proves nothing
TELLING_AUC = 0.9  # no single column reaches this honestly
HEADERS_PER_LABEL = 500
IMAGES_PER_BREAST = "images_per_breast"

# Columns that RSNA's radiologists and pathologists filled in after the image was taken.
LATE = {
    "biopsy": "known only after the diagnosis",
    "invasive": "known only after the diagnosis",
    "difficult_negative_case": "known only after the diagnosis",
    "BIRADS": "known only after a radiologist has read the images",
}
RISK = dict.fromkeys(("age", "density", "implant"), "a trait of the patient, not read from the pixels")
MAKING = dict.fromkeys((*NOMINAL, IMAGES_PER_BREAST), "how the images came about, not what they show")
ORDER = dict.fromkeys(("patient_id", "image_id"), "the ids' order tells the label; never an input")
REASONS = RISK | MAKING | ORDER


def shortcut_audit(
    images: pd.DataFrame, test: pd.DataFrame | None = None, headers: pd.DataFrame | None = None, seed: int = 0
) -> pd.DataFrame:
    """Measure how well each column alone predicts the label of breasts of unseen patients.

    A column's values become categories: a numeric column with many values is cut into bins, and missing is a category.
    A breast's probability is its category's share of positives in the other folds.

    Parameters
    ----------
    images : DataFrame
        Train table from `utils.tables.read_images`.
    test : DataFrame, optional
        By default, test.csv is assumed to have the competition's usual columns.
    headers : DataFrame, optional
        From `read_headers`; its columns are judged on its breasts.
    seed : int
        Seed of the folds.

    Returns
    -------
    DataFrame
        One row per column, highest AUC first: auc (mean over folds; NaN if no fold has both labels), chance (AUC that
        an uninformative column may reach), in_test, new_in_test (share of test's breasts with a value that train lacks;
        NaN for bins), kind (leak, shortcut, harmless or unclear) and reason.
    """
    folded = _breasts_with_folds(images, seed)
    traits = _traits(images)
    test_traits = None if test is None else _traits(test)
    rows = {column: _audit(folded, traits[column], test_traits) for column in traits}
    for column in headers if headers is not None else ():
        rows[column] = _audit(folded.loc[headers.index], headers[column], None) | {"in_test": True}
    table = pd.DataFrame(rows).T.infer_objects().rename_axis("column")
    table[["kind", "reason"]] = [_judge(row) for row in table.itertuples()]
    return table.sort_values("auc", ascending=False, kind="stable")


def _breasts_with_folds(images: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return cancer and fold by prediction_id; a single fold if there is one patient."""
    breasts = images.drop_duplicates("prediction_id")[["prediction_id", "patient_id", "site_id", "cancer"]]
    n_folds = min(N_FOLDS, breasts.patient_id.nunique())
    breasts = assign_folds(breasts, n_folds, seed) if n_folds > 1 else breasts.assign(fold=0)
    return breasts.set_index("prediction_id")[["cancer", "fold"]]


def _traits(images: pd.DataFrame) -> pd.DataFrame:
    """Return one row per breast with each column's set of values, or its number from one image drawn at random.

    A mean or the first of sorted numbers would reveal how many images there are.
    """
    images = images.sample(frac=1, random_state=0)
    by_breast = images.groupby("prediction_id", sort=False)
    columns = [column for column in images if column not in (*DERIVED, "cancer")]
    traits = pd.DataFrame({column: _per_breast(images, column) for column in columns})
    traits[IMAGES_PER_BREAST] = by_breast.size()
    return traits.loc[list(by_breast.groups)]


def _per_breast(images: pd.DataFrame, column: str) -> pd.Series:
    """Return a column by prediction_id: one image's number, or all distinct values as text joined by "+"."""
    values = images[column]
    numbers = pd.to_numeric(values, errors="coerce")
    if column not in NOMINAL and numbers.notna().sum() == values.notna().sum():
        return numbers.groupby(images.prediction_id).first()
    known = images[["prediction_id", column]].dropna().drop_duplicates().sort_values(column)
    several = known.prediction_id.duplicated(keep=False)
    sets = known[several].astype(str).groupby("prediction_id")[column].agg("+".join)
    return pd.concat([known[~several].set_index("prediction_id")[column].astype(str), sets])


def _audit(folded: pd.DataFrame, values: pd.Series, test_traits: pd.DataFrame | None) -> dict:
    """Return a column's AUC, what chance may reach, whether test.csv has it, and the share of values new in test."""
    column, values = values.name, values.reindex(folded.index)
    binned = _is_binned(values)
    categories = _bins(values, folded.cancer.sum()) if binned else values
    in_test = column in test_traits if test_traits is not None else column in (*SHARED_COLUMNS, IMAGES_PER_BREAST)
    new_in_test = np.nan
    if in_test and test_traits is not None and not binned:
        new_in_test = (~test_traits[column].dropna().isin(values)).mean()
    return {
        "auc": out_of_fold_auc(categories, folded.cancer, folded.fold),
        "chance": _highest_by_chance(categories, folded.cancer, folded.fold),
        "in_test": in_test,
        "new_in_test": new_in_test,
    }


def _is_binned(values: pd.Series) -> bool:
    """True if a column is numeric and has too many values for categories."""
    return pd.api.types.is_numeric_dtype(values) and values.name not in NOMINAL and values.nunique() > MAX_CATEGORIES


def _bins(values: pd.Series, positives: int) -> pd.Series:
    """Cut numbers into 2 to `MAX_BINS` bins of equal counts, one bin per `POSITIVES_PER_BIN` positives."""
    count = int(np.clip(positives // POSITIVES_PER_BIN, 2, MAX_BINS))
    return pd.qcut(values, count, labels=False, duplicates="drop")


def out_of_fold_auc(categories: pd.Series, cancer: pd.Series, fold: pd.Series) -> float:
    """Return the AUC of each category's share of positives in the other folds; missing values are a category.

    It is the mean over the folds, weighted by their pairs of a positive and a negative. The folds' shares differ, so
    pooling them would put an uninformative column below 0.5. NaN if no fold has both labels.
    """
    cells, shape = _cells(categories, fold)
    return _mean_auc(cells, shape, np.asarray(cancer))


def _highest_by_chance(categories: pd.Series, cancer: pd.Series, fold: pd.Series) -> float:
    """Return the AUC that these categories may reach on shuffled labels; more categories spread wider."""
    (cells, shape), generator = _cells(categories, fold), np.random.default_rng(0)
    aucs = [_mean_auc(cells, shape, generator.permutation(cancer)) for _ in range(N_SHUFFLES)]
    return float(min(1.0, 0.5 + CHANCE_SPREADS * np.sqrt(np.mean(np.square(np.array(aucs) - 0.5)))))


def _cells(categories: pd.Series, fold: pd.Series) -> tuple[np.ndarray, tuple[int, int]]:
    """Number each row by fold and category (missing is one), and return the numbers of folds and categories."""
    codes, rows = pd.factorize(categories)[0] + 1, np.unique(fold, return_inverse=True)[1]
    shape = int(rows.max()) + 1, int(codes.max()) + 1
    return rows * shape[1] + codes, shape


def _mean_auc(cells: np.ndarray, shape: tuple[int, int], cancer: np.ndarray) -> float:
    """Return the AUC averaged over folds, weighted by their pairs; NaN without pairs or with a single fold."""
    counts, positives = (np.bincount(cells, weights, np.prod(shape)).reshape(shape) for weights in (None, cancer))
    shares = _shares_of_others(counts, positives)  # each of shape (folds, categories)
    pairs = positives.sum(axis=1) * (counts - positives).sum(axis=1)
    if len(counts) < 2 or not pairs.any():
        return float("nan")
    aucs = [_category_auc(*rows) for rows in zip(shares, positives, counts - positives, strict=True)]
    return float(np.average(aucs, weights=pairs))


def _shares_of_others(counts: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Return each category's share of positives in the other folds, shrunk towards their overall share."""
    counts, positives = counts.sum(axis=0) - counts, positives.sum(axis=0) - positives
    overall = positives.sum(axis=1, keepdims=True) / np.maximum(1, counts.sum(axis=1, keepdims=True))
    return (positives + SMOOTHING * overall) / (counts + SMOOTHING)


def _category_auc(shares: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> float:
    """Return the AUC of rows counted by category; 0 if there is no pair to compare."""
    rank = np.unique(shares, return_inverse=True)[1]
    positives, negatives = np.bincount(rank, positives), np.bincount(rank, negatives)
    below = np.cumsum(negatives) - negatives
    return positives @ (below + negatives / 2) / max(1, positives.sum() * negatives.sum())


def _judge(row) -> tuple[str, str]:
    """Return the kind of a column of the audit, and the reason."""
    absent = "" if row.in_test else "not in test.csv"
    if row.Index in LATE:
        return "leak", ", ".join(filter(None, (absent, LATE[row.Index])))
    if row.auc <= LEAST_AUC and row.chance < VAGUE_CHANCE:
        return "harmless", absent
    if not row.auc > row.chance:  # NaN, too
        return "unclear", "too few positive or negative breasts to tell"
    if absent:
        return "leak", absent
    if row.auc >= TELLING_AUC:
        return "shortcut", "predicts the label almost alone; ask how these breasts were gathered"
    return "shortcut", REASONS.get(row.Index, "in test.csv too; ask why it predicts the label")


def read_headers(
    images: pd.DataFrame, competition_dir: str | Path, per_label: int = HEADERS_PER_LABEL, num_workers: int = 1
) -> pd.DataFrame:
    """Read one DICOM header per breast, from up to ``per_label`` breasts of each label: the AUC needs no more.

    Parameters
    ----------
    images : DataFrame
        Train table from `utils.tables.read_images`.
    per_label : int
        Limit of breasts of each label, drawn with a fixed seed.
    num_workers : int
        Number of processes; their memory is limited, as a header of a few MB may claim any amount. 0 runs in this one.

    Returns
    -------
    DataFrame
        By prediction_id: stored_height, stored_width (px), codec, photometric, bits_stored. Empty if no file is
        readable.
    """
    breasts = with_files(images, competition_dir).sample(frac=1, random_state=0).drop_duplicates("prediction_id")
    chosen = breasts.groupby("cancer").head(per_label)
    paths = dict(zip(image_paths(chosen, competition_dir, "train"), chosen.prediction_id, strict=True))
    outcomes = map_items(_read_header, list(paths), num_workers, "Reading headers", "files")
    rows = {paths[outcome.item]: outcome.value for outcome in outcomes if not outcome.error}
    return pd.DataFrame(rows).T.infer_objects().rename_axis("prediction_id")


def _read_header(path: Path) -> dict:
    """Return a file's stored size (px), codec, photometric interpretation and bits stored."""
    with open_dicom(path) as file:
        return {
            "stored_height": file.shape[0],
            "stored_width": file.shape[1],
            "codec": file.codec,
            "photometric": str(file.header.PhotometricInterpretation),
            "bits_stored": int(file.header.BitsStored),
        }
