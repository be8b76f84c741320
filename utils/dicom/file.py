"""One DICOM file to an image: its header, as much pixel data as needed, and grey values with bright tissue."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import BinaryIO

import imagecodecs
import numpy as np
import pydicom
from pydicom.pixels import pixel_array
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    UID_dictionary,
)

from utils.dicom.encapsulated import Codestream
from utils.dicom.header import DicomError, read_elements, read_header
from utils.dicom.jpeg import decode_blocks
from utils.dicom.window import grey_table, read_voi

# A broken file becomes a DicomError; pydicom would also log a traceback.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

MAX_PIXELS = 2**27  # the largest frame in RSNA's set, 5355 x 4915, has 26 million
UNCOMPRESSED = {ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian}
CODECS = (
    dict.fromkeys(UNCOMPRESSED, "uncompressed")
    | {RLELossless: "rle"}
    | dict.fromkeys((JPEG2000Lossless, JPEG2000), "jpeg2000")
    | dict.fromkeys((HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K), "htj2k")
    | dict.fromkeys((JPEGBaseline8Bit, JPEGExtended12Bit), "jpeg")
    | dict.fromkeys((JPEGLosslessSV1, JPEGLossless), "jpeg_lossless")
    | dict.fromkeys((JPEGLSLossless, JPEGLSNearLossless), "jpeg_ls")
)
DECODERS: dict[str, Callable[[bytes], np.ndarray]] = {
    "jpeg2000": partial(imagecodecs.jpeg2k_decode, numthreads=1),
    # OpenJPEG too: imagecodecs.htj2k_decode (OpenJPH) decodes a truncated codestream without an error.
    "htj2k": partial(imagecodecs.jpeg2k_decode, numthreads=1),
    "jpeg": decode_blocks,
    "jpeg_lossless": imagecodecs.jpeg_decode,
    "jpeg_ls": imagecodecs.jpegls_decode,
}
UNDECODABLE = "its pixel data can't be decoded: fetch the file again, or store it uncompressed with another program"
ROWS_AT_ONCE = 64  # in a look-up, since NumPy copies the indices, as eight bytes each
PHOTOMETRIC = ("MONOCHROME1", "MONOCHROME2")
NEEDED = [
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
]


def read_dicom(path: str | Path) -> np.ndarray:
    """Read a mammogram as a viewer displays it.

    Parameters
    ----------
    path : str or Path
        Single-frame, one-channel DICOM file: JPEG 2000 (also high-throughput), JPEG (baseline, extended, lossless),
        JPEG-LS, RLE or uncompressed.

    Returns
    -------
    ndarray of shape (height, width), float32 in [0, 1]
        Tissue is bright, air dark.

    Raises
    ------
    DicomError
        If the file can't be read or decoded, or its header contradicts itself.

    References
    ----------
    DICOM PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT), C.7.6.3.1.2 (photometric interpretation).
    """
    with open_dicom(path) as file:
        return file.grey(file.stored())


def read_stored(path: str | Path) -> np.ndarray:
    """Read the stored values of a file that `read_dicom` can read.

    Returns
    -------
    ndarray of shape (height, width), an integer dtype
        Before the modality LUT. In uncompressed and RLE data only the lowest Bits Stored bits count (PS3.5 8.1.1). JPEG
        and JPEG 2000 values have the codestream's own precision, which in some files exceeds Bits Stored.

    Raises
    ------
    DicomError
        If the file can't be read or decoded, or its header contradicts itself.
    """
    with open_dicom(path) as file:
        return file.stored()


@contextlib.contextmanager
def open_dicom(path: str | Path) -> Iterator[DicomFile]:
    """Open a file and read its header; pixel data is read on demand.

    Raises
    ------
    DicomError
        If the file can't be opened, or its header can't be read or contradicts itself.
    """
    if not Path(path).is_file():
        raise DicomError(path, "it is not a file" if Path(path).exists() else "the file does not exist")
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below; only errors of opening are caught here
    except OSError as error:
        raise DicomError(path, f"it can't be opened ({error.strerror})") from error
    with file:
        yield DicomFile(path, file)


class DicomFile:
    """A mammogram's header, and its pixel data at full or lower resolution.

    Attributes
    ----------
    header : Dataset
        All elements before the pixel data.
    shape : (int, int)
        Rows and columns at full resolution.
    codec : {"jpeg2000", "htj2k", "jpeg", "jpeg_lossless", "jpeg_ls", "rle", "uncompressed"}
    flags : tuple of str
        What is unusual in the header: see `utils.dicom.header.read_header` and `utils.dicom.window.Voi`.
    """

    def __init__(self, path: str | Path, file: BinaryIO):
        self.path = Path(path)
        with self._explained("not a readable DICOM file"):
            self.header, flags = read_header(file, self.path)
        reason = _contradiction(self.header)
        if reason:
            raise DicomError(path, reason)
        self.shape = int(self.header.Rows), int(self.header.Columns)
        self.codec = CODECS[self.header.file_meta.TransferSyntaxUID]
        with self._explained("its modality LUT or window can't be applied"):
            self._voi = read_voi(self.header)
        self.flags = flags + self._voi.flags
        self._file = file
        self._frames: dict[int, np.ndarray] = {}

    @cached_property
    def levels(self) -> int:
        """How often the image can be halved without decoding it in full.

        0 if the codec has no lower resolutions or does not store them one after the other. Also 0 if the header has no
        window, since grey values then depend on the range of the full picture.
        """
        if self.codec != "jpeg2000" or not self._voi.show:
            return 0
        with self._explained():
            return self._codestream.layout.levels if self._codestream.layout else 0

    @property
    def bytes_read(self) -> int:
        """Bytes of the file that were needed so far."""
        return self._codestream.fragments.position if self.codec in DECODERS else self.bytes_total

    @property
    def bytes_total(self) -> int:
        """Size of the file."""
        return os.fstat(self._file.fileno()).st_size

    def codestream(self, discard: int = 0) -> bytes:
        """Return the compressed image without its ``discard`` highest resolutions, ready for the decoder."""
        with self._explained():
            return self._codestream.cut(discard, self.shape)

    def stored(self, discard: int = 0) -> np.ndarray:
        """Return the image's stored values, at full size or at a lower resolution of JPEG 2000.

        Parameters
        ----------
        discard : int
            How often to halve the image, from 0 to `levels`.

        Returns
        -------
        ndarray of shape (ceil(rows / 2**discard), ceil(columns / 2**discard)), an integer dtype
            As from `read_stored`; the same array each time.

        Raises
        ------
        DicomError
            If the pixel data can't be decoded or does not match the header.
        """
        if discard not in self._frames:
            with self._explained():
                self._frames[discard] = self._checked(self._decode(discard), discard)
        return self._frames[discard]

    def _checked(self, values: np.ndarray, discard: int) -> np.ndarray:
        """Check decoded values against header and codestream, and extend their sign; raise DicomError on a mismatch."""
        if values.dtype.itemsize > 2:
            raise DicomError(self.path, f"decoded to {values.dtype.itemsize * 8} bits, more than a mammogram has")
        expected = tuple(-(-side >> discard) for side in self.shape)
        if values.shape != expected:
            raise DicomError(self.path, f"decoded to {values.shape}, but the header says {expected}")
        if self.codec in DECODERS:
            self._codestream.check_decoded(values)
            if self.header.PixelRepresentation == 1:
                # the lowest bits are two's complement (PS3.5 8.1.1), but the codestream may lack the sign
                unused = 16 - int(self.header.BitsStored)
                values = np.right_shift(np.left_shift(values.astype(np.int16), unused), unused)
        return values

    def grey(self, values: np.ndarray) -> np.ndarray:
        """Convert stored values of this file to grey values.

        Parameters
        ----------
        values : ndarray with at least one value, integers
            From `stored`, or averages of them.

        Returns
        -------
        ndarray of the same shape, float32 in [0, 1]
            Tissue is bright.

        Raises
        ------
        DicomError
            If the modality LUT or the window can't be applied.
        """
        return self.grey_map(values)(values)

    def grey_map(self, values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Return a function that converts some of these stored values, such as a few rows; see `grey`."""
        if self._voi.show:
            lowest, highest = min(int(values.min()), 0), int(values.max())  # unsigned values then index the table directly
        else:
            lowest, highest = self._full_range
        with self._explained("its modality LUT or window can't be applied"):
            table = grey_table(self.header, self._voi, lowest, highest)
        return partial(_look_up, table, lowest)

    @cached_property
    def _full_range(self) -> tuple[int, int]:
        """Lowest and highest stored value at full resolution."""
        return int(self.stored().min()), int(self.stored().max())

    @cached_property
    def _codestream(self) -> Codestream:
        return Codestream(self._file, self.codec)

    def _decode(self, discard: int) -> np.ndarray:
        if self.codec in DECODERS:
            return DECODERS[self.codec](self._codestream.cut(discard, self.shape))
        return _decode_plain(self.path, self.codec)

    @contextlib.contextmanager
    def _explained(self, what: str = UNDECODABLE) -> Iterator[None]:
        try:
            yield
        except DicomError:
            raise
        except Exception as error:  # decoders and broken elements raise anything; here it all means the same
            raise DicomError(self.path, f"{what} ({type(error).__name__}: {error})") from error


