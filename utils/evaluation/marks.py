"""How well one predicted box per image (a mark) finds the true boxes, next to marks that need no network.

Marks and true boxes are in shares of the cached image's sides, so a mark can be placed on another image.
"""

import numpy as np
import pandas as pd

from utils.evaluation.pointing import Landmarks, by_image, inside
from utils.images.boxes import overlap
from utils.metrics.intervals import Interval, PatientBootstrap
from utils.tables.boxes import CORNERS

OWN = "the run"
OTHERS = "the run, for another patient"
AT_BRIGHTEST = "median size, at the brightest spot"
AT_MIDDLE = "median size, in the middle of the breast"
AT_RANDOM = "median size, at a random point in the breast"
KINDS = [OWN, OTHERS, AT_BRIGHTEST, AT_MIDDLE, AT_RANDOM]
MINUS = "the run minus it"


def measure_marks(
    marks: pd.DataFrame,
    boxes: pd.DataFrame,
    landmarks: dict[str, Landmarks],
    patients: pd.Series,
    sizes: dict[int, np.ndarray],
) -> pd.DataFrame:
    """Compare a run's mark on each image, and marks that need no network, with the true boxes.

    ``marks`` has one out-of-fold row per image, with or without true boxes: image_id, fold and corners. Return one row
    per image and kind of mark, the mean if a kind has several marks: ``boxes`` is the number of true boxes, ``overlap``
    the highest IoU with one of them, ``hits`` the number of true boxes around the mark's centre, ``false`` 1 if there
    is none.
    """
    true, placed = by_image(boxes), marks[CORNERS].to_numpy(dtype=float)
    owners, has_box = patients.loc[marks.image_id].to_numpy(), marks.image_id.isin(list(true)).to_numpy()
    rows = []
    for number, (name, fold) in enumerate(zip(marks.image_id, marks.fold, strict=True)):
        kinds = dict.fromkeys(KINDS, placed[[number]])  # without a true box every mark is false
        if name in true:
            found, size = landmarks[name], sizes[fold]
            kinds[OTHERS] = placed[has_box & (owners != owners[number])]
            kinds[AT_BRIGHTEST] = _around([found.brightest], size)
            kinds[AT_MIDDLE] = _around([found.middle], size)
            kinds[AT_RANDOM] = _around(found.spread, size)
        corners = true.get(name, np.empty((0, 4)))
        rows += [(name, owners[number], kind, len(corners), *_compare(tried, corners)) for kind, tried in kinds.items()]
    return pd.DataFrame(rows, columns=["image_id", "patient_id", "kind", "boxes", "overlap", "hits", "false"])


def median_sizes(boxes: pd.DataFrame, folds: pd.Series) -> dict[int, np.ndarray]:
    """Return, by fold, the median width and height of the other folds' true boxes; of all boxes if they have none."""
    sides = boxes[CORNERS[2:]].to_numpy() - boxes[CORNERS[:2]].to_numpy()
    held_out = folds.reindex(boxes.image_id).to_numpy()
    others = {fold: sides[held_out != fold] for fold in folds.unique()}
    return {fold: np.median(found if len(found) else sides, axis=0) for fold, found in others.items()}


def marks_table(measured: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Compare a run's marks with each kind that needs no network: an `Interval` each, and the run's minus it as text.

    Mean IoU is over images with a box. Hit rate is the share of true boxes around the centre of a mark. False marks are
    those, per image with or without a box, whose centre is in no true box.
    """
    images = measured.drop_duplicates("image_id").set_index("image_id")
    bootstrap = PatientBootstrap(images.patient_id, seed=seed)
    trials = {"overlap": images.boxes > 0, "hits": images.boxes, "false": images.boxes >= 0}
    titles = {"overlap": "mean IoU", "hits": "hit rate", "false": "false marks an image"}
    rows: dict[str, dict[str, Interval | str]] = {kind: {} for kind in KINDS}
    for measure, title in titles.items():
        wide = measured.pivot(index="image_id", columns="kind", values=measure).loc[images.index]
        for kind in KINDS:
            value = bootstrap.ratio if measure == "overlap" else bootstrap.share
            rows[kind][f"{title} [95 %]"] = value(wide[kind], trials[measure])  # NaN without a mark of another patient
            difference = bootstrap.ratio(wide[OWN] - wide[kind], trials[measure])
            rows[kind][f"{title}, {MINUS}"] = "" if kind == OWN else difference.signed
    return pd.DataFrame(rows).T.rename_axis("box")


def _around(centres: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return boxes of one size around n points: (n, 4)."""
    centres = np.asarray(centres, dtype=float)
    return np.concatenate([centres - size / 2, centres + size / 2], axis=1)


def _compare(marks: np.ndarray, corners: np.ndarray) -> tuple[float, float, float]:
    """Return mean overlap, hits and false marks of m marks (m, 4) on an image with k true boxes (k, 4)."""
    if not len(marks):
        return np.nan, np.nan, np.nan
    if not len(corners):
        return 0.0, 0.0, 1.0
    shape = len(marks), len(corners)
    overlaps = overlap(np.repeat(marks, shape[1], axis=0), np.tile(corners, (shape[0], 1))).reshape(shape)
    hits = inside((marks[:, :2] + marks[:, 2:]) / 2, corners)
    return float(overlaps.max(axis=1).mean()), float(hits.sum(axis=1).mean()), float(1 - hits.any(axis=1).mean())
