"""Stored values to grey: modality LUT, VOI LUT or window on the stored scale, then the MONOCHROME1 inversion.

All of it maps one stored value to one grey value, so it is computed once per possible value and applied as a table.
"""

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut


def has_window(header: pydicom.Dataset) -> bool:
    """Tell whether the header says how to show the values; else they are stretched over their own range."""
    return bool(header.get("VOILUTSequence")) or None not in _window(header)


def grey_table(dataset: pydicom.Dataset, lowest: int, highest: int) -> np.ndarray:
    """Grey value of every stored value from ``lowest`` to ``highest``.

    Parameters
    ----------
    dataset : Dataset
        Header with the modality LUT, VOI LUT or window, and photometric interpretation.
    lowest, highest : int
        The picture's smallest and largest stored value.

    Returns
    -------
    ndarray of shape (highest - lowest + 1,), float32 in [0, 1]
        Entry i is the grey value of stored value ``lowest + i``, tissue bright.

    Raises
    ------
    ValueError
        If the window is not a valid one.
    """
    values = apply_modality_lut(np.arange(lowest, highest + 1, dtype=np.int32), dataset)
    grey = to_grey(values, dataset)
    if not np.isfinite(grey).all():
        raise ValueError("it gives values that are no numbers")
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    return grey.astype(np.float32)


def to_grey(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Map values after the modality LUT to [0, 1]: by the VOI LUT sequence, else the first window, else their own range.

    Parameters
    ----------
    values : ndarray, any shape and real dtype
    dataset : Dataset

    Returns
    -------
    ndarray of the same shape, float64 in [0, 1]
    """
    if dataset.get("VOILUTSequence"):
        return _apply_voi_lut(values, dataset.VOILUTSequence[0], dataset.file_meta.TransferSyntaxUID.is_little_endian)
    center, width = _window(dataset)
    if center is None or width is None:
        return _stretch(values)
    return apply_window(values, center, width, dataset.get("VOILUTFunction") or "LINEAR")


def apply_window(values: np.ndarray, center: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Map values to [0, 1] with a DICOM window.

    Apply it before the MONOCHROME1 inversion: ``center`` and ``width`` are given on the stored scale.

    Parameters
    ----------
    values : ndarray, any shape and real dtype
        Values after the modality LUT.
    center, width : float
        Window Center (0028,1050) and Window Width (0028,1051), same scale.
    function : {"LINEAR", "LINEAR_EXACT", "SIGMOID"}
        VOI LUT Function (0028,1056).

    Returns
    -------
    ndarray of the same shape, float64 in [0, 1]

    Raises
    ------
    ValueError
        If the function is unknown, ``width < 1`` for LINEAR, or ``width <= 0`` for the others.

    References
    ----------
    DICOM PS3.3 C.11.2.1.2.1 (LINEAR), C.11.2.1.3.1 (SIGMOID), C.11.2.1.3.2 (LINEAR_EXACT).
    """
    function = function.upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ValueError(f"unknown VOI LUT Function {function!r}")
    if width < 1 if function == "LINEAR" else width <= 0:
        raise ValueError(f"Window Width {width} is too small for {function}")
    values = values.astype(np.float64)
    if function == "SIGMOID":
        # Far outside the window the exponential overflows to infinity, and the quotient is 0, as it should be.
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:  # LINEAR with width 1 is a step
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0, 1)


def _apply_voi_lut(values: np.ndarray, item: pydicom.Dataset, little_endian: bool) -> np.ndarray:
    """Look values up in one item of the VOI LUT sequence; those outside take its first or last entry (PS3.3 C.11.2.1.1).

    pydicom's `apply_voi` keeps the index in the entries' type, which wraps in 8-bit tables of more than 256 entries.
    """
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    if not 1 <= bits <= 16:
        raise ValueError(f"a VOI LUT of {bits} bits")
    table = item.LUTData
    table = np.frombuffer(table, dtype="<u2" if little_endian else ">u2") if isinstance(table, bytes) else np.asarray(table)
    entries = min(entries or 2**16, len(table))
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, entries - 1)
    return np.clip(table[index] / (2**bits - 1), 0, 1)


def _stretch(values: np.ndarray) -> np.ndarray:
    lowest, highest = float(values.min()), float(values.max())
    return (values - lowest) / max(highest - lowest, np.finfo(np.float32).tiny)


def _window(header: pydicom.Dataset) -> tuple[float | None, float | None]:
    return _first(header.get("WindowCenter")), _first(header.get("WindowWidth"))


def _first(value) -> float | None:
    """First of one or several values of a header element; None where it is absent or empty."""
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if len(value) else None
    return None if value in (None, "") else float(value)
