"""Stored values to grey: modality LUT, VOI LUT or window on the stored scale, then the MONOCHROME1 inversion.

Each stored value has one grey value, so it is computed once per possible value and applied as a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut

IGNORED, RESCALED = "window_ignored", "voi_lut_rescaled"


@dataclass(frozen=True)
class Voi:
    """How a header displays values after the modality LUT.

    ``show`` maps values to [0, 1]; None if the header does not define that: stretch the values over their own range.
    ``flags`` may contain ``window_ignored`` (a VOI LUT or window can't be applied; the next one, or the range, replaces
    it) and ``voi_lut_rescaled`` (the VOI LUT's entries do not have the bits that it declares; its own maximum is
    white).
    """

    show: Callable[[np.ndarray], np.ndarray] | None
    flags: tuple[str, ...] = ()


def read_voi(header: pydicom.Dataset) -> Voi:
    """Return a header's first usable VOI LUT, else its first usable window, else none.

    A broken window must not cost the image: scanners and exports write widths of 0 if they know none.
    """
    flags: tuple[str, ...] = ()
    for make in _choices(header):
        try:
            voi = make()
        except Exception:  # broken elements raise anything
            flags = (IGNORED,)
        else:
            return Voi(voi.show, flags + voi.flags)
    return Voi(None, flags)


def grey_table(dataset: pydicom.Dataset, voi: Voi, lowest: int, highest: int) -> np.ndarray:
    """Return the grey values, float32 in [0, 1], tissue bright, of all stored values from ``lowest`` to ``highest``.

    Raise ValueError if the modality LUT gives values that are not finite.
    """
    values = apply_modality_lut(np.arange(lowest, highest + 1, dtype=np.int32), dataset)
    grey = (voi.show or _stretch)(values)
    if not np.isfinite(grey).all():
        raise ValueError("it gives values that are not finite")
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    return grey.astype(np.float32)


def apply_window(values: np.ndarray, center: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Map values to [0, 1] with a DICOM LINEAR, LINEAR_EXACT or SIGMOID window, before the MONOCHROME1 inversion.

    ``center`` and ``width`` are on the scale of the values, after the modality LUT. Raise ValueError if the function is
    unknown or can't have that width. DICOM PS3.3 C.11.2.1.2.1 (LINEAR), C.11.2.1.3.1 (SIGMOID), C.11.2.1.3.2
    (LINEAR_EXACT).
    """
    function = _checked_function(center, width, function)
    values = values.astype(np.float64)
    if function == "SIGMOID":
        # Far outside the window the exponential overflows to infinity, and the quotient is correctly 0.
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:  # LINEAR with width 1 is a step
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0, 1)


def _checked_function(center: float, width: float, function: str) -> str:
    function = function.upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ValueError(f"unknown VOI LUT Function {function!r}")
    if not (math.isfinite(center) and math.isfinite(width)):
        raise ValueError(f"Window Center {center} and Window Width {width} must be finite")
    if width < 1 if function == "LINEAR" else width <= 0:
        raise ValueError(f"Window Width {width} is too small for {function}")
    return function


def _choices(header: pydicom.Dataset) -> Iterator[Callable[[], Voi]]:
    """Yield readers of what may display the values, in order of preference; each raises if its element is broken."""
    for item in header.get("VOILUTSequence") or ():
        yield partial(_voi_of_lut, header, item)
    for center, width in zip_longest(_numbers(header, "WindowCenter"), _numbers(header, "WindowWidth"), fillvalue=np.nan):
        yield partial(_voi_of_window, center, width, header.get("VOILUTFunction") or "LINEAR")


def _voi_of_window(center: float, width: float, function: str) -> Voi:
    _checked_function(center, width, function)
    return Voi(partial(apply_window, center=center, width=width, function=function))


def _voi_of_lut(header: pydicom.Dataset, item: pydicom.Dataset) -> Voi:
    """Read one item of the VOI LUT sequence (PS3.3 C.11.2.1.1).

    pydicom's `apply_voi` keeps the index in the entries' type, which wraps in 8-bit tables of more than 256 entries.
    """
    little_endian = header.file_meta.TransferSyntaxUID.is_little_endian
    entries, first, bits = (int(number) for number in _words(item.LUTDescriptor, little_endian))
    table = _words(item.LUTData, little_endian)
    entries = entries or 2**16
    if bits <= 8 and len(table) == -(-entries // 2):  # two entries per word
        table = table.astype("<u2").view(np.uint8)
    if len(table) < entries:
        raise ValueError(f"the VOI LUT has {len(table)} entries, not {entries}")
    table = table[:entries]
    if table.min() == table.max():
        raise ValueError("all entries of the VOI LUT are equal")
    if first >= 2**15 and (header.PixelRepresentation == 1 or item["LUTDescriptor"].VR == "SS"):
        first -= 2**16
    # Some writers declare the allocated bits but use fewer; others use more than they declare.
    declared, highest = 2**bits - 1 if bits <= 16 else 0, int(table.max())
    fits = declared // 2 < highest <= declared
    show = partial(_look_up, table=table / (declared if fits else highest), first=first)
    return Voi(show, () if fits else (RESCALED,))


def _look_up(values: np.ndarray, table: np.ndarray, first: int) -> np.ndarray:
    """Return the entries of values; those outside the table get its first or last entry."""
    return table[np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)]


def _words(value, little_endian: bool) -> np.ndarray:
    """Return an element's unsigned 16-bit numbers, whether its VR makes them numbers or bytes."""
    if isinstance(value, bytes):
        return np.frombuffer(value + b"\0" * (len(value) % 2), dtype="<u2" if little_endian else ">u2").astype(np.int64)
    return np.atleast_1d(np.asarray(value, dtype=np.int64)) & 0xFFFF


def _stretch(values: np.ndarray) -> np.ndarray:
    lowest, highest = float(values.min()), float(values.max())
    return (values - lowest) / max(highest - lowest, np.finfo(np.float32).tiny)


def _numbers(header: pydicom.Dataset, keyword: str) -> list[float]:
    """Return a decimal element's numbers, NaN for each that is malformed; empty if it is absent or empty."""
    try:
        value = header.get(keyword)
    except ValueError:  # one of several is malformed: the raw bytes still contain the others
        value = header.get_item(keyword).value.decode("ascii", "replace").split("\\")
    if value in (None, ""):
        return []
    return [_number(part) for part in (value if isinstance(value, pydicom.multival.MultiValue | list) else [value])]


def _number(value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return np.nan
