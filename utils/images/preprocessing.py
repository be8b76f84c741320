"""One DICOM file to the image that models see: find the breast on a small copy, then decode no more than needed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.dicom.file import DicomFile, open_dicom
from utils.images.breast import MASK_SIDE, Crop, find_breast
from utils.images.resample import average_areas, fitted_size, fitting_scale, halvings_to, low_pass, pad, rescaled, resize

MIN_OVERSAMPLING = 1.2  # decoded pixels per cached pixel: with fewer, the error exceeds that of Lanczos instead of areas
FILTERED_HALVINGS = 2  # of the overview of an image decoded in full: more cost time and find the breast no better


@dataclass(frozen=True)
class Plan:
    """What to decode of a file: halve it ``discard`` times, take ``crop``, and shrink it to ``height`` x ``width``."""

    crop: Crop
    height: int
    width: int
    discard: int


def preprocess(path: str | Path, height: int, width: int, margin: float = 0.03, exact: bool = False) -> tuple[np.ndarray, dict]:
    """Turn one DICOM file into the image that models see; train and test images both go through here.

    Parameters
    ----------
    height, width : int
        Of the result, in pixels.
    margin : float
        Kept around the breast, as a share of the original's longer side.
    exact : bool
        Average over areas of the full-resolution image. Otherwise the image is first halved as often as `MIN_OVERSAMPLING`
        allows: JPEG 2000 files are decoded at that size, others pass the same filter.

    Returns
    -------
    picture : ndarray of shape (height, width), uint8
        Tissue bright, chest wall left.
    row : dict
        The manifest's columns from ``source_height`` to ``file_bytes``.

    Raises
    ------
    utils.dicom.file.DicomError
        If the file can't be read.
    """
    with open_dicom(path) as file:
        return finish(file, make_plan(file, height, width, margin, exact), height, width)


def finish(file: DicomFile, plan: Plan, height: int, width: int) -> tuple[np.ndarray, dict]:
    """Return what `preprocess` returns, for an open file and its plan."""
    picture = np.rint(draw(file, plan) * 255).clip(0, 255).astype(np.uint8)
    return pad(picture, height, width), describe(file, plan)


def make_plan(file: DicomFile, height: int, width: int, margin: float, exact: bool) -> Plan:
    """Find the breast, and choose how often to halve the image before fitting it into ``height`` x ``width`` pixels."""
    step, overview = _overview(file)
    crop = find_breast(file.grey(overview), margin, step, file.shape)
    shape = crop.bottom - crop.top, crop.right - crop.left
    scale = fitting_scale(shape, height, width)
    discard = 0
    while not exact and scale * 2 ** (discard + 1) * MIN_OVERSAMPLING <= 1:
        discard += 1
    return Plan(crop, *fitted_size(shape, height, width), discard)


def draw(file: DicomFile, plan: Plan) -> np.ndarray:
    """Decode, crop, window and shrink to the plan's size: float32 in [0, 1], tissue bright, chest wall left."""
    crop, size = plan.crop, (plan.height, plan.width)
    if not plan.discard:
        picture = resize(file.grey(file.stored()[crop.top : crop.bottom, crop.left : crop.right]), *size)
    else:
        rows = rescaled((crop.top, crop.bottom), 0.5**plan.discard)
        columns = rescaled((crop.left, crop.right), 0.5**plan.discard)
        (top, bottom), (left, right) = _around(rows), _around(columns)
        part = halved(file, plan.discard, slice(top, bottom), slice(left, right))
        rows, columns = [edge - top for edge in rows], [edge - left for edge in columns]
        picture = average_areas(part, rows, columns, *size, show=file.grey_map(part))
    picture = _without_frame(picture, crop)
    return picture[:, ::-1] if crop.flipped else picture


def describe(file: DicomFile, plan: Plan) -> dict:
    """Return the manifest's columns from ``source_height`` to ``file_bytes``."""
    crop = plan.crop
    decoded = min(plan.discard, file.levels)
    return {
        "source_height": file.shape[0],
        "source_width": file.shape[1],
        "crop_top": crop.top,
        "crop_left": crop.left,
        "crop_bottom": crop.bottom,
        "crop_right": crop.right,
        "flipped": int(crop.flipped),
        "flags": " ".join(file.flags + crop.flags),
        "codec": file.codec,
        "decoded": f"1/{2**decoded}",
        "halved": f"1/{2**plan.discard}",
        "bytes_read": file.bytes_read,
        "file_bytes": file.bytes_total,
    }


def _without_frame(picture: np.ndarray, crop: Crop) -> np.ndarray:
    """Blacken the white frame of a scanned film in an image of the crop."""
    if crop.film is None:
        return picture
    top, left, bottom, right = crop.film
    down, across = picture.shape[0] / (crop.bottom - crop.top), picture.shape[1] / (crop.right - crop.left)
    rows = slice(max(0, math.ceil((top - crop.top) * down)), math.floor((bottom - crop.top) * down))
    columns = slice(max(0, math.ceil((left - crop.left) * across)), math.floor((right - crop.left) * across))
    inside = np.zeros_like(picture)
    inside[rows, columns] = picture[rows, columns]
    return inside


def _overview(file: DicomFile) -> tuple[int, np.ndarray]:
    """Return the step and the image of an overview: low-pass filtered, small enough for `find_breast`."""
    halvings = halvings_to(file.shape, MASK_SIDE)
    decoded = min(halvings, file.levels)
    skipped = max(0, halvings - decoded - FILTERED_HALVINGS)
    picture = np.ascontiguousarray(file.stored(decoded)[:: 1 << skipped, :: 1 << skipped])
    return 1 << halvings, low_pass(picture, halvings - decoded - skipped)


def halved(file: DicomFile, halvings: int, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
    """Return part of the image halved ``halvings`` times: by the decoder as far as it can, then by the same filter."""
    decoded = min(halvings, file.levels)
    return low_pass(file.stored(decoded), halvings - decoded, rows, columns)


def _around(edges: list[float]) -> tuple[int, int]:
    """Return the half-open range of samples that interpolation between these edges needs."""
    return max(0, math.floor(edges[0]) - 2), math.ceil(edges[1]) + 2
