"""Read a DICOM file's compressed image only as far as needed: fragments, JP2 boxes and codestream."""

from __future__ import annotations

import contextlib
import io
import os
import struct
from collections.abc import Iterator
from functools import cached_property
from typing import BinaryIO

import numpy as np

from utils.dicom import jpeg, jpeg2000
from utils.dicom.header import UNDEFINED_LENGTH

JPEG2000_CODECS = {"jpeg2000", "htj2k"}
END_OF_CODESTREAM = b"\xff\xd9"  # EOI in JPEG, EOC in JPEG 2000
JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"  # ISO/IEC 15444-1 I.5.1
MAX_PADDING = 4096  # zero bytes after a codestream
ITEM, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


class Codestream:
    """The compressed image of a file; raise ValueError, also later, if the data is broken or cut off.

    ``file`` stands at the Pixel Data element. ``layout`` is None if no smaller image can be cut out.
    """

    def __init__(self, file: BinaryIO, codec: str):
        self._is_jpeg2000 = codec in JPEG2000_CODECS
        self.fragments = Fragments(file)
        self._prefix = jpeg2000.Prefix(self.fragments.read)
        self._start, boxed = _open_box(self._prefix)
        self._length = self._measure(boxed)
        self.layout: jpeg2000.Layout | None = None
        self._scan: jpeg.Scan | None = None
        if self._is_jpeg2000:
            with contextlib.suppress(jpeg2000.NotScalableError):
                self.layout = jpeg2000.read_layout(self._prefix)
            jpeg2000.check_tile_parts(self._prefix, self._peek, self._length)
        if self.layout:  # an unfinished copy ends in zeros, even if its lower resolutions are complete
            tail = max(self.layout.sod, self._length - MAX_PADDING)
            jpeg2000.check_packets(self._peek(tail, self._length - len(END_OF_CODESTREAM) - tail))

    def cut(self, discard: int, shape: tuple[int, int]) -> bytes:
        """Return the codestream without its ``discard`` highest resolutions; raise ValueError if not of ``shape``."""
        if discard:
            _check_size((self.layout.height, self.layout.width), shape)
            return jpeg2000.shrink(self._prefix, self.layout, discard)
        whole = self._complete
        # Check the size before the decoder allocates memory for it.
        if self._is_jpeg2000:
            _check_size(jpeg2000.declared_size(whole), shape)
            if self.layout:
                jpeg2000.check_packets(whole[self.layout.sod : -len(END_OF_CODESTREAM)])
        else:
            self._scan = jpeg.read_scan(whole)
            _check_size((self._scan.rows, self._scan.columns), shape)
            jpeg.check_scan(whole, self._scan)
        return whole

    def check_decoded(self, values: np.ndarray) -> None:
        """Raise ValueError if a JPEG Lossless codestream codes more or fewer pixels than were decoded."""
        if self._scan:
            jpeg.check_decoded(self._complete, self._scan, values)

    @cached_property
    def _complete(self) -> bytes:
        """The complete codestream, in one read, since joining megabytes takes time."""
        complete = self._peek(0, self._length)
        self.fragments.finish()
        self._prefix = jpeg2000.Prefix(io.BytesIO(complete).read)  # the fragments have no more to read
        return complete

    def _measure(self, boxed: int | None) -> int:
        """Return the codestream's length in bytes without padding; raise ValueError if its end marker is missing.

        Decoders fill up what is cut off without an error. Fragments are padded with zeros to an even length, and some
        writers add more zeros.
        """
        length = self.fragments.length - self._start
        if boxed is not None:
            if boxed > length:
                raise ValueError(f"its JP2 box holds {boxed} bytes, but its fragments only {length}")
            length = boxed
        tail_start = max(0, length - MAX_PADDING - len(END_OF_CODESTREAM))
        tail = self._peek(tail_start, length - tail_start).rstrip(b"\x00")
        if not tail.endswith(END_OF_CODESTREAM):
            raise ValueError("the compressed data is truncated: its end marker is missing")
        return tail_start + len(tail)

    def _peek(self, start: int, size: int) -> bytes:
        return self.fragments.peek(self._start + start, size)


