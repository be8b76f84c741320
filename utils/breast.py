"""Find the breast in a picture, crop to it, turn its chest wall to the left, and fit it into a fixed size."""

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


def crop_breast(image: np.ndarray, margin: float = 0.03) -> tuple[np.ndarray, Crop]:
    """Crop a picture to its breast and mirror it, if needed, so that the chest wall is on the left.

    Parameters
    ----------
    image : ndarray of shape (height, width), float32 in [0, 1]
        Tissue bright, as from `utils.dicom.read_dicom`.
    margin : float
        Added on each side, as a share of the picture's longer side.

    Returns
    -------
    cropped : ndarray, float32 in [0, 1]
        A view where nothing was mirrored.
    crop : Crop
        Where the crop lies; the full frame, flagged ``no_breast``, where no breast was found.
    """
    mask = breast_mask(image)
    if not mask.any():
        box, flags = (0, 0, *image.shape), ("no_breast",)
    else:
        box, flags = _grow(_bounding_box(mask, image.shape), margin, image.shape), ()
    flipped = mask.any() and _chest_wall_is_right(mask)
    top, left, bottom, right = box
    cropped = image[top:bottom, left:right]
    return (cropped[:, ::-1] if flipped else cropped), Crop(*box, flipped=bool(flipped), flags=flags)


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


def resize_pad(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Fit a picture into ``height`` x ``width`` with its aspect ratio kept: chest wall at the left edge, centred vertically.

    Parameters
    ----------
    image : ndarray of shape (h, w), float32
    height, width : int
        Of the result, in pixels.

    Returns
    -------
    ndarray of shape (height, width), float32
        Padded with the value 0.
    """
    h, w = image.shape
    scale = min(height / h, width / w)
    new_h, new_w = max(1, min(height, round(h * scale))), max(1, min(width, round(w * scale)))
    # Area averaging when shrinking: no other interpolation of OpenCV's uses every pixel, and calcifications are few pixels.
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(np.ascontiguousarray(image), (new_w, new_h), interpolation=interpolation)
    top = (height - new_h) // 2
    padded = np.zeros((height, width), dtype=np.float32)
    padded[top : top + new_h, :new_w] = resized
    return padded


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
