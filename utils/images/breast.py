"""Find the breast in a picture: its mask, its box, and the side of its chest wall."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from utils.images.film import Box, film_box

MASK_SIDE = 256  # px of the picture's longer side on which the breast is looked for
TISSUE_LEVEL = 0.06  # of the range between air and the brightest tissue
RAISED_LEVELS = np.arange(0.08, 0.5, 0.02)  # tried where the background is brighter than TISSUE_LEVEL
MIN_FAINT_SHARE = 0.025  # of the picture up to twice TISSUE_LEVEL: with less, no background is that bright
MIN_SLOPE = 0.006  # of the range, per pixel: measured 0.008 to 0.1 at the outline of breasts, 0.001 at that of scattered light
FRAME_SHARE = 0.015  # of the side: how far in a frame border may reach
DETACH_SHARE = 0.02  # of the side: what is thinner (letters, frame lines) does not count as breast
REGROW_SHARE = 0.06  # of the side: how far detaching may have cut off a nipple or a skin fold
FAINT_LEVEL = 0.03  # as TISSUE_LEVEL, next to the breast: a nipple in profile is thin and faint
MIN_BREAST_SHARE = 0.02  # of the picture: less is no breast
MIN_CONTRAST = 0.02  # between air and tissue on the [0, 1] scale


@dataclass(frozen=True)
class Crop:
    """Where in the original picture a crop lies.

    ``top``, ``left``, ``bottom``, ``right`` are pixels of the original picture, half open; ``flipped`` says that the crop was
    mirrored left to right; ``film`` is what lies in the white frame of a scanned film, None where there is no frame.

    ``flags`` names what was unusual: ``no_breast``, full frame taken; ``whole_frame``, the breast could not be told from what
    is around it, or fills the picture; ``film_frame``, there is a white frame.
    """

    top: int
    left: int
    bottom: int
    right: int
    flipped: bool = False
    flags: tuple[str, ...] = ()
    film: Box | None = None


def find_breast(picture: np.ndarray, margin: float = 0.03, step: int = 1, shape: tuple[int, int] | None = None) -> Crop:
    """Find the crop that holds the breast, and tell on which side its chest wall is.

    Parameters
    ----------
    picture : ndarray of shape (height, width), float32 in [0, 1]
        Tissue bright, as from `utils.dicom.read_dicom`.
    margin : float
        Added on each side, as a share of the original's longer side.
    step : int
        Distance of the picture's samples on the original, in pixels; the first lies on the original's first.
    shape : (int, int), optional
        Of the original; by default that of the picture.

    Returns
    -------
    Crop
        In pixels of the original; the full frame, flagged ``no_breast``, where no breast was found.
    """
    shape = shape or picture.shape
    small = _shrink(picture, MASK_SIDE)
    inside = film_box(small, step * picture.shape[0] / small.shape[0])
    mask = _tissue_mask(small, inside)
    film, flags = None, ()
    if inside != (0, 0, *small.shape):
        film, flags = _on_original(_scaled(inside, small.shape, picture.shape), step, shape), ("film_frame",)
    if not mask.any():
        return Crop(0, 0, *shape, flags=(*flags, "no_breast"), film=film)
    box = _on_original(_scaled(_bounding_box(mask), mask.shape, picture.shape), step, shape)
    crop = _grow(box, margin, shape)
    if crop == (0, 0, *shape):
        flags += ("whole_frame",)
    return Crop(*crop, flipped=_chest_wall_is_right(mask), flags=flags, film=film)


def breast_mask(image: np.ndarray) -> np.ndarray:
    """Mark the breast on a downscaled copy of the picture.

    Air is dark and tissue bright, so a low level between them separates the two; opening detaches burned-in labels and frame
    borders, and the largest connected component is the breast.

    Parameters
    ----------
    image : ndarray of shape (height, width), float32 in [0, 1]

    Returns
    -------
    ndarray of shape (mask_height, mask_width), bool
        Longer side at most `MASK_SIDE`; all False where there is no breast.
    """
    small = _shrink(image, MASK_SIDE)
    return _tissue_mask(small, film_box(small, image.shape[0] / small.shape[0]))


def _tissue_mask(small: np.ndarray, inside: Box) -> np.ndarray:
    if inside != (0, 0, *small.shape):  # a film's frame counts as breast only where the tissue next to it does
        top, left, bottom, right = inside
        around = (top, small.shape[0] - bottom), (left, small.shape[1] - right)
        small = np.pad(small[top:bottom, left:right], around, mode="edge")
    # Percentiles, not extremes: neither a burned-in label nor a stray pixel sets the scale.
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
    """Interpolate between two of the sorted values."""
    low = int(place)
    return ordered[low] + (ordered[min(low + 1, ordered.size - 1)] - ordered[low]) * (place - low)


def _mask_above(level: np.ndarray, tissue: float, faint: float) -> np.ndarray:
    breast = _largest_component(_detach((level > tissue).astype(np.uint8)), min_share=MIN_BREAST_SHARE)
    return _regrow(breast, (level > faint).astype(np.uint8))


def _slopes(level: np.ndarray) -> np.ndarray:
    """How much the level changes from pixel to pixel, noise smoothed away."""
    smooth = cv2.GaussianBlur(level.astype(np.float32), (0, 0), 1.5)
    return np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)) / 8


def _outline_slope(mask: np.ndarray, slopes: np.ndarray, percentile: float) -> float:
    """Slope that all but ``percentile`` % of a mask's outline exceed; infinite where it lies on the rim alone."""
    outline = mask.astype(np.uint8) - cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8))
    rim = _rim(mask.shape) + 1
    found = slopes[rim:-rim, rim:-rim][outline[rim:-rim, rim:-rim] > 0]
    return float(np.percentile(found, percentile)) if found.size else np.inf


