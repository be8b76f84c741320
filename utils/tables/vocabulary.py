"""The metadata of an image, as numbers; only what the test set has too."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

METADATA = ("age", "age_missing", "implant", "view", "machine_id", "site_id")
CATEGORIES = ("view", "machine_id", "site_id")
MOST_DEVIATIONS = 5  # standard deviations of an age from the mean: beyond is a typing error


@dataclass(frozen=True)
class Vocabulary:
    """What the metadata looked like in training: encodes a table as numbers, including unseen and missing values.

    ``view``, ``machine_id``, ``site_id`` are the known values; their codes start at 1, and 0 is missing or unseen.
    """

    age_mean: float
    age_std: float
    view: tuple[str, ...]
    machine_id: tuple[str, ...]
    site_id: tuple[str, ...]

    @classmethod
    def from_images(cls, images: pd.DataFrame) -> "Vocabulary":
        """Learn the vocabulary from training images only."""
        known = {column: tuple(sorted(images[column].dropna().astype(str).unique())) for column in CATEGORIES}
        age = images.age.dropna()
        mean, std = (float(age.mean()), float(age.std(ddof=0))) if len(age) else (0.0, 1.0)
        return cls(age_mean=mean, age_std=std or 1.0, **known)

    def encode(self, images: pd.DataFrame) -> np.ndarray:
        """Encode the metadata of images.

        Returns
        -------
        ndarray of shape (len(images), 6), float32
            Columns `METADATA`: standardised age (0 if missing), whether it is missing, implant (0 or 1), and three codes.
        """
        age = ((images.age - self.age_mean) / self.age_std).fillna(0).clip(-MOST_DEVIATIONS, MOST_DEVIATIONS)
        columns = [age, images.age.isna(), images.implant]
        for column in CATEGORIES:
            codes = {value: code for code, value in enumerate(getattr(self, column), start=1)}
            columns.append(images[column].astype(str).map(codes).fillna(0))
        return np.stack([column.to_numpy(dtype=np.float32) for column in columns], axis=1)
