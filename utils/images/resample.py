"""Make images smaller: the low-pass of JPEG 2000, and the average over the area of each new pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import cv2
import numpy as np
from scipy import sparse

CUBIC_SHARE = 0.5  # the error is least at 0.35; here it is 1 % more, but calcifications keep 3 % more of their peaks
INT16_MAX = np.iinfo(np.int16).max
ONE = np.float32((1,))
ROUNDING = 0.25  # the wavelet rounds up twice per halved axis, by a quarter on average
# Rows at once: few enough that intermediate images stay in the processor's cache, and memory is used again without page
# faults, which took up to 4 ms an image.
FILTERED_ROWS = 512  # of the image before the low-pass
AVERAGED_ROWS = 256  # of the image after `average_areas`
LOW_PASS = np.float32((-1 / 8, 2 / 8, 6 / 8, 2 / 8, -1 / 8))  # of the reversible 5/3 wavelet, ISO/IEC 15444-1 F.3.8.2.1


def low_pass(values: np.ndarray, levels: int, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
    """Halve an image ``levels`` times as JPEG 2000's reversible wavelet does, except for its roundings.

    Edges are mirrored. Images of all codecs pass this filter, so that a model can't learn the codec from the noise.

    Parameters
    ----------
    values : ndarray of shape (height, width), integers of up to 16 bits
    levels : int
        0 returns the values unchanged.
    rows, columns : slice
        The part of the result to compute; at least one row.

    Returns
    -------
    ndarray, same dtype
        Part ``[rows, columns]`` of the image of shape (ceil(height / 2**levels), ceil(width / 2**levels)).
    """
    if not levels:
        return values[rows, columns]
    first, stop, _ = rows.indices(-(-len(values) >> levels))
    down, across = _surroundings(slice(first, stop), levels)[0], _surroundings(columns, levels)[0]
    dtype, middle = _around_zero(values[down, across])
    height = max(1, FILTERED_ROWS >> levels)
    bands = [slice(top, min(top + height, stop)) for top in range(first, stop, height)]
    return np.concatenate([_low_pass(values, levels, band, columns, dtype, middle) for band in bands])


def _low_pass(values: np.ndarray, levels: int, rows: slice, columns: slice, dtype: type, middle: int) -> np.ndarray:
    """Return what `low_pass` returns for a few rows, calculated as ``dtype`` after subtracting ``middle``."""
    (down, rows), (across, columns) = (_surroundings(part, levels) for part in (rows, columns))
    part = _shifted(values[down, across], dtype, middle)
    for _axis in range(2):
        for _ in range(levels):
            part = cv2.sepFilter2D(part, -1, ONE, LOW_PASS, delta=ROUNDING)[::2]
        part = cv2.transpose(part)
    part, limits = part[rows, columns], np.iinfo(values.dtype)
    if middle or dtype != np.int16:
        part = np.rint(part).astype(np.int32) + middle
    return part.clip(limits.min, min(limits.max, np.iinfo(part.dtype).max)).astype(values.dtype)


def halvings_to(shape: tuple[int, int], side: int) -> int:
    """Return how often an image of ``shape`` must be halved until no side exceeds ``side`` pixels."""
    return ((max(shape) - 1) // side).bit_length()


def average_areas(
    picture: np.ndarray,
    rows: tuple[float, float],
    columns: tuple[float, float],
    height: int,
    width: int,
    show: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> np.ndarray:
    """Interpolate between the samples of an image, and average over the area of each new pixel.

    The samples of a low-resolution JPEG 2000 image are not averages over areas. Linear interpolation is the inverse of the
    reversible wavelet with zero details, and cubic interpolation keeps more of small bright spots; half of each best
    approximates the area average of the full image.

    Parameters
    ----------
    picture : ndarray of shape (h, w)
        Sample (i, j) is at (i + 0.5, j + 0.5).
    rows, columns : (float, float)
        Part of the image to take, in its own pixels; the outermost samples extend beyond its edges.
    height, width : int
        Of the result, in pixels.
    show : callable
        Converts samples to float32; called with some rows at a time.

    Returns
    -------
    ndarray of shape (height, width), float32
    """
    down = _area_weights(*rows, height, picture.shape[0])
    across, left, right = _without_empty_columns(_area_weights(*columns, width, picture.shape[1]))
    bands = []
    for start in range(0, height, AVERAGED_ROWS):
        band, top, bottom = _without_empty_columns(down[start : start + AVERAGED_ROWS])
        lowered = band @ show(picture[top:bottom, left:right])
        bands.append(cv2.transpose(across @ cv2.transpose(lowered)))
    return np.concatenate(bands)


def fitting_scale(shape: tuple[int, int], height: int, width: int) -> float:
    """Return the factor that fits an image of ``shape`` into ``height`` x ``width`` and keeps its aspect ratio."""
    return min(height / shape[0], width / shape[1])


def fitted_size(shape: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Return (height, width) of an image of ``shape`` after fitting it into ``height`` x ``width``."""
    scale = fitting_scale(shape, height, width)
    return max(1, min(height, round(shape[0] * scale))), max(1, min(width, round(shape[1] * scale)))


