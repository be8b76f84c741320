"""Boxes around findings: moved between stored and cached images, and compared."""

import numpy as np
import pandas as pd

from utils.images.resample import fitted_size, rows_above
from utils.images.settings import CacheSettings
from utils.tables.boxes import CORNERS

CROP = ["crop_top", "crop_left", "crop_bottom", "crop_right"]
LEAST_SEEN = 0.5  # smallest share of a box inside the cached image


def to_picture(boxes: pd.DataFrame, manifest: pd.DataFrame, settings: CacheSettings, cut: bool = True) -> pd.DataFrame:
    """Move boxes from stored images to cached ones.

    Parameters
    ----------
    boxes : DataFrame
        From `read_boxes`; other columns are kept.
    manifest : DataFrame
        The cache's rows of the images in question; boxes of other images are dropped.
    cut : bool
        Clip boxes to the crop, and drop those of which less than half is inside. False keeps them as they are, to undo
        `to_source`.

    Returns
    -------
    DataFrame
        Corners as shares of the cached image's sides, in [0, 1] if clipped.
    """
    table = _with_crops(boxes, manifest[manifest.error == ""])
    scale_x, scale_y, top = _geometry(table, settings)
    height, width = table.crop_bottom - table.crop_top, table.crop_right - table.crop_left
    in_crop = table[CORNERS].to_numpy() - np.stack([table.crop_left, table.crop_top] * 2, axis=1)
    seen = np.clip(in_crop, 0, np.stack([width, height] * 2, axis=1))
    kept = (_areas(seen) >= LEAST_SEEN * _areas(in_crop)) | (not cut)
    x_min, y_min, x_max, y_max = seen.T if cut else in_crop.T
    x_min, x_max = _turned(x_min, x_max, table)
    placed = table[boxes.columns].assign(
        x_min=x_min * scale_x / settings.image_width,
        y_min=(y_min * scale_y + top) / settings.image_height,
        x_max=x_max * scale_x / settings.image_width,
        y_max=(y_max * scale_y + top) / settings.image_height,
    )
    return placed[kept].reset_index(drop=True)


def to_source(boxes: pd.DataFrame, manifest: pd.DataFrame, settings: CacheSettings) -> pd.DataFrame:
    """Move boxes from cached images back to stored ones; undo `to_picture`."""
    table = _with_crops(boxes, manifest)
    scale_x, scale_y, top = _geometry(table, settings)
    x_min, x_max = (table[name] * settings.image_width / scale_x for name in ("x_min", "x_max"))
    x_min, x_max = _turned(x_min, x_max, table)
    return table[boxes.columns].assign(
        x_min=x_min + table.crop_left,
        x_max=x_max + table.crop_left,
        y_min=(table.y_min * settings.image_height - top) / scale_y + table.crop_top,
        y_max=(table.y_max * settings.image_height - top) / scale_y + table.crop_top,
    )


def largest_boxes(boxes: pd.DataFrame, image_ids: pd.Series) -> np.ndarray:
    """Return the corners of each image's largest box.

    Returns
    -------
    ndarray of shape (len(image_ids), 4), float32
        NaN for an image without boxes.
    """
    order = np.argsort(-_areas(boxes[CORNERS].to_numpy()), kind="stable")
    largest = boxes.iloc[order].drop_duplicates("image_id").set_index("image_id")[CORNERS]
    return largest.reindex(image_ids).to_numpy(dtype=np.float32, copy=True)


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the intersection over union of pairs of boxes, both of shape (n, 4)."""
    shared = np.concatenate([np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])], axis=1)
    intersection = _areas(shared) * (shared[:, 2:] > shared[:, :2]).all(axis=1)
    return intersection / (_areas(a) + _areas(b) - intersection)


def localisation(predicted: pd.DataFrame, boxes: pd.DataFrame) -> dict[str, float]:
    """Measure how well one predicted box per image finds the true boxes.

    Parameters
    ----------
    predicted : DataFrame
        image_id and corners, one row per image, whether it has a true box or not.
    boxes : DataFrame
        image_id and corners of all true boxes, on the same scale.

    Returns
    -------
    dict
        ``mean_iou``: mean over images with a box of the overlap with the true box that overlaps most. ``hit_rate``: share of
        true boxes that contain the centre of their image's predicted box. ``false_marks``: predicted boxes per image whose
        centre is in no true box; at most 1. ``images_with_box``: their number.
    """
    pairs = boxes.merge(predicted, on="image_id", suffixes=("", "_mark"))
    marks = pairs[[f"{name}_mark" for name in CORNERS]].to_numpy(dtype=float)
    true = pairs[CORNERS].to_numpy(dtype=float)
    centres = (marks[:, :2] + marks[:, 2:]) / 2
    hits = pd.Series(((centres >= true[:, :2]) & (centres < true[:, 2:])).all(axis=1), index=pairs.image_id)
    best = pd.Series(overlap(marks, true), index=pairs.image_id).groupby(level=0).max()
    return {
        "mean_iou": float(best.mean()),
        "hit_rate": float(hits.mean()),
        "false_marks": 1 - float(hits.groupby(level=0).max().sum()) / max(len(predicted), 1),
        "images_with_box": int(len(best)),
    }


def _with_crops(boxes: pd.DataFrame, manifest: pd.DataFrame) -> pd.DataFrame:
    """Join boxes to their images' manifest rows, with the crop as numbers: a manifest read from disk is text."""
    return boxes.merge(manifest, on="image_id").astype(dict.fromkeys(CROP, float))


def _turned(x_min: np.ndarray, x_max: np.ndarray, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Mirror horizontal edges within the crop if the image was mirrored; this is its own inverse."""
    width, flipped = table.crop_right - table.crop_left, table.flipped.astype(int) == 1
    return np.where(flipped, width - x_max, x_min), np.where(flipped, width - x_min, x_max)


def _geometry(table: pd.DataFrame, settings: CacheSettings) -> tuple[pd.Series, pd.Series, pd.Series]:
    """Return the scales along x and y from crop to cached image, and the rows of padding above, as in preprocessing."""
    height, width = table.crop_bottom - table.crop_top, table.crop_right - table.crop_left
    limits = settings.image_height, settings.image_width
    sizes = np.array([fitted_size(shape, *limits) for shape in zip(height, width, strict=True)]).reshape(-1, 2)
    top = rows_above(sizes[:, 0], settings.image_height)
    return sizes[:, 1] / width, sizes[:, 0] / height, pd.Series(top, index=table.index)


def _areas(corners: np.ndarray) -> np.ndarray:
    """Return the area of each box."""
    return (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
