"""What a run is trained on, as one object."""

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from utils.tables.folds import assign_folds


@dataclass(frozen=True)
class TrainingData:
    """Images with their cache, boxes, and images of other sets.

    Parameters
    ----------
    images : DataFrame
        A train table; `with_folds` adds the column ``fold``. All images must be in the cache before training.
    boxes : DataFrame, optional
        From `utils.tables.boxes.read_boxes`, in pixels of the stored images; perhaps only of images of ``extra``.
    extra : DataFrame, optional
        Images of other sets, with ``cache_dir`` and ``extra_set``, the set's name. Every fold trains on them; they are never
        held out or predicted, and do not count in the prevalence.
    is_phantom, smoke_test : bool
        Recorded in the run, so that its models never predict real images.
    """

    images: pd.DataFrame
    cache_dir: str | Path
    boxes: pd.DataFrame | None = None
    extra: pd.DataFrame | None = None
    is_phantom: bool = False
    smoke_test: bool = False

    def with_folds(self, n_folds: int, seed: int, fold_by: str) -> "TrainingData":
        """Return a copy whose images are split into folds by `utils.tables.folds.assign_folds`."""
        return replace(self, images=assign_folds(self.images, n_folds, seed, fold_by))

    def inside(self, fold: int) -> pd.DataFrame:
        """Return the images that a fold trains on: those of the other folds and of other sets."""
        own = self.images[self.images.fold != fold]
        if self.extra is None:
            return own
        return pd.concat([own.assign(cache_dir=str(self.cache_dir)), self.extra], ignore_index=True)

    def held_out(self, fold: int) -> pd.DataFrame:
        """Return the images of a fold."""
        return self.images[self.images.fold == fold]

    @property
    def cache_dirs(self) -> list[str | Path]:
        """Return the caches of all sets."""
        return [self.cache_dir, *([] if self.extra is None else self.extra.cache_dir.unique())]

    def __str__(self) -> str:
        """Return two lines: numbers of images and patients, and how many images of which set have boxes."""
        patients, share = self.images.patient_id.nunique(), self.images.cancer.mean()
        return f"{len(self.images)} images, {patients} patients, {share:.1%} positive\n{self._boxes_by_set()}"

    def _boxes_by_set(self) -> str:
        """Return a line that says how many images of which set have boxes."""
        if self.boxes is None:
            return "No boxes are used."
        sets = {"the competition": self.images}
        if self.extra is not None:
            sets |= dict(iter(self.extra.groupby("extra_set")))
        with_boxes = {name: images.image_id.isin(self.boxes.image_id) for name, images in sets.items()}
        return "Boxes: " + ", ".join(f"{some.sum()} of {len(some)} images of {name}" for name, some in with_boxes.items())
