"""The pointing game: how often a map's strongest place lies in a true box, beside what guessing would reach."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from utils.boxes import CORNERS
from utils.breast import breast_mask
from utils.cache import load_picture
from utils.intervals import proportion

BLUR_SHARE = 0.02  # of a picture's height: "bright" means a spot about as large as a small lesion
TIED = 1 - 1e-5  # of a map's maximum: interpolation leaves equal neighbours apart by a rounding error

Maps = dict[str, np.ndarray]  # by image_id, as from `utils.explanation.explain`


def pointing_game(maps: Maps, boxes: pd.DataFrame, masks: Maps | None = None) -> dict[str, float]:
    """Count how often a map's strongest place lies in a true box of its image.

    Parameters
    ----------
    maps : dict
        As from `utils.explanation.explain`.
    boxes : DataFrame
        From `utils.boxes.to_picture`: image_id, and corners as shares of the cached picture's sides.
    masks : dict, optional
        Where the breast is, bool arrays of the maps' shape; by default the whole picture counts.

    Returns
    -------
    dict
        ``share`` of the images that have a box and a map, its 95 % interval from ``low`` to ``high`` (Wilson's, as if a
        breast's images were independent), ``images``, their number, and ``chance``: the mean share of the breast that its
        boxes cover, which a random point would reach. A map of zeros points nowhere, and misses.

    References
    ----------
    Zhang et al., Top-down Neural Attention by Excitation Backprop, ECCV 2016; here without a margin around the boxes.
    """
    corners = _corners(maps, boxes)
    places = {image_id: strongest_place(maps[image_id]) for image_id in corners}
    hits = [_lies_in(places[image_id], corners[image_id]) for image_id in corners]
    chance = [_covered(corners[image_id], masks[image_id] if masks else maps[image_id] >= 0) for image_id in corners]
    return _counted(sum(hits), len(hits)) | {"chance": float(np.mean(chance)) if chance else np.nan}


def compare_pointing(maps: Maps, boxes: pd.DataFrame, cache_dir: str | Path, split: str = "train") -> pd.DataFrame:
    """Play the pointing game with maps, and with what needs no network.

    Parameters
    ----------
    maps, boxes
        As in `pointing_game`.
    cache_dir : path
    split : {"train", "test"}

    Returns
    -------
    DataFrame
        ``share``, ``low``, ``high`` and ``images`` of Grad-CAM; of each map on the other images, which tells whether the maps
        are the images' own; of the picture's brightest spot; of the middle of the breast; and of a random point in the breast,
        for which there is no interval.
    """
    corners = _corners(maps, boxes)
    pictures = {image_id: load_picture(cache_dir, split, image_id) for image_id in corners}
    masks = {image_id: _breast(picture) for image_id, picture in pictures.items()}
    middles = {image_id: _distance_inside(mask) for image_id, mask in masks.items()}
    game = pointing_game(maps, boxes, masks)
    alone = {"low": np.nan, "high": np.nan, "images": game["images"]}
    return (
        pd.DataFrame(
            {
                "Grad-CAM": {key: game[key] for key in ("share", *alone)},
                "Grad-CAM of another image": alone | {"share": _swapped(maps, corners)},
                "brightest spot": pointing_game({key: _blurred(picture) for key, picture in pictures.items()}, boxes),
                "middle of the breast": pointing_game(middles, boxes),
                "random point in the breast": alone | {"share": game["chance"]},
            }
        )
        .T[["share", *alone]]
        .astype({"images": int})
        .rename_axis("strongest place of")
    )


def strongest_place(heat: np.ndarray) -> tuple[float, float] | None:
    """Give x and y of a map's maximum as shares of its sides; of equal neighbours their middle. None for a map of zeros."""
    highest = heat.max()
    if highest <= 0:
        return None
    _, labels = cv2.connectedComponents((heat >= highest * TIED).astype(np.uint8))
    y, x = np.nonzero(labels == labels.flat[heat.argmax()])
    return (x.mean() + 0.5) / heat.shape[1], (y.mean() + 0.5) / heat.shape[0]


def _corners(maps: Maps, boxes: pd.DataFrame) -> dict[str, np.ndarray]:
    """Boxes of each image that has a map: (k, 4)."""
    groups = boxes[boxes.image_id.isin(list(maps))].groupby("image_id", sort=False)[CORNERS]
    return {image_id: group.to_numpy(dtype=float) for image_id, group in groups}


def _lies_in(place: tuple[float, float] | None, corners: np.ndarray) -> bool:
    return place is not None and bool(((corners[:, :2] <= place) & (place < corners[:, 2:])).all(axis=1).any())


def _covered(corners: np.ndarray, mask: np.ndarray) -> float:
    """Share of a mask's pixels whose middle lies in a box."""
    y, x = np.nonzero(mask)
    places = np.stack([(x + 0.5) / mask.shape[1], (y + 0.5) / mask.shape[0]], axis=1)[:, None]  # (pixels, 1, 2)
    inside = ((corners[:, :2] <= places) & (places < corners[:, 2:])).all(axis=2)  # (pixels, k)
    return float(inside.any(axis=1).mean()) if len(inside) else 0.0


def _swapped(maps: Maps, corners: dict[str, np.ndarray]) -> float:
    """Share of hits of each image's map in every other image's boxes."""
    places = {image_id: strongest_place(maps[image_id]) for image_id in corners}
    hits = [_lies_in(places[a], corners[b]) for a in corners for b in corners if a != b]
    return float(np.mean(hits)) if hits else np.nan


def _counted(hits: int, count: int) -> dict[str, float]:
    interval = proportion(hits, count)
    return {"share": interval.value, "low": interval.low, "high": interval.high, "images": count}


def _breast(picture: np.ndarray) -> np.ndarray:
    """Where the breast is in a cached picture, bool of the same shape; everywhere if none is found."""
    mask = breast_mask(picture.astype(np.float32) / 255).astype(np.uint8)
    mask = cv2.resize(mask, picture.shape[::-1], interpolation=cv2.INTER_NEAREST).astype(bool)
    return mask if mask.any() else np.ones_like(mask)


def _distance_inside(mask: np.ndarray) -> np.ndarray:
    """Distance of each pixel of a mask from its edge, where the picture ends too: highest in the middle."""
    return cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]


def _blurred(picture: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(picture.astype(np.float32), (0, 0), BLUR_SHARE * picture.shape[0])