def _check_size(declared: tuple[int, int], shape: tuple[int, int]) -> None:
    if declared != shape:
        raise ValueError(f"the compressed image has {declared[0]} rows by {declared[1]} columns, but the header says {shape}")


class Fragments:
    """The single frame of encapsulated pixel data, read across its fragments (PS3.5 A.4).

    ``length`` is the frame's size in bytes, from the heads of its fragments.
    """

    def __init__(self, file: BinaryIO):
        self._file, self._size = file, os.fstat(file.fileno()).st_size
        element = file.read(12)  # tag, VR, two bytes reserved, length
        if not element:
            raise ValueError("it has no pixel data")
        if element[8:] != UNDEFINED_LENGTH:
            raise ValueError("its pixel data is not encapsulated, but its transfer syntax says so")
        table, *self._fragments = list(self._items()) or [(file.tell(), 0)]  # the first item is the offset table
        self.length = sum(length for _, length in self._fragments)
        self._end = file.tell()
        file.seek(sum(table))
        self._left, self._next = 0, 0

    @property
    def position(self) -> int:
        """Offset in the file up to which it has been read, in bytes."""
        return self._file.tell()

    def read(self, size: int) -> bytes:
        """Return the next ``size`` bytes of the frame, or fewer at its end."""
        parts = []
        while size > 0 and (self._left or self._next_fragment()):
            part = self._file.read(min(size, self._left))
            self._left -= len(part)
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def peek(self, start: int, size: int) -> bytes:
        """Return ``size`` bytes of the frame from ``start``, or fewer at its end, without moving the position."""
        position, parts = self._file.tell(), []
        for offset, length in self._fragments:
            if size > 0 and start < length:
                self._file.seek(offset + start)
                parts.append(self._file.read(min(size, length - start)))
                size -= len(parts[-1])
            start = max(0, start - length)
        self._file.seek(position)
        return b"".join(parts)

    def finish(self) -> None:
        """Move to the end, as if everything had been read."""
        self._left, self._next = 0, len(self._fragments)
        self._file.seek(self._end)

    def _next_fragment(self) -> bool:
        while not self._left and self._next < len(self._fragments):
            offset, self._left = self._fragments[self._next]
            self._file.seek(offset)
            self._next += 1
        if not self._left:
            self.finish()
        return self._left > 0

    def _items(self) -> Iterator[tuple[int, int]]:
        """Yield the offset and length of each remaining item, from the heads of the items alone."""
        while True:
            item = self._file.read(8)
            # The frame may be complete even if the end of the sequence is cut off: its own end marker shows that.
            if item[:4] == SEQUENCE_END or len(item) < 8:
                return
            if item[:4] != ITEM:
                raise ValueError("the items of its pixel data are broken")
            offset, length = self.position, struct.unpack("<I", item[4:])[0]
            missing = offset + length - self._size
            if missing > 0:
                raise ValueError(f"the file ends {missing} bytes before its pixel data does")
            yield offset, length
            self._file.seek(offset + length)


def _open_box(prefix: jpeg2000.Prefix) -> tuple[int, int | None]:
    """Skip a JP2 file's boxes (T.800 I.4); return the codestream's offset, and its length if a box states it."""
    if prefix.peek(len(JP2_SIGNATURE)) != JP2_SIGNATURE:
        return 0, None
    start = 0
    while True:
        head = bytes(prefix.require(8)[:8])
        length, kind, size = int.from_bytes(head[:4], "big"), head[4:], 8
        if length == 1:  # a 64-bit length follows
            length, size = int.from_bytes(prefix.require(16)[8:16], "big"), 16
        if kind == b"jp2c":
            prefix.skip(size)
            return start + size, length - size if length else None  # 0: to the end of the file
        prefix.skip(max(length, 8))
        start += max(length, 8)
