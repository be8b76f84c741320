"""How well one predicted box an image finds the true ones, next to boxes that need no network.

A mark is a predicted box. Marks and true boxes are in shares of the cached picture's sides here, so that a mark can be laid on
another image.
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

    Parameters
    ----------
    marks : DataFrame
        image_id, fold and corners, one row an image, with true boxes or without: a run's, out of fold.
    boxes : DataFrame
        image_id and corners of all true boxes of these images.
    landmarks : dict
        From `utils.evaluation.pointing.read_landmarks`, of the images that have true boxes.
    patients : Series
        patient_id by image_id.
    sizes : dict
        From `median_sizes`.

    Returns
    -------
    DataFrame
        One row for each image and kind of mark: image_id, patient_id, kind; ``boxes``, the number of true ones; ``overlap``,
        the intersection over union with the true box that the mark overlaps most; ``hits``, how many true boxes hold its
        centre; ``false``, 1 if none does. Where a kind stands for several marks of an image, their means.
    """
    true, placed = by_image(boxes), marks[CORNERS].to_numpy(dtype=float)
    owners, has_box = patients.loc[marks.image_id].to_numpy(), marks.image_id.isin(list(true)).to_numpy()
    rows = []
    for number, (name, fold) in enumerate(zip(marks.image_id, marks.fold, strict=True)):
        kinds = dict.fromkeys(KINDS, placed[[number]])  # without a true box every mark is a false one
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
    """Give, for each fold, the median width and height of the true boxes of the other folds; of all if those have none.

    Parameters
    ----------
    boxes : DataFrame
        image_id and corners.
    folds : Series
        fold by image_id.
    """
    sides = boxes[CORNERS[2:]].to_numpy() - boxes[CORNERS[:2]].to_numpy()
    held_out = folds.reindex(boxes.image_id).to_numpy()
    others = {fold: sides[held_out != fold] for fold in folds.unique()}
    return {fold: np.median(found if len(found) else sides, axis=0) for fold, found in others.items()}


def marks_table(measured: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Set a run's marks next to each kind that needs no network.

    Parameters
    ----------
    measured : DataFrame
        From `measure_marks`.
    seed : int
        Of the bootstrap over patients.

    Returns
    -------
    DataFrame
        One row for each kind of mark. ``mean IoU`` is over images with a box; ``hit rate`` is the share of true boxes that
        hold the centre of a mark; ``false marks`` are those an image, with a box or without, whose centre lies in none. Each
        as an `Interval`, with the run's minus it as text.
    """
    images = measured.drop_duplicates("image_id").set_index("image_id")
    bootstrap = PatientBootstrap(images.patient_id, seed=seed)
    trials = {"overlap": images.boxes > 0, "hits": images.boxes, "false": images.boxes >= 0}
    titles = {"overlap": "mean IoU", "hits": "hit rate", "false": "false marks an image"}
    rows: dict[str, dict[str, Interval | str]] = {kind: {} for kind in KINDS}
    for measure, title in titles.items():
        wide = measured.pivot(index="image_id", columns="kind", values=measure).loc[images.index]
        for kind in KINDS:
            tried = trials[measure] * wide[kind].notna()  # no other patient's mark may be there
            value = bootstrap.ratio if measure == "overlap" else bootstrap.share
            rows[kind][f"{title} [95 %]"] = value(wide[kind].fillna(0), tried)
            difference = bootstrap.ratio((wide[OWN] - wide[kind]).fillna(0), tried)
            rows[kind][f"{title}, {MINUS}"] = "" if kind == OWN else difference.signed
    return pd.DataFrame(rows).T.rename_axis("box")


def _around(centres: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Boxes of one size around n points: (n, 4)."""
    centres = np.asarray(centres, dtype=float)
    return np.concatenate([centres - size / 2, centres + size / 2], axis=1)


def _compare(marks: np.ndarray, corners: np.ndarray) -> tuple[float, float, float]:
    """Overlap, hits and false marks of m marks (m, 4) on an image with k true boxes (k, 4): means over the marks."""
    if not len(marks):
        return np.nan, np.nan, np.nan
    if not len(corners):
        return 0.0, 0.0, 1.0
    shape = len(marks), len(corners)
    overlaps = overlap(np.repeat(marks, shape[1], axis=0), np.tile(corners, (shape[0], 1))).reshape(shape)
    hits = inside((marks[:, :2] + marks[:, 2:]) / 2, corners)
    return float(overlaps.max(axis=1).mean()), float(hits.sum(axis=1).mean()), float(1 - hits.any(axis=1).mean())
