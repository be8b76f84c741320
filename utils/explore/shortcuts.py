"""What tells the label without any tissue: each column alone, held against chance and against test.csv."""

from pathlib import Path

import numpy as np
import pandas as pd

from utils.core.parallel import map_items
from utils.dicom.file import open_dicom
from utils.explore.examples import with_files
from utils.explore.summary import DERIVED, NOMINAL
from utils.tables.competition import SHARED_COLUMNS, assign_folds, image_paths

N_FOLDS = 5
MAX_CATEGORIES = 20  # a number with more values than this is cut into bins
MAX_BINS = 20
POSITIVES_PER_BIN = 10
SMOOTHING = 10  # breasts at the overall share of positives that are added to each category
CHANCE_SPREADS = 2.5  # standard deviations above 0.5 that chance may reach: one column in 160
N_SHUFFLES = 50  # of the labels, to measure that deviation
LEAST_AUC = 0.55  # a lower AUC is no danger, however sure
VAGUE_CHANCE = 0.65  # where chance may reach this, a low AUC proves nothing
TELLING_AUC = 0.9  # no single column reaches this by honest means
HEADERS_PER_LABEL = 500
IMAGES_PER_BREAST = "images_per_breast"

# Columns that RSNA's radiologists and pathologists filled in after the picture had been taken.
LATE = {
    "biopsy": "known only after the diagnosis",
    "invasive": "known only after the diagnosis",
    "difficult_negative_case": "known only after the diagnosis",
    "BIRADS": "known only after a radiologist has read the pictures",
}
RISK = dict.fromkeys(("age", "density", "implant"), "a trait of the patient, not read from the pixels")
MAKING = dict.fromkeys((*NOMINAL, IMAGES_PER_BREAST), "how the pictures came about, not what they show")
ORDER = dict.fromkeys(("patient_id", "image_id"), "the ids' order tells the label; never an input")
REASONS = RISK | MAKING | ORDER


def shortcut_audit(
    images: pd.DataFrame, test: pd.DataFrame | None = None, headers: pd.DataFrame | None = None, seed: int = 0
) -> pd.DataFrame:
    """Measure how well each column alone tells the label of breasts whose patients it has not seen.

    A column's values become categories (a number of many values is cut into bins, missing is a category), and a breast's
    probability is its category's share of positives in the other folds.

    Parameters
    ----------
    images : DataFrame
        A train table from `utils.tables.read_images`.
    test : DataFrame, optional
        Without one, test.csv is taken to have the competition's usual columns.
    headers : DataFrame, optional
        From `read_headers`; its columns are judged on its breasts.
    seed : int
        Of the folds.

    Returns
    -------
    DataFrame
        One row per column, the most telling first: auc (mean over folds; NaN where a label is missing altogether), chance (what
        a column that knows nothing may reach), in_test, new_in_test (share of test's breasts with a value that train lacks;
        NaN for bins), verdict (its first word is leak, shortcut, harmless or unclear).
    """
    folded = _breasts_with_folds(images, seed)
    traits = _traits(images)
    test_traits = None if test is None else _traits(test)
    rows = {column: _audit(folded, traits[column], test_traits) for column in traits}
    for column in headers if headers is not None else ():
        rows[column] = _audit(folded.loc[headers.index], headers[column], None) | {"in_test": True}
    table = pd.DataFrame(rows).T.infer_objects().rename_axis("column")
    table["verdict"] = [_verdict(row) for row in table.itertuples()]
    return table.sort_values("auc", ascending=False, kind="stable")


