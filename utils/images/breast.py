"""Find the breast in an image: its mask, its box, and the side of its chest wall."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from utils.images.film import Box, film_box
from utils.images.resample import rescaled

MASK_SIDE = 256  # px: longer side of the image on which the breast is searched
TISSUE_LEVEL = 0.06  # share of the range between air and the brightest tissue
RAISED_LEVELS = np.arange(0.08, 0.5, 0.02)  # tried if the background is brighter than TISSUE_LEVEL
MIN_FAINT_SHARE = 0.025  # of all pixels, from TISSUE_LEVEL to twice that: with fewer, the background is dark
MIN_SLOPE = 0.006  # of the range, per pixel; measured: 0.008 to 0.1 at outlines of breasts, 0.001 at those of scattered light
FRAME_SHARE = 0.015  # of the longer side: widest frame border
DETACH_SHARE = 0.02  # of the longer side: thinner parts (letters, frame lines) are not breast
REGROW_SHARE = 0.06  # of the longer side: how much of a nipple or a skin fold detaching may cut off
FAINT_LEVEL = 0.03  # TISSUE_LEVEL next to the breast: a nipple in profile is thin and faint
MIN_BREAST_SHARE = 0.02  # of the image: smaller components are not a breast
MIN_CONTRAST = 0.02  # between air and tissue on the [0, 1] scale


@dataclass(frozen=True)
class Crop:
    """Where a crop is in the original image.

    ``top``, ``left``, ``bottom``, ``right`` are pixels of the original, half open. ``flipped``: the crop is mirrored left to
    right. ``film``: the box inside the white frame of a scanned film, or None if there is no frame.

    ``flags``: ``no_breast``, no breast was found, so the crop is the full frame; ``whole_frame``, the breast fills the image
    or is indistinguishable from its background; ``film_frame``, there is a white frame.
    """

    top: int
    left: int
    bottom: int
    right: int
    flipped: bool = False
    flags: tuple[str, ...] = ()
    film: Box | None = None


def find_breast(picture: np.ndarray, margin: float = 0.03, step: int = 1, shape: tuple[int, int] | None = None) -> Crop:
    """Find the crop that contains the breast, and the side of its chest wall.

    Parameters
    ----------
    picture : ndarray of shape (height, width), float32 in [0, 1]
        Tissue bright, as from `utils.dicom.read_dicom`.
    margin : float
        Added on each side, as a share of the original's longer side.
    step : int
        Distance between samples of ``picture`` on the original, in pixels; the first sample is the original's first.
    shape : (int, int), optional
        Shape of the original; that of ``picture`` by default.

    Returns
    -------
    Crop
        In pixels of the original; the full frame, flagged ``no_breast``, if there is no breast.
    """
    shape = shape or picture.shape
    mask, inside = _mask_and_film(picture, step)
    film = None
    flags = ()
    if inside != (0, 0, *mask.shape):
        film = _on_original(_scaled(inside, mask.shape, picture.shape), step, shape)
        flags = ("film_frame",)
    if not mask.any():
        return Crop(0, 0, *shape, flags=(*flags, "no_breast"), film=film)
    box = _on_original(_scaled(_bounding_box(mask), mask.shape, picture.shape), step, shape)
    crop = _grow(box, margin, shape)
    if crop == (0, 0, *shape):
        flags += ("whole_frame",)
    return Crop(*crop, flipped=_chest_wall_is_right(mask), flags=flags, film=film)


def breast_mask(image: np.ndarray) -> np.ndarray:
    """Mark the breast on a downscaled copy of an image.

    A low level separates dark air from bright tissue, opening detaches burned-in labels and frame borders, and the largest
    connected component is the breast.

    Parameters
    ----------
    image : ndarray of shape (height, width), float32 in [0, 1]

    Returns
    -------
    ndarray of shape (mask_height, mask_width), bool
        Longer side at most `MASK_SIDE`; all False if there is no breast.
    """
    return _mask_and_film(image, 1)[0]


def _mask_and_film(image: np.ndarray, step: int) -> tuple[np.ndarray, Box]:
    """Return the breast's mask, and the box inside a film's frame on it; ``step`` is that of `find_breast`."""
    small = _shrink(image)
    inside = film_box(small, step * image.shape[0] / small.shape[0])
    return _tissue_mask(small, inside), inside


def _tissue_mask(small: np.ndarray, inside: Box) -> np.ndarray:
    """Mark the breast; raise the level if the outline is too flat to be skin, as with a bright background."""
    if inside != (0, 0, *small.shape):  # a film's frame is breast only where the tissue next to it is
        top, left, bottom, right = inside
        around = (top, small.shape[0] - bottom), (left, small.shape[1] - right)
        small = np.pad(small[top:bottom, left:right], around, mode="edge")
    # Percentiles, so that neither a burned-in label nor a stray pixel sets the scale.
    ordered = np.sort(small, axis=None)  # several times faster than np.percentile
    air, bright = (_between(ordered, share * (ordered.size - 1)) for share in (0.01, 0.99))
    if bright - air < MIN_CONTRAST:
        return np.zeros(small.shape, dtype=bool)
    level = (small - air) / (bright - air)
    mask = _mask_above(level, TISSUE_LEVEL, FAINT_LEVEL)
    if np.count_nonzero((level > TISSUE_LEVEL) & (level < 2 * TISSUE_LEVEL)) < MIN_FAINT_SHARE * level.size:
        return mask
    slopes = _slopes(level)
    if _outline_slope(mask, slopes, 50) >= MIN_SLOPE:
        return mask
    for raised in RAISED_LEVELS:
        higher = _mask_above(level, raised, raised)
        if _outline_slope(higher, slopes, 10) >= MIN_SLOPE:
            return higher
    return mask


def _between(ordered: np.ndarray, place: float) -> float:
    """Interpolate linearly at a fractional index of sorted values."""
    low = int(place)
    return ordered[low] + (ordered[min(low + 1, ordered.size - 1)] - ordered[low]) * (place - low)


def _mask_above(level: np.ndarray, tissue: float, faint: float) -> np.ndarray:
    """Return the largest component above the level ``tissue``, regrown into adjacent pixels above ``faint``."""
    breast = _largest_component(_detach((level > tissue).astype(np.uint8)))
    return _regrow(breast, (level > faint).astype(np.uint8))


def _slopes(level: np.ndarray) -> np.ndarray:
    """Return the level's change per pixel, after smoothing away noise."""
    smooth = cv2.GaussianBlur(level.astype(np.float32), (0, 0), 1.5)
    return np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)) / 8


