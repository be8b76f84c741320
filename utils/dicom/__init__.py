"""One DICOM file to grey values."""

from utils.dicom.file import read_dicom, read_stored

__all__ = ["read_dicom", "read_stored"]