def _breasts_with_folds(images: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Columns cancer and fold by prediction_id; one fold alone where there is one patient."""
    breasts = images.drop_duplicates("prediction_id")[["prediction_id", "patient_id", "site_id", "cancer"]]
    n_folds = min(N_FOLDS, breasts.patient_id.nunique())
    breasts = assign_folds(breasts, n_folds, seed) if n_folds > 1 else breasts.assign(fold=0)
    return breasts.set_index("prediction_id")[["cancer", "fold"]]


def _traits(images: pd.DataFrame) -> pd.DataFrame:
    """One row per breast: of each column the set of its images' values, or the number of an image drawn at random.

    A mean or the first of sorted numbers would tell how many there are.
    """
    images = images.sample(frac=1, random_state=0)
    by_breast = images.groupby("prediction_id", sort=False)
    columns = [column for column in images if column not in (*DERIVED, "cancer")]
    traits = pd.DataFrame({column: _per_breast(images, column) for column in columns})
    return traits.assign(**{IMAGES_PER_BREAST: by_breast.size()}).loc[list(by_breast.groups)]


def _per_breast(images: pd.DataFrame, column: str) -> pd.Series:
    values = images[column]
    numbers = pd.to_numeric(values, errors="coerce")
    if column not in NOMINAL and numbers.notna().sum() == values.notna().sum():
        return numbers.groupby(images.prediction_id).first()
    known = images[["prediction_id", column]].dropna().drop_duplicates().sort_values(column)
    several = known.prediction_id.duplicated(keep=False)
    sets = known[several].astype(str).groupby("prediction_id")[column].agg("+".join)
    return pd.concat([known[~several].set_index("prediction_id")[column].astype(str), sets])


def _audit(folded: pd.DataFrame, values: pd.Series, test_traits: pd.DataFrame | None) -> dict:
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
    return pd.api.types.is_numeric_dtype(values) and values.name not in NOMINAL and values.nunique() > MAX_CATEGORIES


def _bins(values: pd.Series, positives: int) -> pd.Series:
    count = int(np.clip(positives // POSITIVES_PER_BIN, 2, MAX_BINS))
    return pd.qcut(values, count, labels=False, duplicates="drop")


def out_of_fold_auc(categories: pd.Series, cancer: pd.Series, fold: pd.Series) -> float:
    """AUC of each category's share of positives in the other folds.

    Parameters
    ----------
    categories : Series of shape (n,)
        Missing values are a category of their own.
    cancer : Series of shape (n,), 0 or 1
    fold : Series of shape (n,), int

    Returns
    -------
    float
        Mean over the folds, weighted by their pairs of a positive and a negative: the folds' shares differ, so pooling them
        would put a column that knows nothing below 0.5. NaN where no fold has both labels.
    """
    cells, shape = _cells(categories, fold)
    return _mean_auc(cells, shape, np.asarray(cancer))


def _highest_by_chance(categories: pd.Series, cancer: pd.Series, fold: pd.Series) -> float:
    """AUC that such a column may reach without any knowledge, from shuffled labels: more categories spread wider."""
    (cells, shape), generator = _cells(categories, fold), np.random.default_rng(0)
    aucs = [_mean_auc(cells, shape, generator.permutation(cancer)) for _ in range(N_SHUFFLES)]
    return float(min(1.0, 0.5 + CHANCE_SPREADS * np.sqrt(np.mean(np.square(np.array(aucs) - 0.5)))))


def _cells(categories: pd.Series, fold: pd.Series) -> tuple[np.ndarray, tuple[int, int]]:
    """Number each row by its fold and category, and give how many there are of both; missing is a category."""
    codes, rows = pd.factorize(categories)[0] + 1, np.unique(fold, return_inverse=True)[1]
    shape = int(rows.max()) + 1, int(codes.max()) + 1
    return rows * shape[1] + codes, shape


def _mean_auc(cells: np.ndarray, shape: tuple[int, int], cancer: np.ndarray) -> float:
    counts, positives = (np.bincount(cells, weights, np.prod(shape)).reshape(shape) for weights in (None, cancer))
    shares = _shares_of_others(counts, positives)  # each of shape (folds, categories)
    pairs = positives.sum(axis=1) * (counts - positives).sum(axis=1)
    if len(counts) < 2 or not pairs.any():
        return float("nan")
    aucs = [_category_auc(*rows) for rows in zip(shares, positives, counts - positives, strict=True)]
    return float(np.average(aucs, weights=pairs))


def _shares_of_others(counts: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Share of positives of each category in the other folds, drawn towards their overall share."""
    counts, positives = counts.sum(axis=0) - counts, positives.sum(axis=0) - positives
    overall = positives.sum(axis=1, keepdims=True) / np.maximum(1, counts.sum(axis=1, keepdims=True))
    return (positives + SMOOTHING * overall) / (counts + SMOOTHING)


def _category_auc(shares: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> float:
    """AUC of rows that are counted by category; 0 where there is no pair to compare."""
    rank = np.unique(shares, return_inverse=True)[1]
    positives, negatives = np.bincount(rank, positives), np.bincount(rank, negatives)
    below = np.cumsum(negatives) - negatives
    return positives @ (below + negatives / 2) / max(1, positives.sum() * negatives.sum())


def _verdict(row) -> str:
    where = "" if row.in_test else "not in test.csv"
    if row.Index in LATE:
        return "leak: " + ", ".join(filter(None, (where, LATE[row.Index])))
    if row.auc <= LEAST_AUC and row.chance < VAGUE_CHANCE:
        return "harmless, but not in test.csv" if where else "harmless"
    if not row.auc > row.chance:  # NaN, too
        return "unclear: too few positive or negative breasts to tell"
    if where:
        return f"leak: {where}"
    if row.auc >= TELLING_AUC:
        return "shortcut: tells the label almost alone; ask how these breasts were gathered"
    return f"shortcut: {REASONS.get(row.Index, 'in test.csv too; ask why it tells the label')}"


def read_headers(
    images: pd.DataFrame, competition_dir: str | Path, per_label: int = HEADERS_PER_LABEL, num_workers: int = 1
) -> pd.DataFrame:
    """Read DICOM headers, one of each breast, of equally many breasts with and without cancer: AUC needs no more.

    Parameters
    ----------
    images : DataFrame
        A train table from `utils.tables.read_images`.
    competition_dir : path
    per_label : int
        Breasts of each label at most, drawn with a fixed seed.
    num_workers : int
        Number of processes, whose memory is limited: a header of a few MB may claim any. 0 works in this one.

    Returns
    -------
    DataFrame
        By prediction_id: stored_height and stored_width (px), codec, photometric, bits_stored. Empty where no file can be read.
    """
    breasts = with_files(images, competition_dir).sample(frac=1, random_state=0).drop_duplicates("prediction_id")
    chosen = breasts.groupby("cancer").head(per_label)
    paths = dict(zip(image_paths(chosen, competition_dir, "train"), chosen.prediction_id, strict=True))
    outcomes = map_items(_read_header, list(paths), num_workers, "Reading headers", "files")
    rows = {paths[outcome.item]: outcome.value for outcome in outcomes if not outcome.error}
    return pd.DataFrame(rows).T.infer_objects().rename_axis("prediction_id")


def _read_header(path: Path) -> dict:
    with open_dicom(path) as file:
        return {
            "stored_height": file.shape[0],
            "stored_width": file.shape[1],
            "codec": file.codec,
            "photometric": str(file.header.PhotometricInterpretation),
            "bits_stored": int(file.header.BitsStored),
        }
