"""Cut a smaller image out of a JPEG 2000 codestream without decoding the larger one.

A codestream with N decompositions contains the image at sizes 1, 1/2, … 1/2^N. With one tile, one component, one
layer and one precinct per resolution, as in mammograms, packets are in order of resolution whatever the progression:
the smaller image is a prefix. With a header for the smaller image, that prefix is a complete codestream for any
decoder. It decodes to exactly what a decoder that discards the higher resolutions returns.

References: ISO/IEC 15444-1 (T.800), Annex A (markers) and B.10 (packet headers).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SOC, SIZ, COD, QCD, SOT, SOD, EOC = (bytes((0xFF, low)) for low in (0x4F, 0x51, 0x52, 0x5C, 0x90, 0x93, 0xD9))
COM, TLM, PLM = (bytes((0xFF, low)) for low in (0x64, 0x55, 0x57))
MANY_SEGMENTS = 0x01 | 0x04  # styles (bypass, termination on each pass) that give a code-block several lengths
MIN_CODE_BLOCK = 4  # log2 of its side; smaller ones would be too many to walk through
MAX_BIT_PLANES = 80
MAX_LENGTH_BITS = 32
SOT_LENGTH = 12  # bytes of the marker and its segment
# A `Layout`'s packets are almost random: the longest run of zeros is 10 in nine real mammograms, and 12 in 354 phantom ones
# and in 1,053 real ones of at most 256 px.
ZERO_RUN = 32
MARKER = re.compile(rb"\xff[\x90-\xff]")
MAX_PRECINCT = 2**15  # px of a side, if the codestream names no smaller precincts


class NotScalableError(ValueError):
    """A codestream that this module can't cut a smaller image from: decode it in full."""


@dataclass(frozen=True)
class Layout:
    """The main header of a codestream whose resolutions are stored one after the other.

    ``sod`` is the offset of the first packet; ``code_block`` is the (width, height) of a code-block.
    """

    width: int
    height: int
    precision: int
    levels: int
    code_block: tuple[int, int]
    siz: bytes
    cod: bytes
    qcd: bytes
    sod: int

    def size(self, discard: int) -> tuple[int, int]:
        """Return (width, height) after discarding ``discard`` resolutions."""
        return _ceil_shift(self.width, discard), _ceil_shift(self.height, discard)


class Prefix:
    """The first bytes of a stream, read as they are needed, at least ``chunk`` bytes at once.

    ``read(size)`` returns the next ``size`` bytes, or fewer at the end.
    """

    def __init__(self, read: Callable[[int], bytes], chunk: int = 2**15):
        self._read, self._chunk = read, chunk
        self.data = bytearray()

    def __getitem__(self, index: int) -> int:
        if index >= len(self.data):
            self.require(index + 1)
        return self.data[index]

    def peek(self, size: int) -> bytes:
        """Return the first ``size`` bytes, or fewer if the stream ends before."""
        if len(self.data) < size:
            self.data += self._read(max(size - len(self.data), self._chunk))
        return bytes(self.data[:size])

    def skip(self, size: int) -> None:
        """Drop the first ``size`` bytes."""
        self.require(size)
        del self.data[:size]

    def require(self, size: int) -> bytearray:
        """Return all data read so far, at least ``size`` bytes; raise ValueError if the stream ends before."""
        missing = size - len(self.data)
        if missing > 0:
            self.data += self._read(max(missing, self._chunk))
        if len(self.data) < size:
            raise ValueError("the compressed data is truncated")
        return self.data


def declared_size(codestream: bytes) -> tuple[int, int]:
    """Return the image's (rows, columns) from the SIZ segment, which comes first (T.800 A.5.1)."""
    if codestream[:4] != SOC + SIZ or len(codestream) < 24:
        raise ValueError("its JPEG 2000 codestream does not start with SOC and SIZ")
    right, bottom, left, top = struct.unpack(">IIII", codestream[8:24])
    return bottom - top, right - left


def read_layout(prefix: Prefix) -> Layout:
    """Read a codestream's main header.

    Raise NotScalableError if the resolutions are not stored one after the other, or if this module does not know a
    feature.
    """
    segments = {}
    *main_header, (_, tile_part, end) = _segments(prefix)
    for marker, body, _ in main_header:
        if marker in (SIZ, COD, QCD) and marker not in segments:
            segments[marker] = body
        elif marker not in (COM, TLM, PLM):
            raise NotScalableError(f"marker {marker.hex()}")
    return _layout(segments, tile_part, sod=end + 2, next_marker=bytes(prefix.require(end + 2)[end:]))


