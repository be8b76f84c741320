"""Read a DICOM header, even without a preamble or transfer syntax."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.datadict import dictionary_has_tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from utils.core.errors import KitError

PREAMBLE, MAGIC = 128, b"DICM"  # PS3.10, section 7.1
FIRST_GROUPS = range(0x0002, 0x0029)  # data sets are sorted by tag, and what an image needs is in group 0028
# PS3.3 C.7.6.3 and C.7.6.24, in little and big endian
PIXEL_TAGS = {struct.pack(f"{order}HH", 0x7FE0, element) for order in "<>" for element in (0x0008, 0x0009, 0x0010)}
UNDEFINED_LENGTH = b"\xff" * 4


class DicomError(KitError):
    """A file that can't be read as a mammogram; ``path`` names it and ``reason`` says why."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(path, reason)  # both arguments, so that it survives pickling between processes
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_header(file: BinaryIO, path: Path) -> tuple[pydicom.Dataset, tuple[str, ...]]:
    """Read all elements before the pixel data, and leave ``file`` there.

    The header always gets a transfer syntax. The flag ``syntax_guessed`` means that the file names none: it was
    inferred from how the elements are written. Raise DicomError if the file does not begin like DICOM, has no pixel
    data, or has compressed pixel data without a transfer syntax.
    """
    if not begins_like_dicom(file.read(PREAMBLE + len(MAGIC))):
        raise DicomError(path, "it does not begin like a DICOM file")
    file.seek(0)
    header, guessed = read_elements(file, stop_before_pixels=True)
    if header.file_meta.TransferSyntaxUID != DeflatedExplicitVRLittleEndian:  # pydicom reads an inflated copy of those
        element = file.read(12)
        file.seek(-len(element), os.SEEK_CUR)
        if element[:4] not in PIXEL_TAGS:
            raise DicomError(path, "it has no pixel data")
        if guessed and UNDEFINED_LENGTH in (element[4:8], element[8:]):
            raise DicomError(path, "its pixel data is compressed, but it names no transfer syntax: export the image again")
    return header, ("syntax_guessed",) if guessed else ()


def read_elements(source: BinaryIO | Path, stop_before_pixels: bool = False) -> tuple[pydicom.Dataset, bool]:
    """Return a data set, and whether its transfer syntax was guessed because the file names none.

    The guess is an uncompressed syntax that fits how the elements are written.
    """
    dataset = pydicom.dcmread(source, force=True, stop_before_pixels=stop_before_pixels)  # force: the preamble may be missing
    guessed = not dataset.file_meta.get("TransferSyntaxUID")
    if guessed:
        implicit, little_endian = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset, guessed


def begins_like_dicom(head: bytes) -> bool:
    """True if a file begins with the preamble and "DICM", or with an element that can be a data set's first.

    ``head`` is the file's first 132 bytes.
    """
    if head[PREAMBLE:] == MAGIC:
        return True
    if len(head) < PREAMBLE:
        return False
    tags = (struct.unpack(f"{order}HH", head[:4]) for order in "<>")
    return any(group in FIRST_GROUPS and (element == 0 or dictionary_has_tag((group, element))) for group, element in tags)
