"""A run's maps and predicted boxes, compared with the true boxes of images that it predicted out of fold."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from utils.core.progress import progress_bar
from utils.evaluation.explanation import explain_run
from utils.evaluation.marks import measure_marks, median_sizes
from utils.evaluation.pointing import OWN, Landmarks, Place, play_pointing_game, read_landmarks, strongest_place
from utils.images.boxes import to_picture
from utils.images.cached import read_manifest
from utils.runs.config import TrainConfig
from utils.runs.run import Run

AT_ONCE = 64  # images whose maps are in memory at the same time
FOUND, MISSED = "found", "missed"


@dataclass(frozen=True)
class BoxedImages:
    """Images with true boxes that a run predicted out of fold; made by `draw_boxed_images`.

    ``boxes`` are those of all images that the run predicted, in shares of the cached images' sides. ``predicted`` are
    the ids of these images. ``drawn`` are the ids of the images with boxes that are measured on.
    """

    run_dir: Path
    config: TrainConfig
    cache_dir: Path
    images: pd.DataFrame
    manifest: pd.DataFrame
    boxes: pd.DataFrame
    predicted: list[str]
    drawn: list[str]

    @property
    def description(self) -> str:
        """Return how many predicted images have boxes, and how many of those are measured on."""
        count = self.boxes.image_id.nunique()
        chosen = "all" if len(self.drawn) == count else f"{len(self.drawn)} drawn at random"
        return f"Images with boxes: {count:,} of {len(self.predicted):,}; measured on {chosen}."

    @cached_property
    def patients(self) -> pd.Series:
        """Return patient_id by image_id."""
        return self.images.set_index("image_id").patient_id

    @cached_property
    def landmarks(self) -> dict[str, Landmarks]:
        """Return the places in the drawn images that need no network."""
        return read_landmarks(progress_bar(self.drawn, "Reading images", "images"), self.cache_dir)

    def point(self) -> pd.DataFrame:
        """Play the pointing game with out-of-fold maps, in ``drawn``'s order; raise ExplanationError without maps."""
        places = self._places()
        order = [name for name in self.drawn if name in places]  # max_views may leave images out
        boxes = self.boxes[self.boxes.image_id.isin(order)]
        return play_pointing_game(places, self.landmarks, boxes, self.patients).loc[order]

    def _places(self) -> dict[str, Place | None]:
        """Return the strongest place of each drawn image's map; a breast's images are explained together."""
        rows = self.images[self.images.image_id.isin(self.drawn)]
        folds = self._folds.loc[rows.image_id].to_numpy()
        ordered = rows.assign(fold=folds).sort_values(["fold", "prediction_id", "image_id"]).image_id.tolist()
        places = {}
        with progress_bar(None, "Explaining", "images", len(ordered)) as bar:
            for start in range(0, len(ordered), AT_ONCE):
                part = ordered[start : start + AT_ONCE]
                maps = explain_run(self.run_dir, self.images, self.cache_dir, part)
                places |= {name: strongest_place(heat) for name, heat in maps.items()}
                bar.update(len(part))
        return places

    def measure_marks(self) -> pd.DataFrame:
        """Compare the boxes that the run predicted with the true ones; raise TrainingError if they are unreadable.

        Images without a box are drawn at the same rate as those with one, so false marks count as often as they occur.
        """
        marks = to_picture(Run(self.run_dir).marks(), self.manifest, self.config.preprocessing, cut=False)
        without = marks[marks.image_id.isin(self.predicted) & ~marks.image_id.isin(self.boxes.image_id)]
        share = len(self.drawn) / self.boxes.image_id.nunique()
        sampled = pd.concat([marks[marks.image_id.isin(self.drawn)], without.sample(frac=share, random_state=0)])
        boxes = self.boxes[self.boxes.image_id.isin(self.drawn)]
        sizes = median_sizes(self.boxes, self._folds)
        return measure_marks(sampled, boxes, self.landmarks, self.patients, sizes)

    def examples(self, hits: pd.DataFrame, count: int) -> pd.DataFrame:
        """Return the first ``count`` images whose map points into a true box, and the first whose map does not."""
        kinds = {FOUND: hits.index[hits[OWN] == 1], MISSED: hits.index[hits[OWN] == 0]}
        rows = self.images.set_index("image_id", drop=False)
        return pd.concat([rows.loc[names[:count]].assign(kind=kind) for kind, names in kinds.items()], ignore_index=True)

    @cached_property
    def _folds(self) -> pd.Series:
        """Return the fold by image_id."""
        return Run(self.run_dir).fold_of(self.patients)


def draw_boxed_images(
    run_dir: Path, images: pd.DataFrame, cache_dir: Path, boxes: pd.DataFrame, most: int, seed: int = 0
) -> BoxedImages | None:
    """Draw up to ``most`` images with true boxes to measure a run on, whatever the order of the boxes.

    Return None if no predicted image has a box in its cached image, or ``most`` is 0. Raise
    `utils.runs.config.TrainingError` if the run's tables are unreadable, and `utils.runs.leaks.LeakError` if its
    predictions are not out of fold.
    """
    config = Run(run_dir).config
    manifest = read_manifest(cache_dir, "train", config.preprocessing)
    predicted = images.image_id[images.prediction_id.isin(Run(run_dir).oof().prediction_id)]
    placed = to_picture(boxes[boxes.image_id.isin(predicted)], manifest, config.preprocessing)
    known = sorted(placed.image_id.unique())
    drawn = [known[number] for number in np.random.default_rng(seed).permutation(len(known))[:most]]
    if not drawn:
        return None
    return BoxedImages(run_dir, config, cache_dir, images, manifest, placed, predicted.tolist(), drawn)