def _segments(prefix: Prefix) -> Iterator[tuple[bytes, bytes, int]]:
    """Yield marker, body and end of each segment, up to the first tile-part's SOT, which is the last."""
    marker, end = SOC, 2
    if prefix.require(2)[:2] != SOC:
        raise ValueError("its JPEG 2000 codestream does not start with SOC and SIZ")
    while marker != SOT:
        marker = bytes(prefix.require(end + 4)[end : end + 2])
        start, end = end + 4, end + 2 + int.from_bytes(prefix.data[end + 2 : end + 4], "big")
        yield marker, bytes(prefix.require(end)[start:end]), end


def check_tile_parts(prefix: Prefix, peek: Callable[[int, int], bytes], length: int) -> None:
    """Raise ValueError if bytes were lost or added: tile-parts state their lengths, and must end at the end marker.

    ``peek(start, size)`` returns bytes of the codestream; ``length`` includes the end marker (ISO/IEC 15444-1 A.4.2).
    """
    *_, (_, _, end) = _segments(prefix)
    start = end - SOT_LENGTH
    while (head := peek(start, SOT_LENGTH))[: len(SOT)] == SOT:
        tile_part = int.from_bytes(head[6:10], "big")
        if tile_part == 0:  # the last one: it extends to the end marker, wherever that is
            return
        if tile_part < SOT_LENGTH:
            break
        start += tile_part
    surplus = length - len(EOC) - start
    if surplus:
        raise ValueError(f"its JPEG 2000 codestream has {abs(surplus)} bytes {'more' if surplus > 0 else 'less'} than it says")


def check_packets(packets: bytes) -> None:
    """Raise ValueError if a `Layout`'s packets have a marker, or a hole of zeros as interrupted downloads leave it.

    In packets, no byte above 8F follows FF (ISO/IEC 15444-1 A.1).
    """
    marker = MARKER.search(packets)
    if marker:
        raise ValueError(f"the packets of its JPEG 2000 codestream contain the marker {marker.group().hex().upper()}")
    if bytes(ZERO_RUN) in packets:
        raise ValueError(f"its JPEG 2000 codestream has a gap of {ZERO_RUN} zero bytes or more")


def _layout(segments: dict[bytes, bytes], tile_part: bytes, sod: int, next_marker: bytes) -> Layout:
    try:
        siz, cod, qcd = segments[SIZ], segments[COD], segments[QCD]
        _, width, height, x0, y0, tile_width, tile_height, tile_x, tile_y, components = struct.unpack(">HIIIIIIIIH", siz[:36])
        depth, dx, dy = siz[36:39]
        style, _, layers, _, levels, code_x, code_y, code_style, _ = struct.unpack(">BBHBBBBBB", cod)
        tile, _, part, parts = struct.unpack(">HIBB", tile_part)
    except (KeyError, ValueError, struct.error) as error:
        raise NotScalableError(f"main header: {error}") from error
    checks = (
        not any((x0, y0, tile_x, tile_y)) and tile_width >= width > 0 and tile_height >= height > 0,  # one tile, at the origin
        (components, dx, dy, layers) == (1, 1, 1, 1),
        style == 0 and max(width, height) <= MAX_PRECINCT,  # one precinct, no SOP or EPH markers
        min(code_x, code_y) + 2 >= MIN_CODE_BLOCK and not code_style & MANY_SEGMENTS,
        (tile, part, parts) == (0, 0, 1) and next_marker[:2] == SOD,
        len(qcd) >= _qcd_length(qcd, levels) and levels <= 32,
    )
    if not all(checks):
        raise NotScalableError(f"check {checks.index(False)} of its main header")
    code_block = (1 << code_x + 2, 1 << code_y + 2)
    return Layout(width, height, (depth & 0x7F) + 1, levels, code_block, siz, cod, qcd, sod)


def shrink(prefix: Prefix, layout: Layout, discard: int) -> bytes:
    """Return the codestream of the image without its ``discard`` highest resolutions, each of which halves it.

    Read no further than the last packet needed; raise ValueError if the data ends before or has a hole.
    """
    end = layout.sod
    for resolution in range(layout.levels - discard + 1):
        end = _packet_end(prefix, end, _code_block_grids(layout, resolution))
    packets = bytes(prefix.require(end)[layout.sod : end])
    check_packets(packets)
    width, height = layout.size(discard)
    size = struct.pack(">II", width, height)
    siz = layout.siz[:2] + size + layout.siz[10:18] + size + layout.siz[26:]
    levels = layout.levels - discard
    cod = layout.cod[:5] + bytes((levels,)) + layout.cod[6:]
    qcd = layout.qcd[: _qcd_length(layout.qcd, levels)]
    sot = struct.pack(">HIBB", 0, 14 + len(packets), 0, 1)  # 14: SOT, its segment and SOD
    header = b"".join(
        marker + struct.pack(">H", len(body) + 2) + body for marker, body in ((SIZ, siz), (COD, cod), (QCD, qcd), (SOT, sot))
    )
    return SOC + header + SOD + packets + EOC


