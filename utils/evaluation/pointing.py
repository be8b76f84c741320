"""The pointing game: how often a map's strongest place lies in a true box, next to what needs no network."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from utils.images.breast import breast_mask
from utils.images.cache import load_picture
from utils.metrics.intervals import PatientBootstrap
from utils.tables.boxes import CORNERS

BLUR_SHARE = 0.02  # of a picture's height: "bright" means a spot about as large as a small lesion
TIED = 1 - 1e-5  # of a map's maximum: interpolation leaves equal neighbours apart by a rounding error
RANDOM_POINTS = 500  # spread over the breast, which stand for all of its points

OWN = "Grad-CAM"
OTHERS = "Grad-CAM of another patient"
BRIGHTEST = "brightest spot"
MIDDLE = "middle of the breast"
RANDOM = "random point in the breast"

Place = tuple[float, float]  # x and y as shares of a picture's sides


@dataclass(frozen=True)
class Landmarks:
    """Places in a picture that are found without a network: x and y as shares of the picture's sides.

    Parameters
    ----------
    brightest : tuple
        The brightest spot of about the size of a small lesion.
    middle : tuple
        The place in the breast that is farthest from its edge.
    spread : ndarray of shape (n, 2)
        Points spread evenly over the breast, at most `RANDOM_POINTS`.
    """

    brightest: Place
    middle: Place
    spread: np.ndarray


def find_landmarks(picture: np.ndarray) -> Landmarks:
    """Find the places in a cached picture that a map is compared with.

    Parameters
    ----------
    picture : ndarray of shape (image_height, image_width), uint8

    Returns
    -------
    Landmarks
        Of the complete picture where no breast is found.
    """
    mask = _breast(picture)
    bright = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), BLUR_SHARE * picture.shape[0])
    y, x = np.nonzero(mask)
    chosen = np.linspace(0, len(x) - 1, min(len(x), RANDOM_POINTS)).astype(int)
    spread = np.stack([(x[chosen] + 0.5) / mask.shape[1], (y[chosen] + 0.5) / mask.shape[0]], axis=1)
    middle = strongest_place(_distance_inside(mask))
    return Landmarks(strongest_place(bright) or middle, middle, spread)


def read_landmarks(image_ids: list[str], cache_dir: str | Path, split: str = "train") -> dict[str, Landmarks]:
    """Find the landmarks of cached pictures."""
    return {image_id: find_landmarks(load_picture(cache_dir, split, image_id)) for image_id in image_ids}


def strongest_place(heat: np.ndarray) -> Place | None:
    """Give x and y of a map's maximum as shares of its sides; of equal neighbours their middle. None for a map of zeros."""
    highest = heat.max()
    if highest <= 0:
        return None
    _, labels = cv2.connectedComponents((heat >= highest * TIED).astype(np.uint8))
    y, x = np.nonzero(labels == labels.flat[heat.argmax()])
    return (x.mean() + 0.5) / heat.shape[1], (y.mean() + 0.5) / heat.shape[0]


def play_pointing_game(
    places: dict[str, Place | None], landmarks: dict[str, Landmarks], boxes: pd.DataFrame, patients: pd.Series
) -> pd.DataFrame:
    """Look, for each image, which points lie in one of its true boxes.

    Parameters
    ----------
    places : dict
        Strongest place of each image's map, by image_id; None, which a map of zeros has, misses.
    landmarks : dict
        From `read_landmarks`, of the same images.
    boxes : DataFrame
        From `utils.images.boxes.to_picture`: image_id, and corners as shares of the cached picture's sides.
    patients : Series
        patient_id by image_id.

    Returns
    -------
    DataFrame
        One row for each image that has a place and a box, indexed by image_id: patient_id, and a column for each kind of
        point with 1 for a hit and 0 for a miss, or the share of hits where there are many such points: the maps of all other
        patients, and the points of the breast.

    References
    ----------
    Zhang et al., Top-down Neural Attention by Excitation Backprop, ECCV 2016; here without a margin around the boxes.
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
    """Set Grad-CAM next to each kind of point that needs no network.

    Parameters
    ----------
    hits : DataFrame
        From `play_pointing_game`.
    seed : int
        Of the bootstrap over patients.

    Returns
    -------
    DataFrame
        One row for each kind of point: how many images it was tried on, its share of hits as an `Interval`, the share of
        Grad-CAM minus it as text, and what that shows.
    """
    bootstrap = PatientBootstrap(hits.patient_id, seed=seed)
    rows = {}
    for kind in hits.columns.drop("patient_id"):
        tried = hits[kind].notna()  # no other patient's map may be there
        share = bootstrap.share(hits[kind].fillna(0), tried)
        rows[kind] = {"images": int(tried.sum()), "in a true box [95 %]": share}
        if kind != OWN:
            difference = bootstrap.ratio((hits[OWN] - hits[kind]).fillna(0), tried)
            rows[kind] |= {f"{OWN} minus it": difference.signed, f"{OWN} is": difference.verdict if tried.any() else ""}
    return pd.DataFrame(rows).T.fillna("").rename_axis("strongest place of")


def by_image(boxes: pd.DataFrame) -> dict[str, np.ndarray]:
    """Corners of each image's boxes: (k, 4), by image_id in order of first appearance."""
    groups = boxes.groupby("image_id", sort=False)[CORNERS]
    return {image_id: group.to_numpy(dtype=float) for image_id, group in groups}


def inside(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Whether each of n points lies in each of k boxes, half-open: (n, k), bool. A point of NaN lies in none."""
    points = np.asarray(points, dtype=float).reshape(-1, 1, 2)
    return ((corners[:, :2] <= points) & (points < corners[:, 2:])).all(axis=2)


def _share_inside(points: np.ndarray, corners: np.ndarray) -> float:
    """Share of points that lie in any of an image's boxes; NaN if there is no point."""
    hits = inside(points, corners).any(axis=1)
    return float(hits.mean()) if len(hits) else np.nan


def _breast(picture: np.ndarray) -> np.ndarray:
    """Where the breast is in a cached picture, bool of the same shape; everywhere if none is found."""
    mask = breast_mask(picture.astype(np.float32) / 255).astype(np.uint8)
    mask = cv2.resize(mask, picture.shape[::-1], interpolation=cv2.INTER_NEAREST).astype(bool)
    return mask if mask.any() else np.ones_like(mask)


def _distance_inside(mask: np.ndarray) -> np.ndarray:
    """Distance of each pixel of a mask from its edge, where the picture ends too: highest in the middle."""
    return cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
