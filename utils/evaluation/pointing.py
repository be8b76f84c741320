"""The pointing game: how often a map's strongest place is in a true box, next to places that need no network."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from utils.images.breast import breast_mask
from utils.images.cached import load_picture
from utils.metrics.intervals import PatientBootstrap
from utils.tables.boxes import CORNERS

BLUR_SHARE = 0.02  # share of an image's height, so that a bright spot is about as large as a small lesion
TIED = 1 - 1e-5  # share of a map's maximum; interpolation leaves rounding errors between equal neighbours
RANDOM_POINTS = 500  # spread over the breast, to stand for all its points

OWN = "the run's map"
OTHERS = "the run's map of another patient"
BRIGHTEST = "brightest spot"
MIDDLE = "middle of the breast"
RANDOM = "random point in the breast"

Place = tuple[float, float]  # x and y as shares of an image's sides


@dataclass(frozen=True)
class Landmarks:
    """Places in an image that are found without a network, as shares of its sides.

    ``brightest`` is the brightest spot of about the size of a small lesion. ``middle`` is the place in the breast that
    is farthest from its edge. ``spread`` has at most `RANDOM_POINTS` points spread evenly over the breast: (n, 2).
    """

    brightest: Place
    middle: Place
    spread: np.ndarray


def find_landmarks(picture: np.ndarray) -> Landmarks:
    """Find the landmarks of a cached image, uint8 (height, width); if no breast is found, of the entire image."""
    mask = _breast(picture)
    bright = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), BLUR_SHARE * picture.shape[0])
    y, x = np.nonzero(mask)
    chosen = np.linspace(0, len(x) - 1, min(len(x), RANDOM_POINTS)).astype(int)
    spread = np.stack([(x[chosen] + 0.5) / mask.shape[1], (y[chosen] + 0.5) / mask.shape[0]], axis=1)
    middle = strongest_place(_distance_inside(mask))
    return Landmarks(strongest_place(bright) or middle, middle, spread)


def read_landmarks(image_ids: Iterable[str], cache_dir: str | Path) -> dict[str, Landmarks]:
    """Find the landmarks of cached training images."""
    return {image_id: find_landmarks(load_picture(cache_dir, "train", image_id)) for image_id in image_ids}


def strongest_place(heat: np.ndarray) -> Place | None:
    """Return x and y of a map's maximum as shares of its sides, the middle of equal neighbours; None for all zeros."""
    highest = heat.max()
    if highest <= 0:
        return None
    _, labels = cv2.connectedComponents((heat >= highest * TIED).astype(np.uint8))
    y, x = np.nonzero(labels == labels.flat[heat.argmax()])
    return (x.mean() + 0.5) / heat.shape[1], (y.mean() + 0.5) / heat.shape[0]


def play_pointing_game(
    places: dict[str, Place | None], landmarks: dict[str, Landmarks], boxes: pd.DataFrame, patients: pd.Series
) -> pd.DataFrame:
    """Test for each image which points are in one of its true boxes (Zhang et al., ECCV 2016; here without a margin).

    ``places`` has the strongest place of each image's map; None is a miss. ``boxes`` are in shares of the cached
    image's sides. Return one row per image that has a place and a box, with 1 for a hit and 0 for a miss of each kind
    of point. Kinds of many points (the maps of all other patients, the points of the breast) have their share of hits.
    """
    corners = {name: group for name, group in by_image(boxes).items() if name in places}
    own = pd.DataFrame([places[name] or (np.nan, np.nan) for name in corners], columns=["x", "y"])
    owners = patients.loc[list(corners)].to_numpy()
    rows = []
    for name, true in corners.items():
        found, strangers = landmarks[name], owners != patients[name]
        rows.append(
            {
                "image_id": name,
                "patient_id": patients[name],
                OWN: _share_inside([places[name] or (np.nan, np.nan)], true),
                OTHERS: _share_inside(own[strangers], true),
                BRIGHTEST: _share_inside([found.brightest], true),
                MIDDLE: _share_inside([found.middle], true),
                RANDOM: _share_inside(found.spread, true),
            }
        )
    columns = ["image_id", "patient_id", OWN, OTHERS, BRIGHTEST, MIDDLE, RANDOM]
    return pd.DataFrame(rows, columns=columns).set_index("image_id")


def pointing_table(hits: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Compare a run's maps with each kind of point that needs no network.

    Return one row per kind: number of images, share of hits as an `Interval`, the run's minus it, and the verdict.
    """
    bootstrap, images = PatientBootstrap(hits.patient_id, seed=seed), np.ones(len(hits))
    rows = {}
    for kind in hits.columns.drop("patient_id"):
        count = int(hits[kind].count())  # there may be no map of another patient
        rows[kind] = {"images": count, "in a true box [95 %]": bootstrap.share(hits[kind], images)}
        if kind != OWN:
            difference = bootstrap.ratio(hits[OWN] - hits[kind], images)
            rows[kind] |= {f"{OWN} minus it": difference.signed, f"{OWN} is": difference.verdict if count else ""}
    return pd.DataFrame(rows).T.fillna("").rename_axis("strongest place of")


def by_image(boxes: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the corners of each image's boxes: (k, 4), by image_id in order of first appearance."""
    groups = boxes.groupby("image_id", sort=False)[CORNERS]
    return {image_id: group.to_numpy(dtype=float) for image_id, group in groups}


def inside(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Test if each of n points is in each of k half-open boxes: (n, k), bool. NaN points are in none."""
    points = np.asarray(points, dtype=float).reshape(-1, 1, 2)
    return ((corners[:, :2] <= points) & (points < corners[:, 2:])).all(axis=2)


def _share_inside(points: np.ndarray, corners: np.ndarray) -> float:
    """Return the share of points in any of an image's boxes; NaN without points."""
    hits = inside(points, corners).any(axis=1)
    return float(hits.mean()) if len(hits) else np.nan


def _breast(picture: np.ndarray) -> np.ndarray:
    """Return a mask of the breast in a cached image, bool of the same shape; all True if no breast is found."""
    mask = breast_mask(picture.astype(np.float32) / 255).astype(np.uint8)
    mask = cv2.resize(mask, picture.shape[::-1], interpolation=cv2.INTER_NEAREST).astype(bool)
    return mask if mask.any() else np.ones_like(mask)


def _distance_inside(mask: np.ndarray) -> np.ndarray:
    """Return the distance of each pixel of a mask from its edge; the image's edge counts too."""
    return cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