def _qcd_length(qcd: bytes, levels: int) -> int:
    """Return a QCD segment's length: a style, and one step per sub-band (3 N + 1) or one in all (T.800 A.6.4)."""
    style = qcd[0] & 0x1F if qcd else 0
    return 1 + {0: 3 * levels + 1, 1: 2}.get(style, 2 * (3 * levels + 1))


def _code_block_grids(layout: Layout, resolution: int) -> list[tuple[int, int]]:
    """Return (columns, rows) of code-blocks in each sub-band of a resolution (T.800 B.5, B.7)."""
    if resolution == 0:
        bands, depth = [(0, 0)], layout.levels
    else:
        bands, depth = [(1, 0), (0, 1), (1, 1)], layout.levels - resolution + 1
    half = 1 << depth >> 1
    grids = []
    for x, y in bands:
        width, height = _ceil_shift(layout.width - half * x, depth), _ceil_shift(layout.height - half * y, depth)
        grids.append((-(-width // layout.code_block[0]), -(-height // layout.code_block[1])))
    return [(columns, rows) for columns, rows in grids if columns > 0 and rows > 0]


def _packet_end(prefix: Prefix, start: int, grids: list[tuple[int, int]]) -> int:
    """Return the offset after the packet at ``start``: its header states every code-block's length (T.800 B.10)."""
    bits = _Bits(prefix, start)
    length = 0
    if bits.number(1):
        for columns, rows in grids:
            first_layer, empty_planes = _TagTree(columns, rows), _TagTree(columns, rows)
            for leaf in range(columns * rows):
                if first_layer.value(leaf, 1, bits) == 0:
                    length += _code_block_length(bits, empty_planes, leaf)
    return bits.end() + length


def _code_block_length(bits: _Bits, empty_planes: _TagTree, leaf: int) -> int:
    if empty_planes.value(leaf, MAX_BIT_PLANES, bits) == MAX_BIT_PLANES:
        raise ValueError("a packet header of its JPEG 2000 codestream is broken")
    passes = _coding_passes(bits)
    size = 3
    while bits.number(1):
        size += 1
        if size > MAX_LENGTH_BITS:
            raise ValueError("a packet header of its JPEG 2000 codestream is broken")
    return bits.number(size + passes.bit_length() - 1)


def _coding_passes(bits: _Bits) -> int:
    """Read the number of coding passes (T.800 table B.4)."""
    for width, base in ((1, 1), (1, 2), (2, 3), (5, 6)):
        value = bits.number(width)
        if value < (1 << width) - 1:
            return base + value
    return 37 + bits.number(7)


class _Bits:
    """Bits of a packet header; the byte after 0xFF carries seven (T.800 B.10.1)."""

    def __init__(self, prefix: Prefix, position: int):
        self._prefix, self._position = prefix, position
        self._byte = self._bits = self._left = 0

    def number(self, width: int) -> int:
        """Return the next ``width`` bits as a number."""
        while self._left < width:
            carried = 7 if self._byte == 0xFF else 8
            self._byte = self._prefix[self._position]
            self._position += 1
            self._bits = self._bits << carried | self._byte
            self._left += carried
        self._left -= width
        value = self._bits >> self._left
        self._bits &= (1 << self._left) - 1
        return value

    def end(self) -> int:
        """Return the offset after the header, which never ends in 0xFF."""
        return self._position + (self._byte == 0xFF)


class _TagTree:
    """A quadtree of minima, read bit by bit only as far as a question needs (T.800 B.10.2)."""

    def __init__(self, columns: int, rows: int):
        self._parents: list[int] = []
        while columns * rows > 1:
            above, wide = len(self._parents) + columns * rows, (columns + 1) // 2
            self._parents += [above + row // 2 * wide + column // 2 for row in range(rows) for column in range(columns)]
            columns, rows = wide, (rows + 1) // 2
        self._parents.append(-1)
        self._lowest = [0] * len(self._parents)  # lower bounds of the values
        self._known = [False] * len(self._parents)

    def value(self, leaf: int, limit: int, bits: _Bits) -> int:
        """Return the leaf's value, or ``limit`` if it is at least that."""
        path, node = [], leaf
        while node >= 0 and not self._known[node]:
            path.append(node)
            node = self._parents[node]
        lowest = self._lowest[node] if node >= 0 else 0
        for node in reversed(path):
            lowest = max(lowest, self._lowest[node])
            while lowest < limit and not bits.number(1):
                lowest += 1
            self._lowest[node] = lowest
            if lowest == limit:
                return limit
            self._known[node] = True
        return lowest


def _ceil_shift(value: int, by: int) -> int:
    return -(-value >> by)