def _contradiction(header: pydicom.Dataset) -> str:
    """Return why a header can't describe a single decodable mammogram; empty if it can."""
    try:
        syntax = str(header.file_meta.TransferSyntaxUID)
        rows, columns, frames = int(header.Rows), int(header.Columns), int(header.get("NumberOfFrames") or 1)
        samples, photometric = int(header.SamplesPerPixel), header.PhotometricInterpretation
        bits, allocated, signed = int(header.BitsStored), int(header.BitsAllocated), int(header.PixelRepresentation)
    except Exception as error:  # broken elements raise anything
        missing = [name for name in NEEDED if name not in header]
        return f"its header lacks {', '.join(missing)}" if missing else f"a needed header element is broken ({error})"
    if syntax not in CODECS:
        name = UID_dictionary.get(syntax, ["a private or unknown one"])[0]
        return (
            f"its transfer syntax {syntax} ({name}) is not supported: convert it to Explicit VR Little Endian, "
            "for example with `gdcmconv --raw IN OUT`"
        )
    if not 0 < rows * columns <= MAX_PIXELS:
        return f"{rows} rows by {columns} columns is not a usable size"
    if frames != 1:
        return f"it has {frames} frames; only single-frame files are mammograms"
    if samples != 1 or photometric not in PHOTOMETRIC:
        return f"{samples} samples per pixel, {photometric}; only {' and '.join(PHOTOMETRIC)} are mammograms"
    if not 0 < bits <= allocated in (8, 16):
        return f"Bits Stored {bits} of Bits Allocated {allocated} is not supported"
    if signed not in (0, 1):
        return f"Pixel Representation {signed} is neither 0 nor 1"
    return ""


def _decode_plain(path: Path, codec: str) -> np.ndarray:
    dataset, _ = read_elements(path)
    present = len(dataset.get("PixelData") or b"")
    if not present:
        raise DicomError(path, "it has no pixel data")
    needed = dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
    if codec == "uncompressed" and present > needed + 1:  # one byte of padding to an even length
        raise DicomError(
            path, f"{present} bytes of pixel data are too many for {dataset.Rows} rows by {dataset.Columns} columns"
        )
    with warnings.catch_warnings():
        # pydicom would take pixels beyond the header's rows for padding, and drop them.
        warnings.filterwarnings("error", ".*padding", UserWarning)
        return pixel_array(dataset)


def _look_up(table: np.ndarray, lowest: int, values: np.ndarray) -> np.ndarray:
    """Return the table's entry of each value; the first is that of ``lowest``."""
    index = values if lowest == 0 else np.subtract(values, lowest, dtype=np.int32)
    found = np.empty(values.shape, table.dtype)
    for start in range(0, len(values), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        table.take(index[rows], mode="clip", out=found[rows])
    return found
