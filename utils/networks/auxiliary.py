"""What the train table says beside cancer, as further targets: they teach an encoder what to look at, and are gone at test.

Each is a classification; a missing value teaches nothing.
"""

import numpy as np
import pandas as pd

MISSING = -1
AGE_GROUPS = (40, 50, 60, 70)  # years at which a new group begins
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
SIZES = (*(len(values) for values in CLASSES.values()), len(AGE_GROUPS) + 1)  # classes of each target, in the columns' order


def auxiliary_targets(images: pd.DataFrame) -> np.ndarray:
    """Encode the auxiliary targets of a train table.

    Parameters
    ----------
    images : DataFrame
        Columns may be absent.

    Returns
    -------
    ndarray of shape (len(images), len(SIZES)), int64
        Columns as in `CLASSES`, then age; the number of the class, or `MISSING`.
    """
    columns = [_codes(images, name, values) for name, values in CLASSES.items()]
    return np.stack([*columns, _age_groups(images)], axis=1)


def _codes(images: pd.DataFrame, name: str, values: tuple[str, ...]) -> np.ndarray:
    if name not in images:
        return np.full(len(images), MISSING)
    text = images[name].map(lambda value: f"{value:g}" if isinstance(value, float) else str(value))
    return text.map({value: code for code, value in enumerate(values)}).fillna(MISSING).to_numpy(dtype=np.int64)


def _age_groups(images: pd.DataFrame) -> np.ndarray:
    if AGE not in images:
        return np.full(len(images), MISSING)
    return np.where(images.age.isna(), MISSING, np.digitize(images.age, AGE_GROUPS)).astype(np.int64)
