"""Detect damage in JPEG and JPEG-LS data that decoders hide.

A decoder that meets lost bytes, a hole of zeros or an early end marker still returns a picture. Markers and long runs
of zeros reveal the damage. JPEG Lossless reveals more: its image must use up its scan.

References: ISO/IEC 10918-1 (T.81), Annexes B (markers), C (Huffman codes) and H (lossless); ISO/IEC 14495-1 (T.87),
Annex C.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import imagecodecs
import numpy as np

DHT, SOI, EOI, SOS, DRI = 0xC4, 0xD8, 0xD9, 0xDA, 0xDD
BASELINE, EXTENDED, LOSSLESS, JPEG_LS = 0xC0, 0xC1, 0xC3, 0xF7  # the frames whose scans are checked here
FRAMES = {*range(0xC0, 0xD0), JPEG_LS} - {DHT, 0xC8, 0xCC}  # 0xC8 is reserved, 0xCC is DAC
RESTARTS = range(0xD0, 0xD8)
RESTART = re.compile(rb"\xff[\xd0-\xd7]")
# By frame: FF is a coded byte before 00 (in JPEG-LS, before anything below 80), and a fill byte before FF.
MARKERS = dict.fromkeys((BASELINE, EXTENDED, LOSSLESS), re.compile(rb"\xff[^\x00\xff]"))
MARKERS[JPEG_LS] = re.compile(rb"\xff[\x80-\xfe]")
END_OF_BLOCK = b"\0"

# A longer run of zeros is a hole, unless zeros code an even surface. If they do not, the longest run is 2 bytes in the
# JPEG Lossless of 233 phantom and 55 real mammograms, 4 in the JPEG baseline of 1,592 real films, and 6 in nine real
# mammograms coded as JPEG-LS. If they do, a run proves nothing: the same nine, coded as JPEG Lossless, have runs of
# 244 to 86,142 bytes, since their air has one value.
ZERO_RUN = 32
COMPARED_DIFFERENCES = 64  # nonzero ones: enough not to match other bits by chance
ROWS_AT_ONCE = 64  # in the search for the last uneven row
SURPLUS_BITS = 15  # after the last difference: 7 pad a byte, and a writer may add another byte
MARGIN = 4  # bytes at each end of a run of zeros; more than the surplus

# Appended to a JPEG's data: long codes of large differences, which make blocks decoded past the data visible.
SENTINEL = b"\xfe" * 4
SURPLUS_BLOCKS = 8  # most blocks that the sentinel, padding and a byte or two added by a writer decode to

PREDICTORS = {  # JPEG Lossless: from the samples to the left, above, and above to the left (T.81 table H.1)
    1: lambda left, above, corner: left,
    2: lambda left, above, corner: above,
    3: lambda left, above, corner: corner,
    4: lambda left, above, corner: left + above - corner,
    5: lambda left, above, corner: left + (above - corner >> 1),
    6: lambda left, above, corner: above + (left - corner >> 1),
    7: lambda left, above, corner: left + above >> 1,
}


@dataclass(frozen=True)
class Scan:
    """A JPEG's header up to its first scan.

    ``frame`` is the last byte of the frame header's marker. ``tables`` maps class and number to DHT's 16 counts of
    codes by length, followed by the symbols. ``header`` is the body of SOS. ``rows_at`` and ``start`` are the offsets
    of the number of rows and of the first coded byte.
    """

    frame: int
    precision: int
    rows: int
    columns: int
    components: int
    tables: dict[int, bytes]
    restart_interval: int
    header: bytes
    rows_at: int
    start: int

    @property
    def predictor(self) -> int:
        """Number of the JPEG Lossless predictor, a key of `PREDICTORS`."""
        return self.header[3]

    @property
    def point_transform(self) -> int:
        """Bits by which JPEG Lossless shifts values to the right before coding."""
        return self.header[5] & 0x0F

    @property
    def difference_table(self) -> bytes:
        """Huffman table of the only component's differences; in frames of blocks, of its DC differences."""
        return self.tables.get(self.header[2] >> 4, b"")

    @property
    def units(self) -> int:
        """Samples (JPEG Lossless) or blocks (JPEG), which restart intervals count, given one component (T.81 A.2)."""
        side = 1 if self.frame == LOSSLESS else 8
        return -(-self.rows // side) * -(-self.columns // side)

    @property
    def zeros_are_even(self) -> bool:
        """True if zero bits code an even surface: the all-zero codes mean "no difference" and "end of block" here."""
        if self.frame == JPEG_LS or self.difference_table[16:17] != b"\0":
            return False
        ac_table = self.tables.get(0x10 | self.header[2] & 0x0F, b"")
        return self.frame == LOSSLESS or ac_table[16:17] == END_OF_BLOCK


def read_scan(codestream: bytes) -> Scan:
    """Read the header of a JPEG or JPEG-LS; raise ValueError if it has no frame header or no scan."""
    frame, tables, restart_interval, position = (), {}, 0, 2
    while len(codestream) > position + 3 and codestream[position] == 0xFF:
        marker, length = codestream[position + 1], int.from_bytes(codestream[position + 2 : position + 4], "big")
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        body = codestream[position + 4 : position + 2 + length]
        if marker in FRAMES and len(body) >= 6:
            frame = marker, *struct.unpack(">BHHB", body[:6])
            rows_at = position + 5
        elif marker == DHT:
            tables |= _huffman_tables(body)
        elif marker == DRI:
            restart_interval = int.from_bytes(body, "big")
        elif marker == SOS and frame and len(body) >= 6:
            return Scan(*frame, tables, restart_interval, body, rows_at, position + 2 + length)
        elif marker in (SOI, EOI, SOS):
            break
        position += 2 + length
    raise ValueError("its JPEG data has no frame header followed by a scan")


def _huffman_tables(body: bytes) -> dict[int, bytes]:
    tables = {}
    while len(body) > 17:
        size = 17 + sum(body[1:17])
        tables[body[0]] = body[1:size]
        body = body[size:]
    return tables


def check_scan(codestream: bytes, scan: Scan) -> None:
    """Raise ValueError if a scan has a marker before the end, a hole of zeros, or wrong restart markers.

    Other frames, such as progressive ones, and images of several components are left to the decoder.
    """
    if scan.components != 1 or scan.frame not in MARKERS:
        return
    if scan.frame != LOSSLESS:  # in JPEG Lossless, `check_decoded` finds an early marker faster
        _check_end(codestream, scan)
    if not scan.zeros_are_even and codestream.find(bytes(ZERO_RUN), scan.start) >= 0:
        raise ValueError(f"its JPEG data has a gap of {ZERO_RUN} zero bytes or more")
    if scan.restart_interval and scan.frame != JPEG_LS:
        _check_restarts(codestream, scan)


def _check_end(codestream: bytes, scan: Scan) -> None:
    for marker in MARKERS[scan.frame].finditer(codestream, scan.start):
        early = len(codestream) - marker.end()
        if early and not (scan.restart_interval and marker.group()[1] in RESTARTS):
            raise ValueError(f"its JPEG data contains the marker {marker.group().hex().upper()} {early} bytes before the end")


def _check_restarts(codestream: bytes, scan: Scan) -> None:
    numbers = [marker[1] - RESTARTS[0] for marker in RESTART.findall(codestream, scan.start)]
    expected = -(-scan.units // scan.restart_interval) - 1
    if numbers != [number % len(RESTARTS) for number in range(expected)]:
        raise ValueError(f"its JPEG data has {len(numbers)} restart markers, not {expected} in order")


def decode_blocks(codestream: bytes) -> np.ndarray:
    """Decode JPEG baseline or extended to uint8 or uint16; raise ValueError if blocks are missing or left over.

    libjpeg adds mid-grey blocks for what is cut off, and ignores what is left over, without an error. So ask for more
    rows than there are: their first block must come from the data's end, and their last ones must be mid-grey.
    """
    scan = read_scan(codestream)
    if scan.components != 1 or scan.frame not in (BASELINE, EXTENDED):
        return imagecodecs.jpeg8_decode(codestream)
    across, down = -(-scan.columns // 8), -(-scan.rows // 8)
    extra = -(-2 * SURPLUS_BLOCKS // across)
    rows = struct.pack(">H", 8 * (down + extra))
    taller = codestream[: scan.rows_at] + rows + codestream[scan.rows_at + 2 : -2] + SENTINEL + codestream[-2:]
    values = imagecodecs.jpeg8_decode(taller)
    is_coded = (values[8 * down :] != 1 << scan.precision - 1).reshape(extra, 8, scan.columns).any(axis=1)
    coded = (across * np.arange(extra)[:, None] + np.arange(scan.columns) // 8)[is_coded]
    # If a restart is due after the last block, the decoder finds none and ignores the sentinel.
    restart_due = scan.restart_interval and scan.units % scan.restart_interval == 0
    if not len(coded) and not restart_due or coded.max(initial=0) >= SURPLUS_BLOCKS:
        raise ValueError("its JPEG data codes more or fewer blocks than its image has")
    return values[: scan.rows]


def check_decoded(codestream: bytes, scan: Scan, values: np.ndarray) -> None:
    """Raise ValueError if a JPEG Lossless image used more or less than its scan.

    Lost and overwritten bytes change the number of differences, but a decoder stops at the number it needs, or adds
    zeros. So code the image's last differences again: they must be the scan's last bits.
    """
    if scan.components != 1 or scan.frame != LOSSLESS or scan.predictor not in PREDICTORS:
        return
    for coded, rows in _intervals(codestream, scan):
        if not _ends_in(codestream, coded, values[rows], scan):
            raise ValueError("its JPEG Lossless data codes more or fewer pixels than its image has")


def _intervals(codestream: bytes, scan: Scan) -> Iterator[tuple[slice, slice]]:
    """Yield coded bytes and rows from one restart to the next; an interval is a number of rows (T.81 H.1.1)."""
    start, row = scan.start, 0
    if scan.restart_interval:
        height = max(1, scan.restart_interval // scan.columns)
        for marker in RESTART.finditer(codestream, scan.start):
            yield slice(start, marker.start()), slice(row, row + height)
            start, row = marker.end(), row + height
    yield slice(start, len(codestream) - 2), slice(row, scan.rows)


def _ends_in(codestream: bytes, coded: slice, values: np.ndarray, scan: Scan) -> bool:
    """True if the last differences of an interval's values are the last bits of its coded bytes."""
    stop = min(len(values), _last_uneven_row(values) + 2)  # all differences below are zero
    bits = _code(_last_differences(values, stop, scan), scan.difference_table)
    zero, below = _code(np.zeros(1, np.int64), scan.difference_table), (len(values) - stop) * scan.columns
    if any(zero):
        run = 0
        bits += zero * below
    else:  # most rows below are a run of zero bytes: leave it out on both sides
        run = max(0, len(zero) * below // 8 - 2 * MARGIN)
        bits += bytes(len(zero) * below - 8 * run)
    end = coded.stop
    while codestream[end - 1] == 0xFF:  # a fill byte
        end -= 1
    run_at = max(coded.start, end - MARGIN - run)
    if codestream[run_at : run_at + run] != bytes(run):
        return False
    # At most every second byte is stuffed, and half a pair at the start does no harm.
    start = max(coded.start, run_at - (len(bits) + SURPLUS_BITS) // 4 - 4)
    tail = (codestream[start:run_at] + codestream[run_at + run : end]).replace(b"\xff\0", b"\xff")
    tail_bits = np.unpackbits(np.frombuffer(tail, np.uint8)).tobytes()
    return any(tail_bits.endswith(bits, 0, len(tail_bits) - surplus) for surplus in range(SURPLUS_BITS + 1))


def _last_differences(values: np.ndarray, stop: int, scan: Scan) -> np.ndarray:
    """Return the differences before row ``stop``, at most as many as contain `COMPARED_DIFFERENCES` nonzero ones."""
    first = max(0, stop - 3)
    differences = _differences(values, first, stop, scan)
    while first and not differences.any():
        first = max(0, 2 * first - stop)
        differences = _differences(values, first, stop, scan)
    uneven = np.flatnonzero(differences)
    return differences[uneven[-COMPARED_DIFFERENCES] :] if len(uneven) >= COMPARED_DIFFERENCES else differences


def _last_uneven_row(values: np.ndarray) -> int:
    """Return the index of the last row with a value other than the last sample's; 0 if there is none."""
    for stop in range(len(values), 0, -ROWS_AT_ONCE):
        start = max(0, stop - ROWS_AT_ONCE)
        uneven = np.flatnonzero((values[start:stop] != values[-1, -1]).any(axis=1))
        if len(uneven):
            return start + int(uneven[-1])
    return 0


def _differences(values: np.ndarray, first: int, stop: int, scan: Scan) -> np.ndarray:
    """Return the coded differences of rows ``first`` to ``stop - 1``, flat, modulo 2**16 (T.81 H.1.2.1)."""
    samples = values[max(0, first - 1) : stop].astype(np.int64) >> scan.point_transform
    above, rows = samples[:-1], samples[1:]
    predicted = PREDICTORS[scan.predictor](rows[:, :-1], above[:, 1:], above[:, :-1])
    differences = (rows - np.hstack([above[:, :1], predicted])).ravel()
    if first == 0:
        middle = 1 << scan.precision - scan.point_transform - 1
        differences = np.concatenate([np.diff(samples[0], prepend=middle), differences])
    return (differences + 0x7FFF & 0xFFFF) - 0x7FFF


def _code(differences: np.ndarray, table: bytes) -> bytes:
    """Code differences with a Huffman table; return one byte, 0 or 1, for each bit (T.81 H.1.2.2)."""
    lengths, codes = np.zeros(256, np.int64), np.zeros(256, np.int64)
    symbols, code = iter(table[16:]), 0
    for length, count in enumerate(table[:16], 1):
        for symbol in (next(symbols) for _ in range(count)):
            lengths[symbol], codes[symbol], code = length, code, code + 1
        code <<= 1
    category = np.frexp(np.abs(differences))[1]  # the number of bits
    extra = np.where(category < 16, category, 0)  # category 16 has only one difference, 32768, so no extra bits
    sizes = lengths[category] + extra
    words = codes[category] << extra | np.where(differences < 0, differences - 1, differences) & (1 << extra) - 1
    of_word = np.repeat(np.arange(len(words)), sizes)
    to_right = np.cumsum(sizes)[of_word] - 1 - np.arange(len(of_word))
    return (words[of_word] >> to_right & 1).astype(np.uint8).tobytes()
