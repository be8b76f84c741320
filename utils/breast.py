"""Find the breast in a picture: its mask, its box, and the side of its chest wall."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

MASK_SIDE = 256  # px of the picture's longer side on which the breast is looked for
TISSUE_LEVEL = 0.06  # of the range between air and the brightest tissue
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
    mirrored left to right; ``flags`` names what was unusual (``no_breast``: full frame taken).
    """

    top: int
    left: int
    bottom: int
    right: int
    flipped: bool = False
    flags: tuple[str, ...] = ()


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
    mask = breast_mask(picture)
    if not mask.any():
        return Crop(0, 0, *shape, flags=("no_breast",))
    box = _on_original(_bounding_box(mask, picture.shape), step, shape)
    return Crop(*_grow(box, margin, shape), flipped=_chest_wall_is_right(mask))


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
    # Percentiles, not extremes: neither a burned-in label nor a stray pixel sets the scale.
    air, bright = np.percentile(small, (1, 99))
    if bright - air < MIN_CONTRAST:
        return np.zeros(small.shape, dtype=bool)
    level = (small - air) / (bright - air)
    breast = _largest_component(_detach((level > TISSUE_LEVEL).astype(np.uint8)), min_share=MIN_BREAST_SHARE)
    return _regrow(breast, (level > FAINT_LEVEL).astype(np.uint8))


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


def _bounding_box(mask: np.ndarray, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Box (top, left, bottom, right) of a mask, on the scale of a picture of ``shape``."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    down, across = shape[0] / mask.shape[0], shape[1] / mask.shape[1]
    top, bottom = int(rows[0] * down), int(np.ceil((rows[-1] + 1) * down))
    left, right = int(columns[0] * across), int(np.ceil((columns[-1] + 1) * across))
    return top, left, min(bottom, shape[0]), min(right, shape[1])


def _on_original(box: tuple[int, int, int, int], step: int, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Box on the original of a picture whose sample i lies on the original's sample ``step * i``."""
    top, left, bottom, right = ((edge - 0.5) * step + 0.5 for edge in box)
    return (
        *(max(0, math.floor(top)), max(0, math.floor(left))),
        *(min(shape[0], math.ceil(bottom)), min(shape[1], math.ceil(right))),
    )


def _grow(box: tuple[int, int, int, int], margin: float, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    by = round(margin * max(shape))
    top, left, bottom, right = box
    return max(0, top - by), max(0, left - by), min(shape[0], bottom + by), min(shape[1], right + by)


def _chest_wall_is_right(mask: np.ndarray) -> bool:
    """Tell whether the breast widens to the right: it is tall at the chest wall and tapers to the nipple."""
    heights = mask.sum(axis=0)
    columns = np.flatnonzero(heights)
    center = (heights * np.arange(mask.shape[1])).sum() / heights.sum()
    return bool(center > (columns[0] + columns[-1]) / 2)