def _shrink(image: np.ndarray, side: int) -> np.ndarray:
    h, w = image.shape
    scale = min(1.0, side / max(h, w))
    stride = max(1, int(0.5 / scale))  # a strided view first: averaging every pixel costs 10 times more and tells no more
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    return cv2.resize(np.ascontiguousarray(image[::stride, ::stride]), size, interpolation=cv2.INTER_AREA)


def _detach(tissue: np.ndarray) -> np.ndarray:
    """Remove what is thin, such as frame borders, and cut burned-in labels off the breast."""
    rim = _rim(tissue.shape)
    # A border lies on the rim itself, where opening can't remove it: it counts as breast only where the tissue next to it does.
    height, width = tissue.shape
    inner = np.pad(tissue[rim : height - rim, rim : width - rim], rim, mode="edge")
    side = 2 * max(1, round(DETACH_SHARE * max(tissue.shape) / 2)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return cv2.morphologyEx(inner, cv2.MORPH_OPEN, kernel, borderType=cv2.BORDER_REPLICATE)


def _regrow(breast: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """Give back to the breast the tissue next to it that detaching cut off, such as the nipple."""
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
    """Pixels of a mask's edge in which a frame border may lie; never the whole of a thin picture."""
    return min(max(1, round(FRAME_SHARE * max(shape))), (min(shape) - 1) // 2)


def _largest_component(tissue: np.ndarray, min_share: float) -> np.ndarray:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(tissue, connectivity=4)
    if count < 2:
        return np.zeros(tissue.shape, dtype=bool)
    areas = stats[1:, cv2.CC_STAT_AREA]
    return labels == 1 + areas.argmax() if areas.max() >= min_share * tissue.size else np.zeros(tissue.shape, dtype=bool)


def _bounding_box(mask: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _scaled(box: Box, old: tuple[int, int], new: tuple[int, int]) -> Box:
    """Box of a picture of the shape ``old`` on the same picture in the shape ``new``."""
    top, left, bottom, right = box
    down, across = new[0] / old[0], new[1] / old[1]
    lower, outer = int(np.ceil(bottom * down)), int(np.ceil(right * across))
    return int(top * down), int(left * across), min(lower, new[0]), min(outer, new[1])


def _on_original(box: Box, step: int, shape: tuple[int, int]) -> Box:
    """Box on the original of a picture whose sample i lies on the original's sample ``step * i``."""
    top, left, bottom, right = ((edge - 0.5) * step + 0.5 for edge in box)
    return (
        *(max(0, math.floor(top)), max(0, math.floor(left))),
        *(min(shape[0], math.ceil(bottom)), min(shape[1], math.ceil(right))),
    )


def _grow(box: Box, margin: float, shape: tuple[int, int]) -> Box:
    by = round(margin * max(shape))
    top, left, bottom, right = box
    return max(0, top - by), max(0, left - by), min(shape[0], bottom + by), min(shape[1], right + by)


def _chest_wall_is_right(mask: np.ndarray) -> bool:
    """Tell whether the breast widens to the right: it is tall at the chest wall and tapers to the nipple."""
    heights = mask.sum(axis=0)
    columns = np.flatnonzero(heights)
    center = (heights * np.arange(mask.shape[1])).sum() / heights.sum()
    return bool(center > (columns[0] + columns[-1]) / 2)
