"""Facts about damage in JPEG pictures that decoders do not tell: each kind is refused, and no scan of an encoder is."""

import io
import struct
from itertools import pairwise

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from utils.dicom.jpeg import ZERO_RUN, check_decoded, check_scan, decode_blocks, read_scan

BITS = 12
EOI = b"\xff\xd9"
PREDICTED = {  # T.81 table H.1, on Python's numbers
    1: lambda a, b, c: a,
    2: lambda a, b, c: b,
    3: lambda a, b, c: c,
    4: lambda a, b, c: a + b - c,
    5: lambda a, b, c: a + ((b - c) >> 1),
    6: lambda a, b, c: b + ((a - c) >> 1),
    7: lambda a, b, c: (a + b) >> 1,
}


def tissue(shape: tuple[int, int] = (40, 50), even_rows: int = 0) -> np.ndarray:
    """Smooth 12-bit noise, with so many rows of air of one value below."""
    pixels = np.random.default_rng(0).integers(0, 60, shape) + 40 * np.arange(shape[1])
    pixels[shape[0] - even_rows :] = 5
    return pixels.astype(np.uint16)


def lossless(pixels: np.ndarray, predictor: int = 1) -> bytes:
    return imagecodecs.jpeg_encode(pixels, lossless=True, predictor=predictor, bitspersample=BITS)


def plain_lossless(pixels: np.ndarray, predictor: int = 1, rows_of_interval: int = 0, shift: int = 0, first: int = 0) -> bytes:
    """JPEG Lossless by the letter of T.81, with restarts and codes of 5 bits; zeros are the code of the category ``first``."""
    categories = [first, *(category for category in range(17) if category != first)]
    height, width = pixels.shape
    samples, interval = pixels.astype(int) >> shift, rows_of_interval or height
    scans = []
    for top in range(0, height, interval):
        bits = ""
        for y in range(top, min(top + interval, height)):
            for x in range(width):
                left, above = samples[y, x - 1] if x else 0, samples[y - 1, x] if y > top else 0
                if y == top:
                    predicted = left if x else 1 << BITS - shift - 1
                else:
                    predicted = PREDICTED[predictor](left, above, samples[y - 1, x - 1]) if x else above
                difference = int(samples[y, x] - predicted)
                category = abs(difference).bit_length()
                bits += f"{categories.index(category):05b}"
                bits += f"{difference if difference > 0 else difference + (1 << category) - 1:0{category}b}" if category else ""
        bits += "1" * (-len(bits) % 8)
        scans.append(int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0"))
    table = bytes((0, 0, 0, 0, 17)) + bytes(11) + bytes(categories)
    segments = {
        0xC3: struct.pack(">BHHBBBB", BITS, height, width, 1, 1, 0x11, 0),
        0xC4: b"\0" + table,
        0xDD: struct.pack(">H", rows_of_interval * width),
        0xDA: bytes((1, 1, 0, predictor, 0, shift)),
    }
    header = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments.items())
    restarts = b"".join(bytes((0xFF, 0xD0 + number % 8)) + scan for number, scan in enumerate(scans[1:]))
    return b"\xff\xd8" + header + scans[0] + restarts + EOI


def read(codestream: bytes) -> np.ndarray:
    """What the kit does with a frame."""
    scan = read_scan(codestream)
    check_scan(codestream, scan)
    if scan.frame in (0xC0, 0xC1):
        return decode_blocks(codestream)
    values = imagecodecs.jpeg_decode(codestream)
    check_decoded(codestream, scan, values)
    return values


def damaged(codestream: bytes, at: int, size: int) -> dict[str, bytes]:
    """A frame with each kind of damage at an offset."""
    before = codestream[:at]
    return {
        "bytes lost": before + codestream[at + size :],
        "bytes lost, zeros at the end": before + codestream[at + size : -2] + bytes(size) + EOI,
        "bytes doubled": codestream[: at + size] + codestream[at:],
        "32 zeros": before + bytes(32) + codestream[at + 32 :],
        "100 zeros": before + bytes(100) + codestream[at + 100 :],
        "an end marker": before + EOI + codestream[at + 2 :],
        "a start marker": before + b"\xff\xd8" + codestream[at + 2 :],
        "a frame header": before + b"\xff\xc3" + codestream[at + 2 :],
        "cut and ended": before + EOI,
    }


