"""One DICOM file to a picture: stored values, then float32 in [0, 1] with tissue bright.

The order is the standard's: decode, modality LUT, VOI window on the stored scale, MONOCHROME1 inversion. All that follows
the decoding maps one stored value to one grey value, so it is computed once per possible value and applied as a table.
"""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from pydicom.encaps import get_frame
from pydicom.pixels import apply_modality_lut, pixel_array
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
)

from utils.environment import KitError

# A broken file becomes a DicomError; pydicom would print a traceback of its own for it as well.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

MAX_PIXELS = 2**27  # a 5355 x 4915 frame, the largest in RSNA's set, has 26 million
END_OF_CODESTREAM = b"\xff\xd9"  # EOI in JPEG, EOC in JPEG 2000
UNCOMPRESSED = {ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian}
PYDICOM_DECODES = {*UNCOMPRESSED, RLELossless}
CODESTREAM_DECODERS: dict[str, Callable[[bytes], np.ndarray]] = {
    JPEG2000Lossless: imagecodecs.jpeg2k_decode,
    JPEG2000: imagecodecs.jpeg2k_decode,
    JPEGLosslessSV1: imagecodecs.jpeg_decode,
    JPEGLossless: imagecodecs.jpeg_decode,
}
JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"  # ISO/IEC 15444-1 I.5.1
PHOTOMETRIC = ("MONOCHROME1", "MONOCHROME2")


class DicomError(KitError):
    """A file that can't be read as a mammogram; ``path`` names it and ``reason`` says why."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(path, reason)  # both arguments, so that it survives pickling between processes
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_dicom(path: str | Path) -> np.ndarray:
    """Read a mammogram as a person would see it.

    Parameters
    ----------
    path : path
        A single-frame, one-channel DICOM file: JPEG 2000, JPEG Lossless, RLE or uncompressed.

    Returns
    -------
    ndarray of shape (height, width), float32 in [0, 1]
        Tissue bright, air dark.

    Raises
    ------
    DicomError
        If the file can't be read or decoded, or its header contradicts itself.

    References
    ----------
    DICOM PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT), C.7.6.3.1.2 (photometric interpretation).
    """
    dataset = _read_dataset(path)
    stored = _decode(dataset, path)
    lowest, highest = int(stored.min()), int(stored.max())
    try:
        table = grey_table(dataset, lowest, highest)
    except Exception as error:  # broken elements raise whatever they happen to cause
        raise DicomError(path, f"its modality LUT or window can't be applied ({error})") from error
    return table[stored.astype(np.int32) - lowest]


def read_stored(path: str | Path) -> np.ndarray:
    """Read the stored values of a single-frame, one-channel DICOM file.

    Parameters
    ----------
    path : path

    Returns
    -------
    ndarray of shape (height, width), an integer dtype
        As decoded, before the modality LUT. Of uncompressed and RLE data only the lowest Bits Stored bits count (PS3.5 8.1.1);
        in JPEG and JPEG 2000 the codestream's own precision does, which in some files exceeds Bits Stored.

    Raises
    ------
    DicomError
        If the file can't be read or decoded, or its header contradicts itself.
    """
    return _decode(_read_dataset(path), path)


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
    center, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
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


def _first(value) -> float | None:
    """First of one or several values of a header element; None where it is absent or empty."""
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if len(value) else None
    return None if value in (None, "") else float(value)


def _read_dataset(path: str | Path) -> pydicom.Dataset:
    """Read a file and check that its header describes one frame that can be decoded."""
    try:
        dataset = pydicom.dcmread(path)
    except FileNotFoundError as error:
        raise DicomError(path, "the file does not exist") from error
    except Exception as error:  # pydicom raises whatever a broken element happens to cause
        raise DicomError(path, f"not a readable DICOM file ({type(error).__name__}: {error})") from error
    reason = _contradiction(dataset)
    if reason:
        raise DicomError(path, reason)
    return dataset


def _contradiction(dataset: pydicom.Dataset) -> str:
    """Say why a header can't describe one decodable mammogram; empty if it can."""
    try:
        syntax = dataset.file_meta.TransferSyntaxUID
        rows, columns, frames = int(dataset.Rows), int(dataset.Columns), int(dataset.get("NumberOfFrames") or 1)
        samples, photometric = int(dataset.SamplesPerPixel), dataset.PhotometricInterpretation
        bits, allocated, signed = int(dataset.BitsStored), int(dataset.BitsAllocated), int(dataset.PixelRepresentation)
        pixel_bytes = len(dataset.get("PixelData") or b"")
    except Exception as error:  # as above
        return f"a needed header element is missing or broken ({error})"
    checks = {
        "it has no pixel data": not pixel_bytes,
        f"transfer syntax {syntax} is not supported": syntax not in PYDICOM_DECODES and syntax not in CODESTREAM_DECODERS,
        f"{rows} rows by {columns} columns is not a usable size": not 0 < rows * columns <= MAX_PIXELS,
        f"it has {frames} frames; only single-frame files are mammograms": frames != 1,
        f"{samples} samples per pixel, {photometric}; only {' and '.join(PHOTOMETRIC)} are mammograms": samples != 1
        or photometric not in PHOTOMETRIC,
        f"Bits Stored {bits} of Bits Allocated {allocated} is not supported": not (0 < bits <= allocated in (8, 16)),
        f"{pixel_bytes} bytes of pixel data are too many for {rows} rows by {columns} columns": syntax in UNCOMPRESSED
        and pixel_bytes > rows * columns * allocated // 8 + 1,  # one byte of padding to an even length
        f"Pixel Representation {signed} is neither 0 nor 1": signed not in (0, 1),
    }
    return next((reason for reason, broken in checks.items() if broken), "")