def rescaled(edges: Iterable[float], step: float) -> list[float]:
    """Map edges to the image whose sample ``i * step`` is sample i of the edges' image."""
    return [(edge - 0.5) * step + 0.5 for edge in edges]


def resize(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a float32 image: area averaging if it shrinks, linear interpolation if it grows.

    Area averaging is the only interpolation of OpenCV that uses every pixel, and calcifications are few pixels.
    """
    interpolation = cv2.INTER_AREA if height < picture.shape[0] or width < picture.shape[1] else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(picture), (width, height), interpolation=interpolation)


def rows_above(fitted_height: int, height: int) -> int:
    """Return how many rows `pad` adds above an image."""
    return (height - fitted_height) // 2


def pad(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Put an image on a black one of ``height`` x ``width``: at the left edge, centred vertically."""
    h, w = picture.shape
    top = rows_above(h, height)
    padded = np.zeros((height, width), dtype=picture.dtype)
    padded[top : top + h, :w] = picture
    return padded


def _around_zero(values: np.ndarray) -> tuple[type, int]:
    """Return the type (int16 is fastest) and the number to subtract with which values can be filtered without overflow."""
    highest = int(values.max())
    lowest = 0 if values.dtype.kind == "u" and highest <= INT16_MAX // 2 else int(values.min())
    if max(-lowest, highest) <= INT16_MAX // 2:
        return np.int16, 0
    middle = (lowest + highest) // 4 * 2  # even, so that halves round the same
    return (np.float32 if highest - lowest > INT16_MAX else np.int16), middle


def _shifted(values: np.ndarray, dtype: type, middle: int) -> np.ndarray:
    """Subtract ``middle`` from values."""
    if dtype == np.float32:
        return values.astype(np.float32) - np.float32(middle)
    part = values.view(np.int16) if values.dtype == np.uint16 else values.astype(np.int16, copy=False)
    return part - np.uint16(middle % 2**16).astype(np.int16) if middle else part  # modulo 2**16: right for uint16 too


def _surroundings(part: slice, levels: int) -> tuple[slice, slice]:
    """Return the slice of the full image on which a part of the halved one depends, and the part's slice in that.

    Two more samples of the halved image on each side cover the filters' reach, which is 2 * (2**levels - 1) pixels.
    """
    start = max(0, (part.start or 0) - 2)
    stop = None if part.stop is None else (part.stop + 2) << levels
    shifted = slice((part.start or 0) - start, None if part.stop is None else part.stop - start)
    return slice(start << levels, stop), shifted


def _area_weights(start: float, stop: float, count: int, samples: int) -> sparse.csr_array:
    """Integrate the samples' interpolating kernels over ``count`` equal parts of [start, stop]: (count, samples)."""
    edges = np.linspace(start, stop, count + 1)
    reach = int(np.ceil((stop - start) / count)) + 5
    near = np.floor(edges[:-1] - 2.5).astype(int)[:, None] + np.arange(reach)
    weights = _interpolation_integral(edges[1:, None] - near - 0.5) - _interpolation_integral(edges[:-1, None] - near - 0.5)
    weights /= weights.sum(axis=1, keepdims=True)
    return _banded(near.clip(0, samples - 1), weights.astype(np.float32), samples)


def _interpolation_integral(x: np.ndarray) -> np.ndarray:
    """Integrate from 0 to x the kernel: `CUBIC_SHARE` of Catmull and Rom's cubic, the rest the linear hat."""
    t = np.abs(x).clip(0, 2)
    near, far = t.clip(0, 1), t.clip(1, 2)
    hat = near * (1 - near / 2)
    # 1.5 t^3 - 2.5 t^2 + 1 up to 1, -0.5 t^3 + 2.5 t^2 - 4 t + 2 from there to 2
    cubic = near * (1 + near * near * (near * 3 / 8 - 5 / 6)) + far * (2 - far * (2 - far * (5 / 6 - far / 8))) - 17 / 24
    return np.sign(x) * (CUBIC_SHARE * cubic + (1 - CUBIC_SHARE) * hat)


def _banded(columns: np.ndarray, weights: np.ndarray, width: int) -> sparse.csr_array:
    """Return a sparse matrix with ``weights[i]`` at ``columns[i]`` of row i; equal columns add up."""
    count, taps = columns.shape
    matrix = sparse.csr_array((weights.ravel(), columns.ravel(), np.arange(0, count * taps + 1, taps)), shape=(count, width))
    matrix.sum_duplicates()
    return matrix


def _without_empty_columns(matrix: sparse.csr_array) -> tuple[sparse.csr_array, int, int]:
    """Cut empty columns off both sides; return the matrix, and the half-open range of columns kept."""
    first, last = int(matrix.indices.min()), int(matrix.indices.max()) + 1
    return matrix[:, first:last], first, last