def accepted(codestream: bytes, pixels: np.ndarray, size: int = 40) -> list[tuple[int, str]]:
    """Places and kinds of damage that give another picture; ``size`` bytes are lost or doubled."""
    found = []
    for place in np.linspace(read_scan(codestream).start, len(codestream) - 2.5 * size, 6).astype(int).tolist():
        for kind, content in damaged(codestream, place, size).items():
            try:
                values = read(content)
            except (ValueError, RuntimeError):
                continue
            if not np.array_equal(values, pixels):
                found.append((place, kind))
    return found


# JPEG Lossless


@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize("even_rows", [0, 1, 2, 20, 40])
@pytest.mark.parametrize("shape", [(40, 50), (40, 1), (41, 7)], ids=str)
def test_lossless_scans_of_an_encoder_are_used_up(predictor, even_rows, shape):
    pixels = tissue(shape, even_rows)
    np.testing.assert_array_equal(read(lossless(pixels, predictor)), pixels)


@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize("rows_of_interval", [0, 1, 3, 20])
@pytest.mark.parametrize("shift", [0, 2])
def test_lossless_scans_by_the_standards_letter_are_used_up(predictor, rows_of_interval, shift):
    pixels = tissue((20, 9), even_rows=6) >> shift << shift
    np.testing.assert_array_equal(read(plain_lossless(pixels, predictor, rows_of_interval, shift)), pixels)


def test_lossless_scan_of_the_largest_differences_is_used_up():
    pixels = np.tile(np.array([[0, 65_535, 32_767], [32_768, 0, 1]], np.uint16), (5, 4))
    codestream = imagecodecs.jpeg_encode(pixels, lossless=True, predictor=1, bitspersample=16)
    np.testing.assert_array_equal(read(codestream), pixels)


@pytest.mark.parametrize(
    "end", [b"\xff" + EOI, b"\xff\xff\xff" + EOI, b"\0" + EOI], ids=["fill byte", "fill bytes", "surplus byte"]
)
def test_byte_before_the_end_marker_is_no_damage(end):
    np.testing.assert_array_equal(read(lossless(tissue())[:-2] + end), tissue())


@pytest.mark.parametrize("predictor", [1, 4, 7])
@pytest.mark.parametrize("even_rows", [0, 15])
def test_damaged_lossless_scan_is_refused(predictor, even_rows):
    pixels = tissue(even_rows=even_rows)
    codestream = lossless(pixels, predictor)
    assert accepted(codestream, pixels) == []


def test_damage_between_restarts_is_refused():
    pixels = tissue()
    codestream = plain_lossless(pixels, rows_of_interval=10)
    assert codestream.count(b"\xff\xd1") == 1
    assert accepted(codestream, pixels) == []


@pytest.mark.parametrize("old, new", [(b"\xff\xd1", b""), (b"\xff\xd1", b"\xff\xd2"), (b"\xff\xd1", b"\xff\xd1\xff\xd2")])
def test_restart_markers_out_of_order_are_refused(old, new):
    codestream = plain_lossless(tissue((12, 10)), rows_of_interval=3)
    read(codestream)
    with pytest.raises(ValueError, match="restart markers"):
        read(codestream.replace(old, new))


def test_restart_marker_without_an_interval_is_refused():
    codestream = lossless(tissue())
    with pytest.raises(ValueError, match="more or fewer pixels"):
        read(codestream[:500] + b"\xff\xd0" + codestream[502:])


def test_long_run_of_zeros_is_even_air_where_zeros_code_it():
    """As in most real mammograms, whose air has one value."""
    pixels = tissue((200, 50), even_rows=190)
    codestream = lossless(pixels)
    assert bytes(10 * ZERO_RUN) in codestream
    np.testing.assert_array_equal(read(codestream), pixels)