def _decode(dataset: pydicom.Dataset, path: str | Path) -> np.ndarray:
    decode = CODESTREAM_DECODERS.get(dataset.file_meta.TransferSyntaxUID)
    try:
        stored = _decode_codestream(dataset, decode) if decode else _decode_plain(dataset)
    except Exception as error:  # decoders raise what they like; all of it means the same here
        raise DicomError(path, f"its pixel data can't be decoded ({type(error).__name__}: {error})") from error
    if stored.shape != (dataset.Rows, dataset.Columns):
        raise DicomError(path, f"decoded to {stored.shape}, but the header says {(dataset.Rows, dataset.Columns)}")
    return stored


def _decode_plain(dataset: pydicom.Dataset) -> np.ndarray:
    with warnings.catch_warnings():
        # pydicom takes pixels that its header has no rows for to be padding, and would cut the picture.
        warnings.filterwarnings("error", ".*padding", UserWarning)
        return pixel_array(dataset)


def _decode_codestream(dataset: pydicom.Dataset, decode: Callable[[bytes], np.ndarray]) -> np.ndarray:
    codestream = _unbox(get_frame(dataset.PixelData, 0, number_of_frames=1))
    # A cut JPEG Lossless stream decodes to a partly filled picture without an error: its end marker must be there.
    # Fragments are padded with zeros to an even length, and some writers add more.
    if not codestream.rstrip(b"\x00").endswith(END_OF_CODESTREAM):
        raise ValueError("the compressed data is truncated: its end marker is missing")
    stored = decode(codestream)
    return _extend_sign(stored, int(dataset.BitsStored)) if dataset.PixelRepresentation == 1 else stored


def _unbox(frame: bytes) -> bytes:
    """Take the codestream out of a JP2 file's boxes; anything else is a codestream already (ISO/IEC 15444-1 I.4)."""
    if not frame.startswith(JP2_SIGNATURE):
        return frame
    start = 0
    while start + 8 <= len(frame):
        length, kind, header = int.from_bytes(frame[start : start + 4], "big"), frame[start + 4 : start + 8], 8
        if length == 1:  # a length of 64 bits follows
            length, header = int.from_bytes(frame[start + 8 : start + 16], "big"), 16
        end = start + length if length else len(frame)  # 0: to the end of the file
        if kind == b"jp2c":
            return frame[start + header : end]
        start = max(end, start + 8)
    raise ValueError("its JP2 boxes hold no codestream")


def _extend_sign(stored: np.ndarray, bits: int) -> np.ndarray:
    """Read the lowest ``bits`` bits as two's complement (PS3.5 8.1.1): the codestream may not carry the sign."""
    unused = 16 - bits
    return np.right_shift(np.left_shift(stored.astype(np.int16), unused), unused)