def _outline_slope(mask: np.ndarray, slopes: np.ndarray, percentile: float) -> float:
    """Return the slope that all but ``percentile`` % of a mask's outline exceed; infinite if it is all on the rim."""
    outline = mask.astype(np.uint8) - cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8))
    rim = _rim(mask.shape) + 1
    found = slopes[rim:-rim, rim:-rim][outline[rim:-rim, rim:-rim] > 0]
    return float(np.percentile(found, percentile)) if found.size else np.inf


def _shrink(image: np.ndarray) -> np.ndarray:
    """Shrink an image so that its longer side is at most `MASK_SIDE`."""
    h, w = image.shape
    scale = min(1.0, MASK_SIDE / max(h, w))
    stride = max(1, int(0.5 / scale))  # a strided view first: averaging every pixel costs 10 times more for the same mask
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    return cv2.resize(np.ascontiguousarray(image[::stride, ::stride]), size, interpolation=cv2.INTER_AREA)


def _detach(tissue: np.ndarray) -> np.ndarray:
    """Remove thin parts, such as frame borders, and cut burned-in labels off the breast."""
    rim = _rim(tissue.shape)
    # Opening can't remove a border on the rim itself: it is breast only where the tissue next to it is.
    height, width = tissue.shape
    inner = np.pad(tissue[rim : height - rim, rim : width - rim], rim, mode="edge")
    side = 2 * max(1, round(DETACH_SHARE * max(tissue.shape) / 2)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return cv2.morphologyEx(inner, cv2.MORPH_OPEN, kernel, borderType=cv2.BORDER_REPLICATE)


def _regrow(breast: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """Add adjacent tissue that detaching cut off, such as the nipple."""
    side = 2 * round(REGROW_SHARE * max(tissue.shape)) + 1
    near = cv2.dilate(breast.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    rim = _rim(tissue.shape)
    inner = np.zeros_like(tissue)
    height, width = tissue.shape
    inside = np.s_[rim : height - rim, rim : width - rim]
    inner[inside] = tissue[inside]  # a frame border on the rim does not grow back
    grown = (breast | (near & inner).astype(bool)).astype(np.uint8)
    labels = cv2.connectedComponents(grown, connectivity=4)[1]
    return labels == labels[tuple(np.argwhere(breast)[0])] if breast.any() else breast


def _rim(shape: tuple[int, int]) -> int:
    """Return the width in pixels of the edge that a frame border may cover; less than half of a thin image."""
    return min(max(1, round(FRAME_SHARE * max(shape))), (min(shape) - 1) // 2)


def _largest_component(tissue: np.ndarray) -> np.ndarray:
    """Mark the largest connected component; nothing if it covers less than `MIN_BREAST_SHARE` of the image."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(tissue, connectivity=4)
    stats[0, cv2.CC_STAT_AREA] = 0  # the background
    areas = stats[:, cv2.CC_STAT_AREA]
    if areas.max() < MIN_BREAST_SHARE * tissue.size:
        return np.zeros(tissue.shape, dtype=bool)
    return labels == areas.argmax()


def _bounding_box(mask: np.ndarray) -> Box:
    """Return the smallest box around a mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _scaled(box: Box, old: tuple[int, int], new: tuple[int, int]) -> Box:
    """Scale a box from an image of shape ``old`` to the same image of shape ``new``, rounded outwards."""
    top, left, bottom, right = box
    down, across = new[0] / old[0], new[1] / old[1]
    return _outwards((top * down, left * across, bottom * down, right * across), new)


def _on_original(box: Box, step: int, shape: tuple[int, int]) -> Box:
    """Map a box to the original, where the image's sample i is sample ``step * i``; rounded outwards."""
    return _outwards(rescaled(box, step), shape)


def _grow(box: Box, margin: float, shape: tuple[int, int]) -> Box:
    """Widen a box on each side by a share of the longer side, within the image."""
    by = round(margin * max(shape))
    top, left, bottom, right = box
    return _outwards((top - by, left - by, bottom + by, right + by), shape)


def _outwards(box: Sequence[float], shape: tuple[int, int]) -> Box:
    """Round a box to pixels, outwards but within an image of ``shape``."""
    top, left, bottom, right = box
    return max(0, math.floor(top)), max(0, math.floor(left)), min(shape[0], math.ceil(bottom)), min(shape[1], math.ceil(right))


def _chest_wall_is_right(mask: np.ndarray) -> bool:
    """True if the breast widens to the right: it is tall at the chest wall and tapers to the nipple."""
    heights = mask.sum(axis=0)
    columns = np.flatnonzero(heights)
    center = (heights * np.arange(mask.shape[1])).sum() / heights.sum()
    return bool(center > (columns[0] + columns[-1]) / 2)