def test_long_run_of_zeros_is_a_hole_where_zeros_code_steps():
    codestream = plain_lossless(tissue(), first=6)
    np.testing.assert_array_equal(read(codestream), tissue())
    with pytest.raises(ValueError, match="a gap of 32 zero bytes"):
        read(codestream[:900] + bytes(ZERO_RUN) + codestream[900 + ZERO_RUN :])


# JPEG baseline and extended


def blocks(shape: tuple[int, int] = (100, 130), bits: int = 8) -> np.ndarray:
    return (np.random.default_rng(0).integers(0, 2**bits // 4, shape) + 2**bits // 4).astype(
        np.uint8 if bits == 8 else np.uint16
    )


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (7, 9), (8, 8), (64, 3), (8, 64), (65, 8), (100, 130)], ids=str)
def test_block_scans_of_an_encoder_are_used_up(bits, optimize, shape):
    for pixels in (blocks(shape, bits), np.full_like(blocks(shape, bits), 3)):
        codestream = imagecodecs.jpeg8_encode(pixels, level=90, bitspersample=bits, optimize=optimize)
        np.testing.assert_array_equal(read(codestream), imagecodecs.jpeg8_decode(codestream))


def test_scan_that_ends_in_mid_grey_is_used_up():
    """As do the blocks that libjpeg adds to what is cut off."""
    pixels = blocks()
    pixels[50:] = 128
    codestream = imagecodecs.jpeg8_encode(pixels, level=90)
    np.testing.assert_array_equal(read(codestream), imagecodecs.jpeg8_decode(codestream))


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("optimize", [False, True])
def test_damaged_block_scan_is_refused(bits, optimize):
    codestream = imagecodecs.jpeg8_encode(blocks(bits=bits), level=90, bitspersample=bits, optimize=optimize)
    assert accepted(codestream, imagecodecs.jpeg8_decode(codestream), size=600) == []


def with_restarts(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", restart_marker_rows=1)
    return buffer.getvalue()


def test_restart_markers_of_blocks_are_legal_and_counted():
    codestream = with_restarts(blocks())
    np.testing.assert_array_equal(read(codestream), imagecodecs.jpeg8_decode(codestream))
    places = [codestream.index(bytes((0xFF, 0xD0 + number))) for number in range(4)]
    first, second = next(pairwise(places))
    for content in (codestream[:first] + codestream[second:], codestream[:second] + codestream[first:]):
        with pytest.raises(ValueError, match="restart markers"):
            read(content)


def test_early_marker_is_named():
    codestream = imagecodecs.jpeg8_encode(blocks(), level=90)
    with pytest.raises(ValueError, match="contains the marker FFD8 998 bytes before the end"):
        read(codestream[:-1000] + b"\xff\xd8" + codestream[-998:])


def test_progressive_and_colour_pictures_are_left_to_the_decoder():
    buffer = io.BytesIO()
    Image.fromarray(blocks()).save(buffer, "JPEG", progressive=True)
    colour = imagecodecs.jpeg8_encode(np.dstack([blocks()] * 3), level=90)
    for codestream in (buffer.getvalue(), colour):
        check_scan(codestream, read_scan(codestream))
        np.testing.assert_array_equal(decode_blocks(codestream), imagecodecs.jpeg8_decode(codestream))


# JPEG-LS


@pytest.mark.parametrize("near", [0, 2])
def test_damaged_jpeg_ls_scan_is_refused(near):
    pixels = tissue(even_rows=10)
    codestream = imagecodecs.jpegls_encode(pixels, level=near)
    assert accepted(codestream, imagecodecs.jpegls_decode(codestream)) == []


# What is broken


@pytest.mark.parametrize("length", [0, 1, 2, 3, 10, 30])
def test_header_without_a_scan_is_refused(length):
    with pytest.raises(ValueError, match="no frame header followed by a scan"):
        read_scan(lossless(tissue())[:length])
    with pytest.raises(ValueError, match="no frame header followed by a scan"):
        read_scan(b"\xff\xd8" + EOI + lossless(tissue()))
