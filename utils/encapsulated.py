"""The compressed picture inside a DICOM file: its fragments, a JP2 file's boxes, and the codestream, read as far as needed."""

from __future__ import annotations

import contextlib
import os
import struct
from typing import BinaryIO

from utils import jpeg2000

END_OF_CODESTREAM = b"\xff\xd9"  # EOI in JPEG, EOC in JPEG 2000
JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"  # ISO/IEC 15444-1 I.5.1
MAX_PADDING = 4096  # bytes of zeros behind a codestream
ITEM, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
UNDEFINED_LENGTH = 2**32 - 1


class Codestream:
    """The compressed picture of a file, read as far as needed.

    Parameters
    ----------
    file : binary file
        At the Pixel Data element.
    codec : {"jpeg2000", "jpeg_lossless"}

    Attributes
    ----------
    layout : utils.jpeg2000.Layout or None
        None where smaller pictures can't be cut out.

    Raises
    ------
    ValueError
        Here and later, if the data is broken or cut off.
    """

    def __init__(self, file: BinaryIO, codec: str):
        self._codec = codec
        self.fragments = Fragments(file)
        self._prefix = jpeg2000.Prefix(self.fragments.read)
        self._length = _open_box(self._prefix)  # of the codestream, where a box tells it
        self.layout: jpeg2000.Layout | None = None
        if codec == "jpeg2000":
            with contextlib.suppress(jpeg2000.NotScalableError):
                self.layout = jpeg2000.read_layout(self._prefix)

    def cut(self, discard: int, shape: tuple[int, int]) -> bytes:
        """Give the codestream without its ``discard`` highest resolutions, which must be of a picture of ``shape``."""
        if discard:
            _check_size((self.layout.height, self.layout.width), shape)
            return jpeg2000.shrink(self._prefix, self.layout, discard)
        whole = self._prefix.read_all()
        if self._length is not None:
            whole = whole[: self._length]
        # A cut JPEG Lossless stream decodes to a partly filled picture without an error: its end marker must be there.
        # Fragments are padded with zeros to an even length, and some writers add more.
        if not whole[-MAX_PADDING:].rstrip(b"\x00").endswith(END_OF_CODESTREAM):
            raise ValueError("the compressed data is truncated: its end marker is missing")
        # Before the decoder takes memory for it.
        _check_size(jpeg2000.declared_size(whole) if self._codec == "jpeg2000" else _declared_jpeg_size(whole), shape)
        return whole


def _check_size(declared: tuple[int, int], shape: tuple[int, int]) -> None:
    if declared != shape:
        raise ValueError(f"the compressed picture says {declared[0]} rows by {declared[1]} columns, the header {shape}")


class Fragments:
    """Read the bytes of the one frame of encapsulated pixel data across its fragments (PS3.5 A.4)."""

    def __init__(self, file: BinaryIO):
        self._file, self._size = file, os.fstat(file.fileno()).st_size
        element = file.read(12)  # tag, VR, two bytes reserved, length
        if not element:
            raise ValueError("it has no pixel data")
        if len(element) < 12 or struct.unpack("<I", element[8:])[0] != UNDEFINED_LENGTH:
            raise ValueError("its pixel data is not encapsulated, as its transfer syntax says")
        self._left = self._next_item() or 0
        file.seek(self._left, os.SEEK_CUR)  # the first item is the offset table
        self._left, self._ended = 0, False

    @property
    def position(self) -> int:
        """Bytes of the file up to where it has been read."""
        return self._file.tell()

    def read(self, size: int) -> bytes:
        """Give the next ``size`` bytes of the frame, fewer at its end."""
        parts = []
        while size > 0 and (self._left or self._next_fragment()):
            part = self._file.read(min(size, self._left))
            self._left -= len(part)
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _next_fragment(self) -> bool:
        while not self._ended and not self._left:
            length = self._next_item()
            self._ended, self._left = length is None, length or 0
        return not self._ended

    def _next_item(self) -> int | None:
        """Length of the item that starts here; None at the end of them."""
        item = self._file.read(8)
        # Where the sequence's end is cut off the frame may still be whole, which its own end marker tells.
        if item[:4] == SEQUENCE_END or len(item) < 8:
            return None
        if item[:4] != ITEM:
            raise ValueError("the items of its pixel data are broken")
        length = struct.unpack("<I", item[4:])[0]
        missing = self.position + length - self._size
        if missing > 0:
            raise ValueError(f"the file ends {missing} bytes before its pixel data does")
        return length


def _open_box(prefix: jpeg2000.Prefix) -> int | None:
    """Skip a JP2 file's boxes up to its codestream, if there are any, and give its length, if a box tells it (T.800 I.4)."""
    if prefix.peek(len(JP2_SIGNATURE)) != JP2_SIGNATURE:
        return None
    while True:
        head = bytes(prefix.require(8)[:8])
        length, kind, size = int.from_bytes(head[:4], "big"), head[4:], 8
        if length == 1:  # a length of 64 bits follows
            length, size = int.from_bytes(prefix.require(16)[8:16], "big"), 16
        if kind == b"jp2c":
            prefix.skip(size)
            return length - size if length else None  # 0: to the end of the file
        prefix.skip(max(length, 8))


def _declared_jpeg_size(codestream: bytes) -> tuple[int, int]:
    """Read (rows, columns) from a JPEG's frame header (ISO/IEC 10918-1 B.2.2)."""
    position = 2
    while codestream[position : position + 1] == b"\xff":
        if codestream[position + 1 : position + 2] == b"\xff":  # a fill byte
            position += 1
            continue
        marker, length = codestream[position + 1], int.from_bytes(codestream[position + 2 : position + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # SOF, not DHT, JPG or DAC
            return struct.unpack(">HH", codestream[position + 5 : position + 9])
        position += 2 + length
    raise ValueError("its JPEG data has no frame header")
