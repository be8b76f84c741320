"""Other columns of the train table as classification targets, which teach an encoder what to look at.

Only training predicts them. A missing value has no effect.
"""

import numpy as np
import pandas as pd

MISSING = -1
AGE_GROUPS = (40, 50, 60, 70)  # ages in years at which a new group begins
AGE = "age"
CLASSES = {
    "biopsy": ("0", "1"),
    "invasive": ("0", "1"),
    "BIRADS": ("0", "1", "2"),
    "density": ("A", "B", "C", "D"),
    "view": ("CC", "MLO"),
    "laterality": ("L", "R"),
    "site_id": ("1", "2"),
}
SIZES = (*(len(values) for values in CLASSES.values()), len(AGE_GROUPS) + 1)  # classes of each target, in column order


def auxiliary_targets(images: pd.DataFrame) -> np.ndarray:
    """Encode the auxiliary targets of a train table.

    Parameters
    ----------
    images : DataFrame
        Columns may be absent.

    Returns
    -------
    ndarray of shape (len(images), len(SIZES)), int64
        Class numbers, or `MISSING`; columns as in `CLASSES`, then age.
    """
    columns = [_codes(images, name, values) for name, values in CLASSES.items()]
    return np.stack([*columns, _age_groups(images)], axis=1)


def _codes(images: pd.DataFrame, name: str, values: tuple[str, ...]) -> np.ndarray:
    """Return a column's class numbers; `MISSING` for other values or without the column."""
    if name not in images:
        return np.full(len(images), MISSING)
    text = images[name].map(lambda value: f"{value:g}" if isinstance(value, float) else str(value))
    return text.map({value: code for code, value in enumerate(values)}).fillna(MISSING).to_numpy(dtype=np.int64)


def _age_groups(images: pd.DataFrame) -> np.ndarray:
    """Return each image's age group; `MISSING` if the age is."""
    if AGE not in images:
        return np.full(len(images), MISSING)
    return np.where(images.age.isna(), MISSING, np.digitize(images.age, AGE_GROUPS)).astype(np.int64)
